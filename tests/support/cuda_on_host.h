// CUDA C++ as host code, so that tests run the kernels' sources without a GPU: the toolkit's headers,
// and what nvcc adds to them. Threads of a block are coroutines of one host thread; blocks follow each
// other, so what they owe to fences and caches is not seen. Which thread or block comes first is drawn
// anew each time. Threads that part ways at a barrier or within a warp's exchange fail the launch.
#pragma once

#include <cuda_runtime.h>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <cstring>
#include <functional>
#include <tuple>
#include <utility>

#undef __shared__
#define __shared__ static  // one block runs at a time
#undef __launch_bounds__
#define __launch_bounds__(...)
#undef __grid_constant__
#define __grid_constant__

inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;

namespace emulated {

constexpr int LANES = 32;

// All threads of all blocks; cudaErrorLaunchFailure where some wait for ever.
cudaError_t launch(dim3 grid, dim3 block, const std::function<void()>& thread);

// Waits for all threads of the block.
void block_barrier();

// The bits that `lane` of the warp brings, once all lanes have come with theirs: all to a `kind`.
enum class Kind : int { sync, shuffle };
uint64_t exchange(Kind kind, unsigned mask, uint64_t bits, int lane);

template <class... P, size_t... I>
void call(void (*kernel)(P...), const std::tuple<P...>& arguments, std::index_sequence<I...>) {
  kernel(std::get<I>(arguments)...);
}

template <class... P, size_t... I>
std::tuple<P...> copies(void** arguments, std::index_sequence<I...>) {
  return {*static_cast<const P*>(arguments[I])...};
}

}  // namespace emulated

// More special than the runtime's template for any pointer, and so taken instead.
template <class... P>
cudaError_t cudaLaunchKernel(void (*kernel)(P...), dim3 grid, dim3 block, void** arguments, size_t,
                             cudaStream_t) {
  const auto places = std::index_sequence_for<P...>();
  const std::tuple<P...> kept = emulated::copies<P...>(arguments, places);
  return emulated::launch(grid, block, [&] { emulated::call(kernel, kept, places); });
}

inline void __syncthreads() { emulated::block_barrier(); }
inline void __syncwarp() { emulated::exchange(emulated::Kind::sync, 0xFFFFFFFFu, 0, 0); }
inline void __threadfence() {}

template <class T>
T __shfl_sync(unsigned mask, T value, int lane) {
  uint64_t bits = 0;
  memcpy(&bits, &value, sizeof(T));
  bits = emulated::exchange(emulated::Kind::shuffle, mask, bits, lane);
  memcpy(&value, &bits, sizeof(T));
  return value;
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int distance) {
  return __shfl_sync(mask, value, static_cast<int>(threadIdx.x % emulated::LANES) ^ distance);
}

template <class T>
T __ldcg(const T* number) {
  return *number;
}

inline unsigned atomicAdd(unsigned* number, unsigned more) {
  const unsigned before = *number;
  *number += more;
  return before;
}
