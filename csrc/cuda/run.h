// Puts operations on a stream. All addresses are of device memory, unless it is said otherwise.
#pragma once

#include "cuda/calls.h"
#include "shared/operations.h"
#include "shared/table.h"

namespace cldfast {

// on_device: the matrices are there, one for each row where args.matrices is not 1; else one matrix for
// all rows is on the host. step: null, or a number that is added to the stage index and, with one matrix
// for all rows, picks it from those on the device. Outputs may be inputs; where a stage has more than
// LAUNCH_OUTPUTS of them, the state's two alone.
void run_stage(const StageArgs& args, bool on_device, const int64_t* step, const Queue& queue);

// Numbers of float64 that `args.sums` must have room for.
int64_t residual_room(int64_t rows, int64_t width, bool reduce);

// One launch. `args.tiling` is not read. `loss` receives numbers of the compute dtype: one for each row,
// or the sum over rows alone if `reduce`. MOST_OVERWRITTEN gradients may be planes of the input.
void run_residual(ResidualArgs& args, void* loss, bool reduce, const Queue& queue);

// The matrices at `rows` times, `entries` numbers each, of a table whose arrays are on the device. Times
// that the table does not cover give numbers without meaning.
void run_matrices(const Table& table, const double* times, int64_t rows, int64_t entries, double* to,
                  const Queue& queue);

// ++*step, then *time = times[*step] while that is below `count`; float64 if `wide`, else float32.
void advance(int64_t* step, const void* times, void* time, int64_t count, bool wide, const Queue& queue);

void run_words(const NoiseAddress& noise, int64_t count, uint32_t* radius, uint32_t* angle,
               const Queue& queue);

// The architecture that this build's kernels run at on a device, 10 major + minor; throws where none
// does.
int check_device(int device);

}  // namespace cldfast
