// The GPU's side of the residual.
#pragma once

#include "shared/residual.h"
#include "cuda/stage.h"

namespace cldfast {

// Numbers of float64 that `args.sums` must have room for.
int64_t residual_room(int64_t rows, int64_t channels, int64_t inner, bool reduce);

// One launch. All pointers of `args` are to device memory, `args.tiling` is not read. `loss` receives numbers of
// the compute dtype: one for each row, or the sum over rows alone if `reduce`. Gradients may be planes
// of the input, up to two of them.
void run_residual_cuda(const ResidualArgs& args, void* loss, bool reduce, const Queue& queue);

}  // namespace cldfast
