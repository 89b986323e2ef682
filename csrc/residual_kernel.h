// The residual kernel for one instruction set: tiles of pairs, noise into L1, squares into float64.
//
// Where a row is cut depends on its width alone and every vector goes through the same instructions,
// so that a row's loss and gradient do not depend on where in a batch or thread it lies.
#pragma once

#include <cmath>

#include "block_normals.h"
#include "planes.h"
#include "residual.h"

namespace cldfast {
namespace CLDFAST_LEVEL {
namespace {

// Rows narrower than a vector are worked on several at a time, each lane with its own row's matrix.
constexpr int64_t NARROW_ROW = LANES;

// A sum of squares; those of floats are exact in double.
struct SquareSum {
  Duo<F64> total = {};

  void add(F32 value) {
    const Duo<F64> wide = widened(value);
    total = multiply_add(wide, wide, total);
  }
  void add(F64 value) { total.a = multiply_add(value, value, total.a); }

  double value() const {
    const F64 both = total.a + total.b;
    double sum = 0.0;
    for (size_t i = 0; i < sizeof(F64) / 8; ++i) sum += both[i];
    return sum;
  }
};

// r[k] = sum_m weights[k * ins + m] in[m] and gradient[j] = 2 sum_k weights[k * ins + j] r[k]; returns
// the sum of r's squares. Gradients may be null.
template <class T>
using Squares = double (*)(const T* const* in, T* const* gradient, const T* weights, int residuals,
                           int outputs, int ins, int64_t count);

template <class T, int RESIDUALS, int OUTPUTS, int INS, bool GRADIENT>
double squares(const T* const* in, T* const* gradient, const T* weights, int, int, int,
               int64_t count) {
  using F = typename Pack<T>::Float;
  constexpr int64_t WIDTH = sizeof(F) / sizeof(T);
  F w[RESIDUALS][INS];
  for (int k = 0; k < RESIDUALS; ++k) {
    for (int m = 0; m < INS; ++m) w[k][m] = F{} + weights[k * INS + m];
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
double squares_any(const T* const* in, T* const* gradient, const T* weights, int residuals,
                   int outputs, int ins, int64_t count) {
  using F = typename Pack<T>::Float;
  constexpr int64_t WIDTH = sizeof(F) / sizeof(T);
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
  // width: pairs of a row; pixels: how many of the rows make one sample, 1 if not by pixel.
  ResidualRun(const ResidualArgs& args, int64_t pixels)
      : args_(args),
        width_(args.channels * args.inner),
        pixels_(pixels),
        samples_(args.rows / pixels),
        columns_(args.inputs + (args.addressed_noise ? 2 : 0)),
        noise_(args, width_, pixels) {}

  void run(int64_t begin, int64_t end) {
    const Tiling& tiling = args_.tiling;
    const int64_t sample_width = width_ * pixels_;
    const int64_t first = begin / tiling.pieces * tiling.together;
    const int64_t last = shorter((end - 1) / tiling.pieces * tiling.together + tiling.together, samples_);
    const bool x = wants_normal(0, first, last), v = wants_normal(1, first, last);
    for (int64_t tile = begin; tile < end; ++tile) {
      const int64_t sample = tile / tiling.pieces * tiling.together;
      const int64_t rows = shorter(tiling.together, samples_ - sample);
      const int64_t start = tile % tiling.pieces * tiling.piece;
      const int64_t count = rows * shorter(tiling.piece, sample_width - start);
      const int64_t pair = sample * sample_width + start;
      const int64_t offset = noise_.make(pair, count, x, v);
      double* sums = args_.sums + sample * tiling.pieces + tile % tiling.pieces;
      const Run run = {pair / width_, pair % width_, count};
      if (width_ < NARROW_ROW && pixels_ == 1) {
        narrow_rows(run, rows, offset, sums);
        continue;
      }
      for (int64_t i = 0; i < rows; ++i) {
        if (sample + i != matrix_row_) take(sample + i);
        // Rows together are of one piece each.
        sums[i] = segment({run.row + i, run.column, count / rows}, offset + i * (count / rows));
      }
    }
  }

 private:
  const double* matrix(int64_t sample) const {
    return args_.weights + sample * args_.residuals * columns_;
  }

  // What the matrix of a sample is multiplied by.
  double amplitude(int64_t sample) const {
    return std::sqrt(args_.scale ? args_.scale[sample] * args_.factor : args_.factor);
  }

  // Whether a matrix of the samples first ... last - 1 has anything in a noise column.
  bool wants_normal(int column, int64_t first, int64_t last) const {
    if (!args_.addressed_noise) return false;
    const double* entry = args_.weights + columns_ - 2 + column;
    for (int64_t i = first * args_.residuals; i < last * args_.residuals; ++i) {
      if (entry[i * columns_] != 0.0) return true;
    }
    return false;
  }

  // One sample's matrix without the columns of zeros behind the outputs': what they would multiply is
  // not read at all.
  void take(int64_t sample) {
    const double* from = matrix(sample);
    const double scale = amplitude(sample);
    used_ = 0;
    for (int j = 0; j < columns_; ++j) {
      bool used = j < args_.outputs;
      for (int k = 0; k < args_.residuals; ++k) used |= from[k * columns_ + j] != 0.0;
      if (used) column_[used_++] = j;
    }
    for (int k = 0; k < args_.residuals; ++k) {
      for (int m = 0; m < used_; ++m) {
        weights_[k * used_ + m] = static_cast<T>(scale * from[k * columns_ + column_[m]]);
      }
    }
    squares_ = squares_for<T>(args_.residuals, args_.outputs, used_, args_.wants_gradient);
    matrix_row_ = sample;
  }

  const T* plane(int column, const Run& run, int64_t offset) {
    return column < args_.inputs
               ? gather<T>(View(args_.input[column], args_), run, scratch_in_[column], bits_)
               : noise_.normals[column - args_.inputs] + offset;
  }

  // Where the gradients of a run are to be written: in place where they can be.
  void begin_gradient(const Run& run, T** to) {
    for (int j = 0; args_.wants_gradient && j < args_.outputs; ++j) {
      const View view(args_.gradient[j], args_);
      const bool direct = view.dtype == dtype_of<T>() && view.is_dense(run);
      to[j] = direct ? static_cast<T*>(address(view, run)) : scratch_out_[j];
    }
  }

  void end_gradient(const Run& run, T* const* to) {
    for (int j = 0; args_.wants_gradient && j < args_.outputs; ++j) {
      if (to[j] == scratch_out_[j]) scatter<T>(View(args_.gradient[j], args_), run, to[j], bits_);
    }
  }

  // One piece of one sample, whose normals begin at `offset` of the tile's.
  double segment(const Run& run, int64_t offset) {
    const T* in[MAX_PLANES + 2];
    T* to[MAX_PLANES];
    for (int m = 0; m < used_; ++m) in[m] = plane(column_[m], run, offset);
    begin_gradient(run, to);
    const double sum = squares_(in, args_.wants_gradient ? to : nullptr, weights_, args_.residuals,
                                args_.outputs, used_, run.count);
    end_gradient(run, to);
    return sum;
  }

  // Several rows narrower than a vector: a lane takes the entries of its own row's matrix.
  void narrow_rows(const Run& run, int64_t rows, int64_t offset, double* sums) {
    using F = typename Pack<T>::Float;
    constexpr int64_t WIDTH = sizeof(F) / sizeof(T);
    double scale[BLOCK];
    for (int64_t i = 0; i < rows; ++i) scale[i] = amplitude(run.row + i);
    const T* in[MAX_PLANES + 2];
    bool used[MAX_PLANES + 2];
    for (int j = 0; j < columns_; ++j) {
      used[j] = j < args_.outputs;
      for (int64_t i = 0; i < rows * args_.residuals; ++i) {
        used[j] |= matrix(run.row)[i * columns_ + j] != 0.0;
      }
      if (used[j]) in[j] = plane(j, run, offset);
    }
    T* to[MAX_PLANES];
    begin_gradient(run, to);
    for (int64_t i = 0; i < rows; ++i) sums[i] = 0.0;
    for (int k = 0; k < args_.residuals; ++k) {
      bool begun = false;
      for (int j = 0; j < columns_; ++j) {
        if (!used[j]) continue;
        spread(run.row, rows, k * columns_ + j, scale);
        for (int64_t i = 0; i < run.count; i += WIDTH) {
          const int64_t lanes = shorter(WIDTH, run.count - i);
          const F product = begun ? load<F>(residual_ + i) : F{};
          store(residual_ + i, multiply_add(load<F>(lane_weights_ + i), load_some<F>(in[j] + i, lanes), product));
        }
        begun = true;
      }
      for (int64_t i = 0; i < rows; ++i) {
        for (int64_t c = i * width_; c < (i + 1) * width_; ++c) {
          sums[i] += static_cast<double>(residual_[c]) * static_cast<double>(residual_[c]);
        }
      }
      for (int j = 0; args_.wants_gradient && j < args_.outputs; ++j) {
        spread(run.row, rows, k * columns_ + j, scale);
        for (int64_t i = 0; i < run.count; i += WIDTH) {
          const int64_t lanes = shorter(WIDTH, run.count - i);
          const F r = load<F>(residual_ + i), before = k == 0 ? F{} : load_some<F>(to[j] + i, lanes);
          store_some(to[j] + i, multiply_add(load<F>(lane_weights_ + i), r + r, before), lanes);
        }
      }
    }
    end_gradient(run, to);
  }

  // One entry of each row's matrix, at each of the row's lanes.
  void spread(int64_t first, int64_t rows, int64_t entry, const double* scale) {
    T* to = lane_weights_;
    for (int64_t i = 0; i < rows; ++i) {
      const T weight = static_cast<T>(scale[i] * matrix(first + i)[entry]);
      for (int64_t c = 0; c < width_; ++c) *to++ = weight;
    }
  }

  const ResidualArgs& args_;
  const int64_t width_, pixels_, samples_;
  const int columns_;
  int64_t matrix_row_ = -1;
  int used_ = 0;
  int column_[MAX_PLANES + 2];
  T weights_[MAX_PLANES * (MAX_PLANES + 2)];
  Squares<T> squares_ = nullptr;
  BlockNormals<T> noise_;
  alignas(64) T scratch_in_[MAX_PLANES][BLOCK];
  alignas(64) T scratch_out_[MAX_PLANES][BLOCK];
  // Whole vectors of them are read and written.
  alignas(64) T residual_[BLOCK + LANES] = {};
  alignas(64) T lane_weights_[BLOCK + LANES] = {};
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
