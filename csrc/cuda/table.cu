// Tables on a GPU: a thread for each entry of each row's matrix.
#define CLDFAST_LEVEL device
#include "cuda/lanes.h"
#include "cuda/run.h"

namespace cldfast {
namespace {

using namespace CLDFAST_LEVEL;

__global__ void __launch_bounds__(THREADS)
    matrices(const __grid_constant__ Table table, const double* times, int64_t rows, int64_t entries,
             double* to) {
  for (int64_t i = int64_t(blockIdx.x) * THREADS + threadIdx.x; i < rows * entries;
       i += int64_t(gridDim.x) * THREADS) {
    const int64_t row = i / entries, entry = i - row * entries;
    int64_t panel;
    double x;
    locate(table, times[row], panel, x);
    // Horner's rule.
    const double* next = table.coefficients + ((panel + 1) * table.terms - 1) * table.stride + entry;
    double sum = *next;
    for (int64_t k = 1; k < table.terms; ++k) {
      next -= table.stride;
      sum = multiply_add(sum, x, *next);
    }
    to[i] = sum;
  }
}

}  // namespace

void run_matrices(const Table& table, const double* times, int64_t rows, int64_t entries, double* to,
                  const Queue& queue) {
  use(queue.device);
  start_looping("the launch of a table's matrices", matrices, rows * entries, THREADS, THREADS, queue, table,
                times, rows, entries, to);
}

}  // namespace cldfast
