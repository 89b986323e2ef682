// The GPU's side of the stage.
#pragma once

#include "cuda/calls.h"
#include "shared/stage.h"

namespace cldfast {

// A stage whose planes are in device memory. table: the matrices in device memory, one for each row
// where args.matrices is not 1; null takes args.weights, on the host. step: null, or the address of a
// number in device memory that is added to the stage index and, with one matrix for all rows, picks it
// from the table. used: a bit for each column that the table's matrices use. Outputs may be inputs;
// with more than 4 of them only the state's two may.
void run_stage_cuda(const StageArgs& args, const double* table, const int64_t* step, uint64_t used,
                    const Queue& queue);

// ++*step, then *time = times[*step] while that is below `count`; float64 if `wide`, else float32.
void advance_cuda(int64_t* step, const void* times, void* time, int64_t count, bool wide,
                  const Queue& queue);

void philox_words_cuda(uint64_t seed, uint64_t first_pair, int64_t count, uint32_t stage_index,
                       uint32_t stream, uint32_t* radius, uint32_t* angle, const Queue& queue);

// The architecture that this build's kernels run at on a device, 10 major + minor; throws where none
// does.
int check_device(int device);

}  // namespace cldfast
