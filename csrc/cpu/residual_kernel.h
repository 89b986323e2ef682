// The residual kernel for one instruction set: tiles of pairs, noise into L1, squares into float64.
//
// Where a row is cut depends on its width alone and every vector goes through the same instructions,
// so that a row's loss and gradient do not depend on where in a batch or thread it lies (finite planes
// that is: a plane is read for all rows of a call or for none).
#pragma once

#include <cmath>

#include "cpu/block_normals.h"
#include "cpu/planes.h"
#include "shared/residual.h"
#include "cpu/row_matrices.h"

namespace cldfast {
namespace CLDFAST_LEVEL {
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

template <class T, int RESIDUALS, int OUTPUTS, int INS, bool GRADIENT>
double squares(const T* const* in, T* const* gradient, const Matrix& matrix, int, int, int64_t count) {
  using F = typename Pack<T>::Float;
  constexpr int64_t WIDTH = sizeof(F) / sizeof(T);
  F w[RESIDUALS][INS];
  for (int k = 0; k < RESIDUALS; ++k) {
    for (int m = 0; m < INS; ++m) w[k][m] = F{} + matrix.at<T>(k, m);
  }
  const T* from[INS];
  T* to[OUTPUTS];
  for (int m = 0; m < INS; ++m) from[m] = in[m];
  for (int j = 0; GRADIENT && j < OUTPUTS; ++j) to[j] = gradient[j];
  SquareSum sum;
  F x[INS], g[OUTPUTS];
  const auto apply = [&] {
    F twice[RESIDUALS];
    for (int k = 0; k < RESIDUALS; ++k) {
      F r = w[k][0] * x[0];
      for (int m = 1; m < INS; ++m) r = multiply_add(w[k][m], x[m], r);
      sum.add(r);
      twice[k] = r + r;
    }
    for (int j = 0; GRADIENT && j < OUTPUTS; ++j) {
      g[j] = w[0][j] * twice[0];
      for (int k = 1; k < RESIDUALS; ++k) g[j] = multiply_add(w[k][j], twice[k], g[j]);
    }
  };
  int64_t i = 0;
  for (; i + WIDTH <= count; i += WIDTH) {
    for (int m = 0; m < INS; ++m) x[m] = load<F>(from[m] + i);
    apply();
    for (int j = 0; GRADIENT && j < OUTPUTS; ++j) store(to[j] + i, g[j]);
  }
  if (i < count) {
    // Lanes past the end are zero, and so is what they add.
    for (int m = 0; m < INS; ++m) x[m] = load_some<F>(from[m] + i, count - i);
    apply();
    for (int j = 0; GRADIENT && j < OUTPUTS; ++j) store_some(to[j] + i, g[j], count - i);
  }
  return sum.value();
}

// Any numbers of planes.
template <class T>
double squares_any(const T* const* in, T* const* gradient, const Matrix& matrix, int residuals,
                   int outputs, int64_t count) {
  using F = typename Pack<T>::Float;
  constexpr int64_t WIDTH = sizeof(F) / sizeof(T);
  const int ins = matrix.used;
  T weights[MAX_PLANES * (MAX_PLANES + 2)];
  for (int k = 0; k < residuals; ++k) {
    for (int m = 0; m < ins; ++m) weights[k * ins + m] = matrix.at<T>(k, m);
  }
  SquareSum sum;
  for (int64_t i = 0; i < count; i += WIDTH) {
    const int64_t lanes = shorter(WIDTH, count - i);
    F x[MAX_PLANES + 2], twice[MAX_PLANES];
    for (int m = 0; m < ins; ++m) x[m] = load_some<F>(in[m] + i, lanes);
    for (int k = 0; k < residuals; ++k) {
      F r = weights[k * ins] * x[0];
      for (int m = 1; m < ins; ++m) r = multiply_add(F{} + weights[k * ins + m], x[m], r);
      sum.add(r);
      twice[k] = r + r;
    }
    for (int j = 0; gradient && j < outputs; ++j) {
      F g = weights[j] * twice[0];
      for (int k = 1; k < residuals; ++k) g = multiply_add(F{} + weights[k * ins + j], twice[k], g);
      store_some(gradient[j] + i, g, lanes);
    }
  }
  return sum.value();
}

template <class T, int RESIDUALS, int OUTPUTS, int OTHERS>
Squares<T> squares_for(bool gradient) {
  constexpr int INS = OUTPUTS + OTHERS;
  return gradient ? squares<T, RESIDUALS, OUTPUTS, INS, true>
                  : squares<T, RESIDUALS, OUTPUTS, INS, false>;
}

template <class T, int PLANES>
Squares<T> squares_for(int others, bool gradient) {
  switch (others) {
    case 1: return squares_for<T, PLANES, PLANES, 1>(gradient);
    case 2: return squares_for<T, PLANES, PLANES, 2>(gradient);
    case 3: return squares_for<T, PLANES, PLANES, 3>(gradient);
    case 4: return squares_for<T, PLANES, PLANES, 4>(gradient);
    default: return squares_any<T>;
  }
}

// The unrolled loop for the losses there are: a velocity score, or a full one.
template <class T>
Squares<T> squares_for(int residuals, int outputs, int ins, bool gradient) {
  if (residuals == 1 && outputs == 1) return squares_for<T, 1>(ins - outputs, gradient);
  if (residuals == 2 && outputs == 2) return squares_for<T, 2>(ins - outputs, gradient);
  return squares_any<T>;
}

template <class T>
class ResidualRun {
 public:
  // pixels: how many of the rows make one sample, 1 if args were not turned into pixels.
  ResidualRun(const ResidualArgs& args, int64_t pixels)
      : args_(args),
        width_(args.channels * args.inner),
        pixels_(pixels),
        samples_(args.rows / pixels),
        amplitude_(std::sqrt(args.factor)),
        columns_(args.inputs + (args.addressed_noise ? 2 : 0)),
        used_(columns_of(read_columns(args), column_)),
        squares_(squares_for<T>(args.residuals, args.outputs, used_, args.wants_gradient)),
        matrices_(args, args.residuals * columns_, samples_, false),
        noise_(args, width_, pixels) {
    for (int j = 0; j < args.inputs; ++j) input_[j] = View(args.input[j], args);
    for (int j = 0; args.wants_gradient && j < args.outputs; ++j) {
      gradient_[j] = View(args.gradient[j], args);
    }
  }

