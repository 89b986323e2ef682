// The residual on a GPU: a team of lanes sums a piece of a row.
#define CLDFAST_LEVEL device
#include "cuda/residual_thread.h"
#include "cuda/run.h"

namespace cldfast {
namespace {

using namespace CLDFAST_LEVEL;

// The sum over a team of lanes, in an order that its size fixes.
__device__ double team_sum(double value, int team) {
  for (int distance = team / 2; distance > 0; distance /= 2) {
    value += __shfl_xor_sync(WARP, value, distance);
  }
  return value;
}

// Sums up pieces by teams of lanes: sum_of(row, piece, lane) is a lane's share of a piece.
template <class SumOf>
__device__ void sum_pieces(const ResidualLaunch& launch, int team, const SumOf& sum_of) {
  const int lane = threadIdx.x % team;
  const int64_t tasks = launch.rows * launch.pieces;
  const int64_t teams = int64_t(gridDim.x) * THREADS / team;
  const int64_t first = (int64_t(blockIdx.x) * THREADS + threadIdx.x) / team;
  // All lanes of a warp go round equally often, because they add their sums together.
  for (int64_t round = 0; round * teams < tasks; ++round) {
    const int64_t task = round * teams + first;
    double sum = 0.0;
    if (task < tasks) {
      const int64_t row = launch.by_piece.quotient(task);
      sum = sum_of(row, task - row * launch.pieces, lane);
    }
    sum = team_sum(sum, team);
    if (task < tasks && lane == 0) launch.sums[task] = sum;
  }
}

// Most of the time is spent waiting for memory, so that many warps are needed.
template <int PLANES, bool PLAIN>
__global__ void __launch_bounds__(THREADS, PLANES == 1 ? 4 : 3)
    residual_vector(const __grid_constant__ ResidualLaunch launch) {
  sum_pieces(launch, LANES, [&](int64_t row, int64_t piece, int lane) {
    return residual_quads<PLANES, PLAIN>(launch, row, piece, lane);
  });
}

template <class T>
__global__ void __launch_bounds__(THREADS, 2)
    residual_scalar(const __grid_constant__ ResidualLaunch launch) {
  sum_pieces(launch, launch.team, [&](int64_t row, int64_t piece, int lane) {
    return residual_pairs<T>(launch, row, piece, lane);
  });
}

using ResidualKernel = void (*)(ResidualLaunch);

ResidualKernel kernel_for(const ResidualLaunch& launch) {
  if (!launch.vector) {
    return launch.compute == Dtype::float32 ? residual_scalar<float> : residual_scalar<double>;
  }
  if (launch.outputs == 1) return launch.plain ? residual_vector<1, true> : residual_vector<1, false>;
  return launch.plain ? residual_vector<2, true> : residual_vector<2, false>;
}

}  // namespace

void run_residual(ResidualArgs& args, const Queue& queue) {
  use(queue.device);
  walk_by_pixel(args);
  const ResidualLaunch launch(args);
  start_looping("the launch of a residual", kernel_for(launch), launch.rows * launch.pieces,
                THREADS / launch.team, THREADS, queue, launch);
}

}  // namespace cldfast
