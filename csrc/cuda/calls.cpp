#include "cuda/calls.h"

#include <string>

namespace cldfast {

void check(cudaError_t code, const char* call) {
  if (code == cudaSuccess) return;
  cudaGetLastError();  // a launch that failed would be reported by the next one as well
  throw CudaError(std::string(cudaGetErrorName(code)) + " in " + call + ": " +
                  cudaGetErrorString(code));
}

void use(int device) { check(cudaSetDevice(device), "cudaSetDevice"); }

int device_count() {
  int count = 0;
  check(cudaGetDeviceCount(&count), "cudaGetDeviceCount");
  return count;
}

unsigned blocks_for(int64_t work, int64_t per_block, int device) {
  // With so many blocks the last ones to finish leave little of the device idle. Each block still has
  // several tiles, which share the cost of copying the matrix to shared memory.
  constexpr int64_t BLOCKS_PER_PROCESSOR = 32;
  int processors = 0;
  check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device),
        "cudaDeviceGetAttribute");
  const int64_t blocks = (work + per_block - 1) / per_block;
  const int64_t most = processors * BLOCKS_PER_PROCESSOR;
  return static_cast<unsigned>(blocks < 1 ? 1 : blocks < most ? blocks : most);
}

}  // namespace cldfast
