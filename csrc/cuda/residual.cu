// The residual on a GPU: a piece of a row to a team of lanes; who comes last adds up what the others
// have left, in order.
#define CLDFAST_LEVEL device
#include "cuda/residual_thread.h"
#include "cuda/residual.h"

namespace cldfast {
namespace {

using namespace CLDFAST_LEVEL;

constexpr int THREADS = 256;
constexpr int WARPS = THREADS / LANES;

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

// Without noise most of the time goes by waiting for memory, so there must be many warps.
template <int PLANES, int OTHERS, bool PLAIN, bool NOISY>
__global__ void __launch_bounds__(THREADS, NOISY ? 2 : PLANES == 1 ? 4 : 3)
    residual_vector(const __grid_constant__ ResidualLaunch launch) {
  const int lane = threadIdx.x % LANES;
  double sum = 0.0;
  for (int64_t task = int64_t(blockIdx.x) * WARPS + threadIdx.x / LANES;
       task < launch.rows * launch.pieces; task += int64_t(gridDim.x) * WARPS) {
    const int64_t row = launch.by_piece.quotient(task), piece = task - row * launch.pieces;
    sum += residual_quads<PLANES, OTHERS, PLAIN, NOISY>(launch, row, piece, lane);
    if (launch.reduce) continue;
    end_piece(launch, row, piece, team_sum(sum, LANES), lane);
    sum = 0.0;
  }
  if (launch.reduce) end_block(launch, sum);
}

template <class T>
__global__ void __launch_bounds__(THREADS, 2)
    residual_scalar(const __grid_constant__ ResidualLaunch launch) {
  const int lane = threadIdx.x % launch.team;
  const int64_t tasks = launch.rows * launch.pieces;
  const int64_t teams = int64_t(gridDim.x) * THREADS / launch.team;
  const int64_t first = (int64_t(blockIdx.x) * THREADS + threadIdx.x) / launch.team;
  double sum = 0.0;
  // All lanes of a warp go round equally often: they sum up together.
  for (int64_t round = 0; round * teams < tasks; ++round) {
    const int64_t task = round * teams + first;
    const int64_t row = task < tasks ? launch.by_piece.quotient(task) : 0;
    const int64_t piece = task - row * launch.pieces;
    if (task < tasks) sum += residual_twos<T>(launch, row, piece, lane);
    if (launch.reduce) continue;
    sum = team_sum(sum, launch.team);
    if (task < tasks) end_piece(launch, row, piece, sum, lane);
    sum = 0.0;
  }
  if (launch.reduce) end_block(launch, sum);
}

using ResidualKernel = void (*)(ResidualLaunch);

ResidualKernel kernel_for(const ResidualLaunch& launch) {
  if (launch.way != Way::vector) {
    return launch.compute == Dtype::float32 ? residual_scalar<float> : residual_scalar<double>;
  }
  const auto of_layout = [&](ResidualKernel plain, ResidualKernel any) { return launch.plain ? plain : any; };
  if (!launch.noisy && launch.others == launch.outputs) {
    return launch.outputs == 1
               ? of_layout(residual_vector<1, 1, true, false>, residual_vector<1, 1, false, false>)
               : of_layout(residual_vector<2, 2, true, false>, residual_vector<2, 2, false, false>);
  }
  if (launch.outputs == 2) {
    return of_layout(residual_vector<2, 2, true, true>, residual_vector<2, 2, false, true>);
  }
  return launch.others == 2
             ? of_layout(residual_vector<1, 2, true, true>, residual_vector<1, 2, false, true>)
             : of_layout(residual_vector<1, 1, true, true>, residual_vector<1, 1, false, true>);
}

}  // namespace

int64_t residual_room(int64_t rows, int64_t channels, int64_t inner, bool reduce) {
  const launch::Room room = launch::room(rows, channels, inner, reduce);
  return room.sums + (room.arrivals + 1) / 2;
}

void run_residual_cuda(const ResidualArgs& args, void* loss, bool reduce, const Queue& queue) {
  use(queue.device);
  const ResidualLaunch launch = launch::prepare(args, loss, reduce);
  const int64_t teams = THREADS / (launch.way == Way::vector ? LANES : launch.team);
  const int64_t blocks = (launch.rows * launch.pieces + teams - 1) / teams;
  const unsigned grid = static_cast<unsigned>(blocks < launch::MOST_BLOCKS ? blocks : launch::MOST_BLOCKS);
  if (reduce ? grid > 1 : launch.pieces > 1) {
    const size_t bytes = static_cast<size_t>(reduce ? 1 : launch.rows) * sizeof(uint32_t);
    check(cudaMemsetAsync(launch.arrivals, 0, bytes, queue.stream), "cudaMemsetAsync");
  }
  start("the launch of a residual", kernel_for(launch), grid, THREADS, queue, launch);
}

}  // namespace cldfast
