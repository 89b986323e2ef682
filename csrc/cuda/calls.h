// Calls of the CUDA runtime: launches on a stream, and return codes as exceptions.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <stdexcept>

namespace cldfast {

// Its message begins with the name of the return code.
struct CudaError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Throws CudaError unless the code is cudaSuccess; `call` says what returned it.
void check(cudaError_t code, const char* call);

// A stream of a device, to which work is added.
struct Queue {
  int device;
  cudaStream_t stream;
};

// Makes a device the current one of this module's CUDA runtime. The caller has made it the current one of
// other runtimes already, so that nothing has to be undone.
void use(int device);

int device_count();

// Blocks for `work` items at `per_block`, but no more than keep the device busy, by how many of the
// kernel's blocks a processor holds: the kernels loop.
unsigned blocks_for(const void* kernel, unsigned threads, int64_t work, int64_t per_block, int device);

template <class... P>
void start(const char* name, void (*kernel)(P...), unsigned blocks, unsigned threads, const Queue& queue,
           P... arguments) {
  void* parameters[] = {&arguments...};
  check(cudaLaunchKernel(kernel, dim3(blocks), dim3(threads), parameters, 0, queue.stream), name);
}

// Starts a kernel that loops over `work` items, of which a block takes `per_block` at a time.
template <class... P>
void start_looping(const char* name, void (*kernel)(P...), int64_t work, int64_t per_block,
                   unsigned threads, const Queue& queue, P... arguments) {
  const void* address = reinterpret_cast<const void*>(kernel);
  const unsigned blocks = blocks_for(address, threads, work, per_block, queue.device);
  start(name, kernel, blocks, threads, queue, arguments...);
}

}  // namespace cldfast
