// The stage on a GPU: kernels and their launches. What a thread does is in cuda/stage_thread.h.
#define CLDFAST_LEVEL device
#include "cuda/run.h"
#include "cuda/stage_thread.h"

namespace cldfast {
namespace {

using namespace CLDFAST_LEVEL;

// The matrix of all rows to shared memory; returns the stage index of the noise.
template <class T, bool OWN>
__device__ uint32_t begin(const StageLaunch& launch, T* shared) {
  if (!OWN) {
    const int64_t step = launch.step ? *launch.step : 0;
    for (int i = threadIdx.x; i < LAUNCH_OUTPUTS * STAGE_COLUMNS; i += THREADS) {
      shared[i] = matrix_entry<T>(launch, step, i);
    }
    __syncthreads();
  }
  return stage_index_of(launch);
}

template <int OUTS, int INS, bool OWN, bool PLAIN>
__global__ void __launch_bounds__(THREADS, OWN && OUTS > 2 ? 1 : 2)
    stage_vector(const __grid_constant__ StageLaunch launch) {
  __shared__ float shared[LAUNCH_OUTPUTS * STAGE_COLUMNS];
  const uint32_t stage_index = begin<float, OWN>(launch, shared);
  const int64_t tiles = (launch.units + 2 * LANES - 1) / (2 * LANES);
  const int warp = threadIdx.x / LANES, lane = threadIdx.x % LANES;
  for (int64_t tile = int64_t(blockIdx.x) * WARPS + warp; tile < tiles;
       tile += int64_t(gridDim.x) * WARPS) {
    stage_quads<OUTS, INS, OWN, PLAIN>(launch, shared, stage_index, tile, lane);
  }
}

template <int OUTS, int INS>
__global__ void __launch_bounds__(THREADS, 2) stage_rows(const __grid_constant__ StageLaunch launch) {
  const uint32_t stage_index = stage_index_of(launch);
  for (int64_t task = int64_t(blockIdx.x) * WARPS + threadIdx.x / LANES; task < launch.rows * launch.pieces;
       task += int64_t(gridDim.x) * WARPS) {
    const int64_t row = launch.by_piece.quotient(task);
    stage_piece<OUTS, INS>(launch, stage_index, row, task - row * launch.pieces, threadIdx.x % LANES);
  }
}

template <class T, bool OWN>
__global__ void __launch_bounds__(THREADS) stage_scalar(const __grid_constant__ StageLaunch launch) {
  __shared__ T shared[LAUNCH_OUTPUTS * STAGE_COLUMNS];
  const uint32_t stage_index = begin<T, OWN>(launch, shared);
  for (int64_t unit = int64_t(blockIdx.x) * THREADS + threadIdx.x; unit < launch.units;
       unit += int64_t(gridDim.x) * THREADS) {
    stage_twos<T, OWN>(launch, shared, stage_index, unit);
  }
}

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

using StageKernel = void (*)(StageLaunch);

// Whether rows with matrices of their own are those of perturbed data: x0 to the state and an offset.
bool perturbs(const StageLaunch& launch) {
  return launch.own_matrix && launch.vector && launch.plain && launch.noisy &&
         launch.inputs == 1 && launch.width >= QUADS_FROM;
}

StageKernel kernel_for_rows(const StageLaunch& launch) {
  switch (launch.outputs) {
    case 2: return stage_rows<2, 1>;
    case 3: return stage_rows<3, 1>;
    default: return stage_rows<4, 1>;
  }
}

template <bool OWN>
StageKernel kernel_for(const StageLaunch& launch) {
  if (!launch.vector) {
    return launch.compute == Dtype::float32 ? stage_scalar<float, OWN> : stage_scalar<double, OWN>;
  }
  if (!launch.plain) {
    return launch.outputs <= 2 ? stage_vector<2, 0, OWN, false> : stage_vector<4, 0, OWN, false>;
  }
  // A sampler's usual step: the state, a velocity score, the state.
  if (!OWN && launch.outputs == 2 && launch.inputs == 3) return stage_vector<2, 3, false, true>;
  switch (launch.outputs) {
    case 1:
    case 2: return stage_vector<2, 0, OWN, true>;
    case 3: return stage_vector<3, 0, OWN, true>;
    default: return stage_vector<4, 0, OWN, true>;
  }
}

}  // namespace

void run_stage(const StageArgs& args, bool on_device, const int64_t* step, const Queue& queue) {
  use(queue.device);
  // The state's planes come first and may be inputs, so they are written last.
  for (int first = (args.results - 1) / LAUNCH_OUTPUTS * LAUNCH_OUTPUTS; first >= 0;
       first -= LAUNCH_OUTPUTS) {
    const StageLaunch launch(args, on_device, step, first);
    if (launch.outputs >= 2 && perturbs(launch)) {
      const unsigned blocks = blocks_for(launch.rows * launch.pieces, WARPS, queue.device);
      start("the launch of a stage", kernel_for_rows(launch), blocks, THREADS, queue, launch);
      continue;
    }
    const int64_t per_block = launch.vector ? 2 * THREADS : THREADS;
    const unsigned blocks = blocks_for(launch.units, per_block, queue.device);
    const StageKernel kernel = launch.own_matrix ? kernel_for<true>(launch) : kernel_for<false>(launch);
    start("the launch of a stage", kernel, blocks, THREADS, queue, launch);
  }
}

void advance(int64_t* step, const void* times, void* time, int64_t count, bool wide, const Queue& queue) {
  use(queue.device);
  start("the launch of advance_step", advance_step, 1, 1, queue, step, times, time, count, wide);
}

void run_words(const NoiseAddress& noise, int64_t count, uint32_t* radius, uint32_t* angle,
               const Queue& queue) {
  use(queue.device);
  const unsigned blocks = blocks_for(count / 2 + 1, THREADS, queue.device);
  start("the launch of philox_words", philox_words, blocks, THREADS, queue, round_keys(noise.seed), noise,
        count, radius, angle);
}

int check_device(int device) {
  use(device);
  cudaFuncAttributes attributes = {};
  const StageKernel kernel = stage_vector<2, 3, false, true>;
  check(cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(kernel)), "cudaFuncGetAttributes");
  return attributes.binaryVersion;
}

}  // namespace cldfast
