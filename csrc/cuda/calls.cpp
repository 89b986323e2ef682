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

unsigned blocks_for(const void* kernel, unsigned threads, int64_t work, int64_t per_block, int device) {
  // With so many rounds of blocks the last ones to finish leave little of the device idle. Each block still
  // has several tiles, which share the cost of copying the matrix to shared memory.
  constexpr int64_t ROUNDS = 16;
  int processors = 0, together = 0;
  check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device),
        "cudaDeviceGetAttribute");
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&together, kernel, static_cast<int>(threads), 0),
        "cudaOccupancyMaxActiveBlocksPerMultiprocessor");
  const int64_t blocks = (work + per_block - 1) / per_block;
  const int64_t most = processors * together * ROUNDS;
  return static_cast<unsigned>(blocks < 1 ? 1 : blocks < most ? blocks : most);
}

}  // namespace cldfast