  void run(int64_t begin, int64_t end) {
    const Tiling& tiling = args_.tiling;
    const int64_t sample_width = width_ * pixels_;
    const bool x = wants_normal(0), v = wants_normal(1);
    for (int64_t tile = begin; tile < end; ++tile) {
      const int64_t sample = tile / tiling.pieces * tiling.together;
      const int64_t rows = shorter(tiling.together, samples_ - sample);
      const int64_t start = tile % tiling.pieces * tiling.piece;
      const int64_t count = shorter(tiling.piece, sample_width - start);  // of each row
      const int64_t pair = sample * sample_width + start;
      const int64_t offset = noise_.make(pair, rows * count, x, v);
      matrices_.prepare(sample, sample + rows);
      double* sums = args_.sums + sample * tiling.pieces + tile % tiling.pieces;
      const Run run = {pair / width_, pair % width_, rows * count};
      if (width_ < NARROW_ROW && pixels_ == 1) {
        narrow_rows(run, rows, offset, sums);
        continue;
      }
      for (int64_t i = 0; i < rows; ++i) {
        // Rows together are of one piece each.
        sums[i] = segment(sample + i, {run.row + i, run.column, count}, offset + i * count);
      }
    }
  }

 private:
  // An output's column is used in any case: its gradient is written.
  static uint64_t read_columns(const ResidualArgs& args) {
    return args.used | ((uint64_t(1) << args.outputs) - 1);
  }

  bool wants_normal(int column) const {
    return args_.addressed_noise && (args_.used >> (columns_ - 2 + column) & 1);
  }

  // What the matrix of a sample is multiplied by.
  double amplitude(int64_t sample) const {
    return args_.scale ? std::sqrt(args_.scale[sample] * args_.factor) : amplitude_;
  }

  const T* plane(int column, const Run& run, int64_t offset) {
    return column < args_.inputs ? gather<T>(input_[column], run, scratch_in_[column], bits_)
                                 : noise_.normals[column - args_.inputs] + offset;
  }

  // One piece of a sample, whose normals begin at `offset` of the tile's.
  double segment(int64_t sample, const Run& run, int64_t offset) {
    const T* in[MAX_PLANES + 2];
    T* to[MAX_PLANES];
    for (int m = 0; m < used_; ++m) in[m] = plane(column_[m], run, offset);
    for (int j = 0; args_.wants_gradient && j < args_.outputs; ++j) {
      const View& view = gradient_[j];
      const bool direct = view.dtype == dtype_of<T>() && view.is_dense(run);
      to[j] = direct ? static_cast<T*>(address(view, run)) : scratch_out_[j];
    }
    const Matrix matrix = {matrices_[sample], columns_, used_, column_, amplitude(sample)};
    const double sum = squares_(in, args_.wants_gradient ? to : nullptr, matrix, args_.residuals,
                                args_.outputs, run.count);
    finish(run, to);
    return sum;
  }

