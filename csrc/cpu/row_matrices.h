// The matrices of the rows that a kernel walks: one for all, an array of them, or a table at times.
#pragma once

#include <vector>

#include "cpu/planes.h"
#include "cpu/table_kernel.h"

namespace cldfast::CLDFAST_LEVEL {
namespace {

// One matrix, as the arithmetic of a run takes it: entries scale * matrix[k * columns + column[m]].
struct Matrix {
  const double* entries;
  int columns;
  int used;           // columns that are used
  const int* column;  // their numbers, in order
  double scale;

  template <class T>
  T at(int k, int m) const {
    return static_cast<T>(scale * entries[k * columns + column[m]]);
  }
};

// The used part of a matrix for a kernel's loop: broadcast, where there are registers for all of it.
template <class T, int ROWS, int COLUMNS, bool BROADCAST>
class MatrixEntries {
 public:
  using F = typename Pack<T>::Float;

  MatrixEntries(const Matrix& matrix, int rows, int columns) {
    for (int k = 0; k < rows; ++k) {
      for (int m = 0; m < columns; ++m) entry_[k][m] = Entry{} + matrix.at<T>(k, m);
    }
  }

  CLDFAST_HD F operator()(int k, int m) const {
    if constexpr (BROADCAST) {
      return entry_[k][m];
    } else {
      return F{} + entry_[k][m];
    }
  }

 private:
  using Entry = std::conditional_t<BROADCAST, F, T>;
  Entry entry_[ROWS][COLUMNS];
};

// The numbers of the columns whose bits are set, in order; returns how many.
inline int columns_of(uint64_t used, int* column) {
  int count = 0;
  for (int j = 0; used >> j; ++j) {
    if (used >> j & 1) column[count++] = j;
  }
  return count;
}

// Complete rows whose width the compiler knows.
template <int WIDTH, class T, class Value>
void spread(int64_t first, int64_t rows, T* to, const Value& value) {
  for (int64_t i = 0; i < rows; ++i) {
    const T number = value(first + i);
    for (int c = 0; c < WIDTH; ++c) to[i * WIDTH + c] = number;
  }
}

// A number of each row at all of its coordinates in a run: value(row), a T.
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
  // entries: of a matrix; shared: all rows have the same.
  RowMatrices(const Call& call, int64_t entries, bool shared)
      : table_(call.table), times_(call.times), values_(call.weights), entries_(entries),
        stride_(shared ? 0 : entries), rows_(call.rows) {}

  // Makes sure that the matrices of the rows first ... last - 1 are at hand.
  void prepare(int64_t first, int64_t last) {
    if (!table_ || (first >= first_ && last <= last_)) return;
    // Some more: several together cost less, and blocks share rows.
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
