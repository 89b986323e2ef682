// The residual on a GPU: a piece of a row to a team of lanes; who comes last adds up what the others
// have left, in order.
#define CLDFAST_LEVEL device
#include <algorithm>

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

// The sum over a block, in the order of its warps; `shared` has room for one number of each.
__device__ double block_sum(double value, double* shared) {
  value = team_sum(value, LANES);
  if (threadIdx.x % LANES == 0) shared[threadIdx.x / LANES] = value;
  __syncthreads();
  double sum = 0.0;
  for (int warp = 0; warp < WARPS; ++warp) sum += shared[warp];
  return sum;
}

// What thread `first` of `step` adds up of the numbers that other blocks may have stored.
__device__ double stored_sum(const double* sums, int64_t count, int first, int step) {
  double sum = 0.0;
  // From the cache that all blocks share: a nearer one may hold what was there before.
  for (int64_t i = first; i < count; i += step) sum += __ldcg(sums + i);
  return sum;
}

// Whether this is the last of the arrivals expected; what the others stored before theirs is then seen.
__device__ bool completes(uint32_t* arrivals, int64_t expected) {
  __threadfence();
  const bool last = atomicAdd(arrivals, 1u) + 1 == expected;
  __threadfence();
  return last;
}

__device__ void store_loss(const ResidualLaunch& launch, int64_t row, double loss) {
  if (launch.compute == Dtype::float32) {
    static_cast<float*>(launch.loss)[row] = static_cast<float>(loss);
  } else {
    static_cast<double*>(launch.loss)[row] = loss;
  }
}

// Takes the sum of a piece, of which all lanes of its team know.
__device__ void end_piece(const ResidualLaunch& launch, int64_t row, int64_t piece, double sum, int lane) {
  if (launch.pieces == 1) {
    if (lane == 0) store_loss(launch, row, sum);
    return;
  }
  // The teams of rows of several pieces are whole warps.
  double* sums = launch.sums + row * launch.pieces;
  int last = 0;
  if (lane == 0) {
    sums[piece] = sum;
    last = completes(launch.arrivals + row, launch.pieces);
  }
  if (!__shfl_sync(WARP, last, 0)) return;
  __syncwarp();
  const double whole = team_sum(stored_sum(sums, launch.pieces, lane, LANES), LANES);
  if (lane == 0) store_loss(launch, row, whole);
}

// Takes each thread's sum over all of its tasks.
__device__ void end_block(const ResidualLaunch& launch, double sum) {
  __shared__ double shared[2][WARPS];
  __shared__ bool last;
  const double of_block = block_sum(sum, shared[0]);
  if (gridDim.x == 1) {
    if (threadIdx.x == 0) store_loss(launch, 0, of_block);
    return;
  }
  if (threadIdx.x == 0) {
    launch.sums[blockIdx.x] = of_block;
    last = completes(launch.arrivals, gridDim.x);
  }
  __syncthreads();
  if (!last) return;
  const double whole = block_sum(stored_sum(launch.sums, gridDim.x, threadIdx.x, THREADS), shared[1]);
  if (threadIdx.x == 0) store_loss(launch, 0, whole);
}

// Sums up pieces by teams of lanes: sum_of(row, piece, lane) is a lane's share of a piece.
template <class SumOf>
__device__ void sum_pieces(const ResidualLaunch& launch, int team, const SumOf& sum_of) {
  const int lane = threadIdx.x % team;
  const int64_t tasks = launch.rows * launch.pieces;
  const int64_t teams = int64_t(gridDim.x) * THREADS / team;
  const int64_t first = (int64_t(blockIdx.x) * THREADS + threadIdx.x) / team;
  double sum = 0.0;
  // All lanes of a warp go round equally often: they sum up together.
  for (int64_t round = 0; round * teams < tasks; ++round) {
    const int64_t task = round * teams + first;
    const int64_t row = task < tasks ? launch.by_piece.quotient(task) : 0;
    const int64_t piece = task - row * launch.pieces;
    if (task < tasks) sum += sum_of(row, piece, lane);
    if (launch.reduce) continue;
    sum = team_sum(sum, team);
    if (task < tasks) end_piece(launch, row, piece, sum, lane);
    sum = 0.0;
  }
  if (launch.reduce) end_block(launch, sum);
}

// Most of the time goes by waiting for memory, so there must be many warps.
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

int64_t residual_room(int64_t rows, int64_t width, bool reduce) {
  const int64_t arrivals = reduce ? 1 : rows;
  return ResidualLaunch::room_of_sums(rows, width, reduce) + (arrivals + 1) / 2;
}

void run_residual(ResidualArgs& args, void* loss, bool reduce, const Queue& queue) {
  use(queue.device);
  walk_by_pixel(args);
  const ResidualLaunch launch(args, loss, reduce);
  const int64_t teams = THREADS / (launch.vector ? LANES : launch.team);
  const int64_t blocks = (launch.rows * launch.pieces + teams - 1) / teams;
  const unsigned grid = static_cast<unsigned>(std::min(blocks, ResidualLaunch::MOST_BLOCKS));
  if (reduce ? grid > 1 : launch.pieces > 1) {
    const size_t bytes = static_cast<size_t>(reduce ? 1 : launch.rows) * sizeof(uint32_t);
    check(cudaMemsetAsync(launch.arrivals, 0, bytes, queue.stream), "cudaMemsetAsync");
  }
  start("the launch of a residual", kernel_for(launch), grid, THREADS, queue, launch);
}

}  // namespace cldfast
