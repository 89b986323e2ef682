// The GPU's side of the stage: launches on a stream, and return codes as exceptions.
#pragma once

#include <cuda_runtime_api.h>

#include <stdexcept>
#include <string>

#include "stage.h"

namespace cldfast {

// Begins with the name of the return code.
struct CudaError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Throws CudaError unless the code is cudaSuccess; `call` says what returned it.
void check(cudaError_t code, const char* call);

// Where work is put.
struct Queue {
  int device;
  cudaStream_t stream;
};

// Makes a device the thread's current one for this module's runtime. Not undone: the caller has made it
// the process's current one, and another runtime's memory of it is not ours to restore.
void use(int device);

// Blocks for `work` items at `per_block`, bounded by what the device needs to be busy; kernels loop.
unsigned blocks_for(int64_t work, int64_t per_block, int device);

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

int device_count();

// The architecture that this build's kernels run at on a device, 10 major + minor; throws where none
// does.
int check_device(int device);

}  // namespace cldfast
