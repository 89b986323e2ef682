// The residual kernel for one instruction set: tiles of pairs, squares into float64.
//
// Where a row is cut depends on its width alone and every vector goes through the same instructions,
// so that a row's loss and gradient do not depend on where in a batch or thread it lies. That holds for
// finite planes: a plane is read for all rows of a call or for none.
#pragma once

#include <cmath>

#include "cpu/operands.h"
#include "shared/operations.h"

namespace cldfast::CLDFAST_LEVEL {
namespace {

// A sum of squares; those of floats are exact in double.
struct SquareSum {
  Duo<F64> total = {};

  void add(F32 value) {
    const Duo<F64> wide = widened(value);
    total = multiply_add(wide, wide, total);
  }
  void add(F64 value) { total.a = multiply_add(value, value, total.a); }

  double value() const {
    double lanes[sizeof(F64) / 8];
    store(lanes, total.a + total.b);
    for (int half = sizeof(F64) / 16; half > 0; half /= 2) {
      for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
    }
    return lanes[0];
  }
};

// r[k] = sum_m matrix(k, m) in[m] and gradient[j] = 2 sum_k matrix(k, j) r[k]; returns the sum of r's
// squares. Gradients may be null, or over inputs: a vector's inputs are all read before they are written.
template <class T>
using Squares = double (*)(const T* const* in, T* const* gradient, const Matrix& matrix, int residuals,
                           int outputs, int64_t count);

// PLANES residuals, as many outputs and offsets; or any numbers of them where PLANES is 0.
template <class T, int PLANES>
double squares(const T* const* in, T* const* gradient, const Matrix& matrix, int any_residuals,
               int any_outputs, int64_t count) {
  using F = typename Pack<T>::Float;
  constexpr int MOST = PLANES ? PLANES : MOST_PLANES, MOST_INS = PLANES ? 2 * PLANES : MOST_PLANES;
  const int residuals = PLANES ? PLANES : any_residuals, outputs = PLANES ? PLANES : any_outputs;
  const int ins = PLANES ? 2 * PLANES : matrix.used;
  const MatrixEntries<T, MOST, MOST_INS, PLANES != 0> w(matrix, residuals, ins);
  const T* from[MOST_INS];
  T* to[MOST] = {};
  for (int m = 0; m < ins; ++m) from[m] = in[m];
  for (int j = 0; gradient && j < outputs; ++j) to[j] = gradient[j];
  SquareSum sum;
  // Lanes past the end are zero, and so is what they add.
  by_vectors<F, T>(count, [&](int64_t i, auto lanes) CLDFAST_INLINED {
    F x[MOST_INS], twice[MOST];
    for (int m = 0; m < ins; ++m) x[m] = load<F>(from[m] + i, lanes);
    for (int k = 0; k < residuals; ++k) {
      F r = w(k, 0) * x[0];
      for (int m = 1; m < ins; ++m) r = multiply_add(w(k, m), x[m], r);
      sum.add(r);
      twice[k] = r + r;
    }
    for (int j = 0; gradient && j < outputs; ++j) {
      F g = w(0, j) * twice[0];
      for (int k = 1; k < residuals; ++k) g = multiply_add(w(k, j), twice[k], g);
      store(to[j] + i, g, lanes);
    }
  });
  return sum.value();
}

// The unrolled loop for the losses there are: a velocity score, or a full one.
template <class T>
Squares<T> squares_for(int residuals, int outputs, int ins) {
  if (residuals == outputs && ins == 2 * outputs) {
    if (outputs == 1) return squares<T, 1>;
    if (outputs == 2) return squares<T, 2>;
  }
  return squares<T, 0>;
}

template <class T>
class ResidualRun : Operands<T> {
 public:
  explicit ResidualRun(const ResidualArgs& args)
      : Operands<T>(args),
        args_(args),
        amplitude_(std::sqrt(args.factor)),
        used_(columns_of(read_columns(args), column_)),
        squares_(squares_for<T>(args.residuals, args.outputs, used_)),
        matrices_(args, args.residuals * args.inputs, false) {}

