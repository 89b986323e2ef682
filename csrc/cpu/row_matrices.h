// The matrices of rows: one for all rows, one for each, or those of a table at the rows' times.
#pragma once

#include <vector>

#include "cpu/planes.h"
#include "cpu/table_kernel.h"

namespace cldfast::CLDFAST_LEVEL {
namespace {

// The used columns of one matrix, times a scale.
struct Matrix {
  const double* entries;
  int columns;
  int used;           // columns that are used
  const int* column;  // the numbers of those, in order
  double scale;

  template <class T>
  T at(int k, int m) const {
    return static_cast<T>(scale * entries[k * columns + column[m]]);
  }
};

// Lists the columns whose bits are set, in order; returns how many there are.
inline int columns_of(uint64_t used, int* column) {
  int count = 0;
  for (int j = 0; used >> j; ++j) {
    if (used >> j & 1) column[count++] = j;
  }
  return count;
}

// Complete rows of a width that the compiler knows.
template <int WIDTH, class T, class Value>
void spread(int64_t first, int64_t rows, T* to, const Value& value) {
  for (int64_t i = 0; i < rows; ++i) {
    const T number = value(first + i);
    for (int c = 0; c < WIDTH; ++c) to[i * WIDTH + c] = number;
  }
}

// Writes value(row), a T, to all coordinates of each row of a run.
template <class T, class Value>
void spread(const Run& run, int64_t width, T* to, const Value& value) {
  if (run.column == 0 && run.count % width == 0) {
    const int64_t rows = run.count / width;
    switch (width) {
      case 1: return spread<1>(run.row, rows, to, value);
      case 2: return spread<2>(run.row, rows, to, value);
      case 3: return spread<3>(run.row, rows, to, value);
      case 4: return spread<4>(run.row, rows, to, value);
    }
  }
  int64_t row = run.row, lanes = shorter(width - run.column, run.count);
  for (int64_t done = 0; done < run.count; lanes = shorter(width, run.count - done)) {
    const T number = value(row++);
    for (int64_t i = 0; i < lanes; ++i) to[done + i] = number;
    done += lanes;
  }
}

class RowMatrices {
 public:
  // entries: of a matrix. shared: whether all rows have the same matrix.
  RowMatrices(const Call& call, int64_t entries, bool shared)
      : table_(call.table), times_(call.times), values_(call.weights), entries_(entries),
        stride_(shared ? 0 : entries), rows_(call.rows) {}

  // Makes sure that the matrices of the rows first ... last - 1 are at hand.
  void prepare(int64_t first, int64_t last) {
    if (!table_ || (first >= first_ && last <= last_)) return;
    // A few more than asked for: several together cost less time, and the next block may need them.
    constexpr int64_t AHEAD = 16;
    last = shorter(first + AHEAD * ((last - first + AHEAD - 1) / AHEAD), rows_);
    const size_t numbers = static_cast<size_t>((last - first) * entries_);
    if (made_.size() < numbers) made_.resize(numbers);
    matrices(*table_, times_ + first, last - first, entries_, made_.data());
    values_ = made_.data();
    first_ = first;
    last_ = last;
  }

  const double* operator[](int64_t row) const { return values_ + (row - first_) * stride_; }

 private:
  const Table* const table_;
  const double* const times_;
  const double* values_;
  const int64_t entries_, stride_, rows_;
  int64_t first_ = 0, last_ = 0;
  std::vector<double> made_;
};

}  // namespace
}  // namespace cldfast::CLDFAST_LEVEL
