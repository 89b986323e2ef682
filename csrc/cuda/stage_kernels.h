// The kernels of a stage and their launches, for one way of making normals: CLDFAST_LEVEL names it. What a
// thread does is in cuda/stage_thread.h.
#pragma once

#include "cuda/run.h"
#include "cuda/stage_thread.h"

namespace cldfast::CLDFAST_LEVEL {
namespace {

// Copies the matrix of all rows to shared memory.
template <class T, int MATRIX>
__device__ void share_matrix(const StageLaunch& launch, T* shared) {
  if (MATRIX != OWN) {
    const int64_t step = MATRIX == RECORDED ? *launch.step : 0;
    for (int i = threadIdx.x; i < LAUNCH_OUTPUTS * STAGE_COLUMNS; i += THREADS) {
      shared[i] = matrix_entry<T>(launch, step, i);
    }
    __syncthreads();
  }
}

template <int OUTS, int INS, int MATRIX, bool PLAIN>
__global__ void __launch_bounds__(THREADS, MATRIX == OWN && OUTS > 2 ? 1 : 2)
    stage_vector(const __grid_constant__ StageLaunch launch) {
  __shared__ float shared[LAUNCH_OUTPUTS * STAGE_COLUMNS];
  share_matrix<float, MATRIX>(launch, shared);
  const Source<MATRIX == RECORDED> source(launch);
  const int64_t tiles = (launch.units + 2 * LANES - 1) / (2 * LANES);
  const int warp = threadIdx.x / LANES, lane = threadIdx.x % LANES;
  for (int64_t tile = int64_t(blockIdx.x) * WARPS + warp; tile < tiles;
       tile += int64_t(gridDim.x) * WARPS) {
    stage_quads<OUTS, INS, MATRIX, PLAIN>(launch, shared, source, tile, lane);
  }
}

template <int OUTS>
__global__ void __launch_bounds__(THREADS, 2) stage_rows(const __grid_constant__ StageLaunch launch) {
  for (int64_t task = int64_t(blockIdx.x) * WARPS + threadIdx.x / LANES; task < launch.rows * launch.pieces;
       task += int64_t(gridDim.x) * WARPS) {
    const int64_t row = launch.by_piece.quotient(task);
    stage_piece<OUTS>(launch, row, task - row * launch.pieces, threadIdx.x % LANES);
  }
}

template <class T, int MATRIX>
__global__ void __launch_bounds__(THREADS, 2) stage_scalar(const __grid_constant__ StageLaunch launch) {
  __shared__ T shared[LAUNCH_OUTPUTS * STAGE_COLUMNS];
  share_matrix<T, MATRIX>(launch, shared);
  const Source<MATRIX == RECORDED> source(launch);
  for (int64_t unit = int64_t(blockIdx.x) * THREADS + threadIdx.x; unit < launch.units;
       unit += int64_t(gridDim.x) * THREADS) {
    stage_twos<T, MATRIX>(launch, shared, source, unit);
  }
}

using StageKernel = void (*)(StageLaunch);

// Whether this is the perturbation of data: each row has a matrix, which makes states and offsets of x0
// and noise.
bool perturbs(const StageLaunch& launch) {
  return launch.matrix == OWN && launch.vector && launch.plain && launch.noisy &&
         launch.inputs == 1 && launch.width >= QUADS_FROM;
}

StageKernel kernel_for_rows(const StageLaunch& launch) {
  return launch.outputs == 2 ? stage_rows<2> : launch.outputs == 3 ? stage_rows<3> : stage_rows<4>;
}

template <int MATRIX>
StageKernel kernel_of(const StageLaunch& launch) {
  if (!launch.vector) {
    return launch.compute == Dtype::float32 ? stage_scalar<float, MATRIX> : stage_scalar<double, MATRIX>;
  }
  // A sampler's usual step: the state, a velocity score, the state.
  if constexpr (MATRIX != OWN) {
    if (launch.half) return stage_vector<2, 3, MATRIX, false>;
    const bool usual = launch.plain && launch.outputs == 2 && launch.inputs == 3;
    if (usual) return stage_vector<2, 3, MATRIX, true>;
  }
  if (!launch.plain) {
    return launch.outputs <= 2 ? stage_vector<2, 0, MATRIX, false> : stage_vector<4, 0, MATRIX, false>;
  }
  if (launch.outputs <= 2) return stage_vector<2, 0, MATRIX, true>;
  return launch.outputs == 3 ? stage_vector<3, 0, MATRIX, true> : stage_vector<4, 0, MATRIX, true>;
}

StageKernel kernel_for(const StageLaunch& launch) {
  if (launch.outputs >= 2 && perturbs(launch)) return kernel_for_rows(launch);
  return launch.matrix == OWN        ? kernel_of<OWN>(launch)
         : launch.matrix == RECORDED ? kernel_of<RECORDED>(launch)
                                     : kernel_of<SHARED>(launch);
}

void launch_stage(const StageArgs& args, bool on_device, const int64_t* step, const Queue& queue) {
  use(queue.device);
  // The state's planes come first and may be inputs, so they are written last.
  for (int first = (args.results - 1) / LAUNCH_OUTPUTS * LAUNCH_OUTPUTS; first >= 0;
       first -= LAUNCH_OUTPUTS) {
    const StageLaunch launch(args, on_device, step, first);
    const StageKernel kernel = kernel_for(launch);
    const bool by_rows = launch.outputs >= 2 && perturbs(launch);
    const int64_t work = by_rows ? launch.rows * launch.pieces : launch.units;
    const int64_t per_block = by_rows ? WARPS : launch.vector ? 2 * THREADS : THREADS;
    start_looping("the launch of a stage", kernel, work, per_block, THREADS, queue, launch);
  }
}

}  // namespace
}  // namespace cldfast::CLDFAST_LEVEL
