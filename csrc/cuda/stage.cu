// The stage on a GPU, with the CPU's normals; the counter of recorded steps, and the generator's words.
#define CLDFAST_LEVEL device
#include "cuda/stage_kernels.h"

namespace cldfast {
namespace {

using namespace CLDFAST_LEVEL;

__global__ void advance_step(int64_t* step, const void* times, void* time, int64_t count,
                             bool wide) {
  const int64_t next = *step + 1;
  *step = next;
  if (next >= count) return;
  if (wide) {
    *static_cast<double*>(time) = static_cast<const double*>(times)[next];
  } else {
    *static_cast<float*>(time) = static_cast<const float*>(times)[next];
  }
}

__global__ void __launch_bounds__(THREADS)
    philox_words(const __grid_constant__ RoundKeys keys, const __grid_constant__ NoiseAddress noise,
                 int64_t count, uint32_t* radius, uint32_t* angle) {
  const int64_t odd = static_cast<int64_t>(noise.first_pair & 1);
  const int64_t calls = (count + odd + 1) / 2;
  for (int64_t call = int64_t(blockIdx.x) * THREADS + threadIdx.x; call < calls;
       call += int64_t(gridDim.x) * THREADS) {
    const Words<uint64_t> w = philox4x32(
        pair_counter<uint64_t>((noise.first_pair >> 1) + call, noise.stage_index, noise.stream), keys);
    const int64_t pair = 2 * call - odd;
    if (pair >= 0) {
      radius[pair] = static_cast<uint32_t>(w.w0);
      angle[pair] = static_cast<uint32_t>(w.w1);
    }
    if (pair + 1 < count) {
      radius[pair + 1] = static_cast<uint32_t>(w.w2);
      angle[pair + 1] = static_cast<uint32_t>(w.w3);
    }
  }
}

}  // namespace

void run_stage(const StageArgs& args, bool on_device, const int64_t* step, const Queue& queue) {
  launch_stage(args, on_device, step, queue);
}

void advance(int64_t* step, const void* times, void* time, int64_t count, bool wide, const Queue& queue) {
  use(queue.device);
  start("the launch of advance_step", advance_step, 1, 1, queue, step, times, time, count, wide);
}

void run_words(const NoiseAddress& noise, int64_t count, uint32_t* radius, uint32_t* angle,
               const Queue& queue) {
  use(queue.device);
  start_looping("the launch of philox_words", philox_words, count / 2 + 1, THREADS, THREADS, queue,
                round_keys(noise.seed), noise, count, radius, angle);
}

int check_device(int device) {
  use(device);
  cudaFuncAttributes attributes = {};
  const StageKernel kernel = stage_vector<2, 3, SHARED, true>;
  check(cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(kernel)), "cudaFuncGetAttributes");
  return attributes.binaryVersion;
}

}  // namespace cldfast
