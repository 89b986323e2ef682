// Puts operations on a stream. All addresses are of device memory unless a comment says otherwise.
#pragma once

#include "cuda/calls.h"
#include "shared/operations.h"
#include "shared/table.h"

namespace cldfast {

// on_device: whether the matrices are on the device; if not, one matrix for all rows is on the host. step:
// null, or of a recorded step three numbers: the first is added to the stage index and picks the matrix
// among several on the device, the second is the seed, the third, a multiple of 4, is the number of samples
// before those of `args.noise`. The first LAUNCH_OUTPUTS outputs may be inputs.
void run_stage(const StageArgs& args, bool on_device, const int64_t* step, const Queue& queue);

// The same with normals of float32 by the hardware's functions, see cuda/fast_normals.h.
void run_stage_fast(const StageArgs& args, bool on_device, const int64_t* step, const Queue& queue);

// One launch. `args.sums` receives the losses of the pieces of rows, (rows, pieces_of(width)). A gradient of
// at most MOST_OVERWRITTEN planes may lie in memory of the input.
void run_residual(ResidualArgs& args, const Queue& queue);

// The matrices of a table at `rows` times, `entries` numbers each. Times that the table does not cover
// give numbers without meaning.
void run_matrices(const Table& table, const double* times, int64_t rows, int64_t entries, double* to,
                  const Queue& queue);

// ++*step, then *time = times[*step] while that is below `count`; float64 if `wide`, else float32.
void advance(int64_t* step, const void* times, void* time, int64_t count, bool wide, const Queue& queue);

void run_words(const NoiseAddress& noise, int64_t count, uint32_t* radius, uint32_t* angle,
               const Queue& queue);

// The architecture of the kernels that run on a device, 10 major + minor; throws where none run.
int check_device(int device);

}  // namespace cldfast