  // Gradients that wait in scratch.
  void finish(const Run& run, T* const* to) {
    for (int j = 0; args_.wants_gradient && j < args_.outputs; ++j) {
      if (to[j] == scratch_out_[j]) scatter<T>(gradient_[j], run, to[j], bits_);
    }
  }

  // Several rows narrower than a vector: a lane takes the entries of its own row's matrix.
  void narrow_rows(const Run& run, int64_t rows, int64_t offset, double* sums) {
    using F = typename Pack<T>::Float;
    constexpr int64_t WIDTH = sizeof(F) / sizeof(T);
    double scale[BLOCK];
    for (int64_t i = 0; i < rows; ++i) {
      scale[i] = amplitude(run.row + i);
      sums[i] = 0.0;
    }
    const auto entry_of_rows = [&](int64_t entry) {
      spread(run, width_, lane_weights_, [&](int64_t row) {
        return static_cast<T>(scale[row - run.row] * matrices_[row][entry]);
      });
    };
    const T* in[MAX_PLANES + 2];
    T* to[MAX_PLANES];
    for (int m = 0; m < used_; ++m) in[m] = plane(column_[m], run, offset);
    for (int k = 0; k < args_.residuals; ++k) {
      for (int m = 0; m < used_; ++m) {
        entry_of_rows(k * columns_ + column_[m]);
        for (int64_t i = 0; i < run.count; i += WIDTH) {
          const int64_t lanes = run.count - i;
          const F w = load_up_to<F>(lane_weights_ + i, lanes), x = load_up_to<F>(in[m] + i, lanes);
          store(residual_ + i, m == 0 ? w * x : multiply_add(w, x, load<F>(residual_ + i)));
        }
      }
      for (int64_t i = 0; i < rows; ++i) {
        for (int64_t c = i * width_; c < (i + 1) * width_; ++c) {
          sums[i] += static_cast<double>(residual_[c]) * static_cast<double>(residual_[c]);
        }
      }
      for (int j = 0; args_.wants_gradient && j < args_.outputs; ++j) {
        to[j] = scratch_out_[j];
        entry_of_rows(k * columns_ + j);
        for (int64_t i = 0; i < run.count; i += WIDTH) {
          const F w = load_up_to<F>(lane_weights_ + i, run.count - i), r = load<F>(residual_ + i);
          store(to[j] + i, k == 0 ? w * (r + r) : multiply_add(w, r + r, load<F>(to[j] + i)));
        }
      }
    }
    finish(run, to);
  }

  const ResidualArgs& args_;
  const int64_t width_, pixels_, samples_;
  const double amplitude_;
  const int columns_;
  int column_[MAX_PLANES + 2];
  const int used_;
  const Squares<T> squares_;
  RowMatrices matrices_;
  BlockNormals<T> noise_;
  View input_[MAX_PLANES], gradient_[MAX_PLANES];
  alignas(64) T scratch_in_[MAX_PLANES][BLOCK];
  alignas(64) T scratch_out_[MAX_PLANES][BLOCK];
  alignas(64) T residual_[BLOCK];
  alignas(64) T lane_weights_[BLOCK];
  alignas(64) double bits_[BLOCK];
};

template <class T>
void residual_of(const ResidualArgs& args, int64_t begin, int64_t end) {
  if (!args.tiling.by_pixel) return ResidualRun<T>(args, 1).run(begin, end);
  ResidualArgs pixels = args;
  pixels.rows = args.rows * args.inner;
  pixels.inner = 1;
  to_pixel_rows(pixels.input, args.inputs);
  if (args.wants_gradient) to_pixel_rows(pixels.gradient, args.outputs);
  ResidualRun<T>(pixels, args.inner).run(begin, end);
}

void residual(const ResidualArgs& args, int64_t begin, int64_t end) {
  if (args.compute == Dtype::float32) {
    residual_of<float>(args, begin, end);
  } else {
    residual_of<double>(args, begin, end);
  }
}

}  // namespace
}  // namespace CLDFAST_LEVEL
}  // namespace cldfast
