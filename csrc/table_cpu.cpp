#include "table_cpu.h"

#include <atomic>

#include "threads.h"

namespace cldfast {

namespace {

// A row costs about as much as so many noisy pairs.
constexpr int64_t PAIRS_OF_A_ROW = 16;

struct Work {
  const Table& table;
  const Kernels& kernels;
  const double* t;
  int64_t rows, entries;
  double* to;
  std::atomic<bool>& inside;
};

void run_part(const void* data, int64_t part, int64_t parts) {
  const Work& work = *static_cast<const Work*>(data);
  const int64_t begin = part_begin(work.rows, 64, part, parts);
  const int64_t end = part_begin(work.rows, 64, part + 1, parts);
  if (begin < end && !work.kernels.matrices(work.table, work.t, begin, end, work.entries, work.to)) {
    work.inside = false;
  }
}

}  // namespace

bool run_matrices(const Table& table, const Kernels& kernels, const double* t, int64_t rows,
                  int64_t entries, double* to, int threads) {
  std::atomic<bool> inside(true);
  const Work work = {table, kernels, t, rows, entries, to, inside};
  run_parts(run_part, &work, rows * PAIRS_OF_A_ROW, threads);
  return inside;
}

}  // namespace cldfast
