// The residual on a GPU: a piece of a row to a team of lanes, then the pieces' sums in order.
#define CLDFAST_LEVEL device
#include "cuda_residual_thread.h"
#include "residual_cuda.h"

namespace cldfast {
namespace {

using namespace CLDFAST_LEVEL;

constexpr int THREADS = 256;
constexpr int ONE_BLOCK = 1024;

// The sum over a team of lanes, in an order that its size fixes.
__device__ double team_sum(double value, int team) {
  for (int distance = team / 2; distance > 0; distance /= 2) {
    value += __shfl_xor_sync(0xFFFFFFFFu, value, distance);
  }
  return value;
}

template <int PLANES, int OTHERS, bool PLAIN>
__global__ void __launch_bounds__(THREADS, 2)
    residual_vector(const __grid_constant__ ResidualLaunch launch) {
  const int lane = threadIdx.x % LANES;
  const int64_t warps = int64_t(gridDim.x) * (THREADS / LANES);
  for (int64_t task = int64_t(blockIdx.x) * (THREADS / LANES) + threadIdx.x / LANES;
       task < launch.rows * launch.pieces; task += warps) {
    const int64_t row = launch.by_piece.quotient(task), piece = task - row * launch.pieces;
    const double sum = team_sum(residual_quads<PLANES, OTHERS, PLAIN>(launch, row, piece, lane), LANES);
    if (lane == 0) launch.sums[task] = sum;
  }
}

template <class T>
__global__ void __launch_bounds__(THREADS, 2)
    residual_scalar(const __grid_constant__ ResidualLaunch launch) {
  const int lane = threadIdx.x % launch.team;
  const int64_t tasks = launch.rows * launch.pieces;
  const int64_t teams = int64_t(gridDim.x) * THREADS / launch.team;
  const int64_t first = (int64_t(blockIdx.x) * THREADS + threadIdx.x) / launch.team;
  // All lanes of a warp go round equally often: they sum up together.
  for (int64_t round = 0; round * teams < tasks; ++round) {
    const int64_t task = round * teams + first;
    double sum = 0.0;
    if (task < tasks) {
      const int64_t row = launch.by_piece.quotient(task);
      sum = residual_twos<T>(launch, row, task - row * launch.pieces, lane);
    }
    sum = team_sum(sum, launch.team);
    if (lane == 0 && task < tasks) launch.sums[task] = sum;
  }
}

template <class T>
__global__ void __launch_bounds__(THREADS)
    residual_rows(const double* sums, int64_t rows, int64_t pieces, T* loss) {
  for (int64_t row = int64_t(blockIdx.x) * THREADS + threadIdx.x; row < rows;
       row += int64_t(gridDim.x) * THREADS) {
    double sum = 0.0;
    for (int64_t p = 0; p < pieces; ++p) sum += sums[row * pieces + p];
    loss[row] = static_cast<T>(sum);
  }
}

// One block: the order of the sum is that of the threads, and so always the same.
template <class T>
__global__ void __launch_bounds__(ONE_BLOCK) residual_total(const double* sums, int64_t count, T* loss) {
  __shared__ double shared[ONE_BLOCK / LANES];
  double sum = 0.0;
  for (int64_t i = threadIdx.x; i < count; i += ONE_BLOCK) sum += sums[i];
  sum = team_sum(sum, LANES);
  if (threadIdx.x % LANES == 0) shared[threadIdx.x / LANES] = sum;
  __syncthreads();
  if (threadIdx.x >= LANES) return;
  sum = team_sum(shared[threadIdx.x], LANES);
  if (threadIdx.x == 0) *loss = static_cast<T>(sum);
}

template <class T>
void sum_up(const ResidualLaunch& launch, void* loss, bool reduce, const Queue& queue) {
  T* target = static_cast<T*>(loss);
  if (reduce) {
    residual_total<<<1, ONE_BLOCK, 0, queue.stream>>>(launch.sums, launch.rows * launch.pieces, target);
  } else {
    const unsigned blocks = blocks_for(launch.rows, THREADS, queue.device);
    residual_rows<<<blocks, THREADS, 0, queue.stream>>>(launch.sums, launch.rows, launch.pieces, target);
  }
  check(cudaGetLastError(), "the launch of a residual's sum");
}

using ResidualKernel = void (*)(ResidualLaunch);

ResidualKernel kernel_for(const ResidualLaunch& launch) {
  if (launch.way != Way::vector) {
    return launch.compute == Dtype::float32 ? residual_scalar<float> : residual_scalar<double>;
  }
  if (launch.outputs == 2) return launch.plain ? residual_vector<2, 2, true> : residual_vector<2, 2, false>;
  if (launch.others == 2) return launch.plain ? residual_vector<1, 2, true> : residual_vector<1, 2, false>;
  return launch.plain ? residual_vector<1, 1, true> : residual_vector<1, 1, false>;
}

}  // namespace

int64_t residual_sums(int64_t rows, int64_t channels, int64_t inner) {
  return rows * launch::most_pieces(channels, inner);
}

void run_residual_cuda(const ResidualArgs& args, void* loss, bool reduce, const Queue& queue) {
  use(queue.device);
  const ResidualLaunch launch = launch::prepare(args);
  const int team = launch.way == Way::vector ? LANES : launch.team;
  const unsigned blocks = blocks_for(launch.rows * launch.pieces, THREADS / team, queue.device);
  kernel_for(launch)<<<blocks, THREADS, 0, queue.stream>>>(launch);
  check(cudaGetLastError(), "the launch of a residual");
  if (args.compute == Dtype::float32) {
    sum_up<float>(launch, loss, reduce, queue);
  } else {
    sum_up<double>(launch, loss, reduce, queue);
  }
}

}  // namespace cldfast
