// The CPU's side of the residual.
#pragma once

#include "shared/residual.h"
#include "cpu/stage.h"

namespace cldfast {

// Fills in args.tiling and args.sums and runs the kernels on up to `threads` threads of torch's. `loss`
// receives numbers of the compute dtype: one for each row, or the sum over rows alone if `reduce`.
void run_residual(ResidualArgs& args, const Kernels& kernels, int threads, void* loss, bool reduce);

}  // namespace cldfast