  void run(int64_t begin, int64_t end) {
    const Tiling& tiling = args_.tiling;
    for (int64_t tile = begin; tile < end; ++tile) {
      const int64_t row = tile / tiling.pieces * tiling.together;
      const int64_t rows = shorter(tiling.together, args_.rows - row);
      const int64_t start = tile % tiling.pieces * tiling.piece;
      const int64_t count = shorter(tiling.piece, width_ - start);  // of each row
      matrices_.prepare(row, row + rows);
      double* sums = args_.sums + row * tiling.pieces + tile % tiling.pieces;
      if (width_ < NARROW_ROW) {
        narrow_rows({row, 0, rows * count}, rows, sums);
        continue;
      }
      // Rows together are of one piece each.
      for (int64_t i = 0; i < rows; ++i) sums[i] = segment({row + i, start, count});
    }
  }

 private:
  using Operands<T>::width_;

  // An output's column is used in any case: its gradient is written.
  static uint64_t read_columns(const ResidualArgs& args) {
    return args.used | ((uint64_t(1) << args.outputs) - 1);
  }

  // What the matrix of a row is multiplied by.
  double amplitude(int64_t row) const {
    return args_.scale ? std::sqrt(args_.scale[row] * args_.factor) : amplitude_;
  }

  // One piece of a row.
  double segment(const Run& run) {
    const T* in[MOST_PLANES];
    T* to[MOST_PLANES];
    for (int m = 0; m < used_; ++m) in[m] = this->input(column_[m], run);
    this->place_results(run, to);
    const Matrix matrix = {matrices_[run.row], args_.inputs, used_, column_, amplitude(run.row)};
    const double sum =
        squares_(in, args_.results ? to : nullptr, matrix, args_.residuals, args_.outputs, run.count);
    this->finish(run, to);
    return sum;
  }

  // Several rows narrower than a vector.
  void narrow_rows(const Run& run, int64_t rows, double* sums) {
    double scale[BLOCK];
    for (int64_t i = 0; i < rows; ++i) {
      scale[i] = amplitude(run.row + i);
      sums[i] = 0.0;
    }
    const auto entry = [&](int k, int column, int64_t row) {
      return scale[row - run.row] * matrices_[row][k * args_.inputs + column];
    };
    const T* in[MOST_PLANES];
    const T* twice[MOST_PLANES];
    T* to[MOST_PLANES];
    for (int m = 0; m < used_; ++m) in[m] = this->input(column_[m], run);
    for (int k = 0; k < args_.residuals; ++k) {
      T* const r = residual_[k];
      this->lane_sum(run, used_, in, r, [&](int m, int64_t row) { return entry(k, column_[m], row); });
      for (int64_t i = 0; i < rows; ++i) {
        for (int64_t c = i * width_; c < (i + 1) * width_; ++c) {
          sums[i] += static_cast<double>(r[c]) * static_cast<double>(r[c]);
          r[c] += r[c];
        }
      }
      twice[k] = r;
    }
    for (int j = 0; j < args_.results; ++j) {
      to[j] = this->scratch_out_[j];
      this->lane_sum(run, args_.residuals, twice, to[j],
                     [&](int k, int64_t row) { return entry(k, j, row); });
    }
    this->finish(run, to);
  }

  const ResidualArgs& args_;
  const double amplitude_;
  int column_[MOST_PLANES];
  const int used_;
  const Squares<T> squares_;
  RowMatrices matrices_;
  alignas(64) T residual_[MOST_PLANES][BLOCK];
};

void residual(const ResidualArgs& args, int64_t begin, int64_t end) {
  if (args.compute == Dtype::float32) {
    ResidualRun<float>(args).run(begin, end);
  } else {
    ResidualRun<double>(args).run(begin, end);
  }
}

}  // namespace
}  // namespace cldfast::CLDFAST_LEVEL
