// Calls of the CUDA runtime: launches on a stream, and return codes as exceptions.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <stdexcept>

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

int device_count();

// Blocks for `work` items at `per_block`, bounded by what the device needs to be busy; kernels loop.
unsigned blocks_for(int64_t work, int64_t per_block, int device);

template <class... P>
void start(const char* name, void (*kernel)(P...), unsigned blocks, unsigned threads, const Queue& queue,
           P... arguments) {
  void* parameters[] = {&arguments...};
  check(cudaLaunchKernel(kernel, dim3(blocks), dim3(threads), parameters, 0, queue.stream), name);
}

}  // namespace cldfast
