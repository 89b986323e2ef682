#include "cpu/table.h"

#include "cpu/threads.h"

namespace cldfast {

namespace {

// A row costs about as much as so many noisy pairs.
constexpr int64_t PAIRS_OF_A_ROW = 8;

struct Work {
  const Table& table;
  const Kernels& kernels;
  const double* t;
  int64_t rows, entries;
  double* to;
};

void run_part(const void* data, int64_t part, int64_t parts) {
  const Work& work = *static_cast<const Work*>(data);
  const int64_t begin = part_begin(work.rows, 64, part, parts);
  const int64_t end = part_begin(work.rows, 64, part + 1, parts);
  if (begin < end) {
    work.kernels.matrices(work.table, work.t + begin, end - begin, work.entries,
                          work.to + begin * work.entries);
  }
}

}  // namespace

bool covers_all(const Table& table, const double* t, int64_t rows) {
  bool all = true;
  for (int64_t i = 0; i < rows; ++i) all &= scalar::covers(table, t[i]);
  return all;
}

void run_matrices(const Table& table, const Kernels& kernels, const double* t, int64_t rows,
                  int64_t entries, double* to, int threads) {
  const Work work = {table, kernels, t, rows, entries, to};
  run_parts(run_part, &work, rows * PAIRS_OF_A_ROW, threads);
}

}  // namespace cldfast
