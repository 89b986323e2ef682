// The stage kernel for one instruction set: blocks of flat pairs, noise into L1, one small matrix.
//
// Every vector of a run, the last incomplete one included, goes through the same vector instructions,
// so a coordinate's result does not depend on where in a batch, block or thread it lies (with finite
// planes: one that no row of a call uses is not read, one that some row uses is).
#pragma once

#include "cpu/block_normals.h"
#include "cpu/planes.h"
#include "cpu/row_matrices.h"

namespace cldfast {
namespace CLDFAST_LEVEL {
namespace {

// Rows at least this wide are worked on in place; narrower ones are gathered, several to a vector.
constexpr int64_t WIDE_ROW = 64;

// out[k][i] = sum_m matrix(k, m) in[m][i]. Outputs may be inputs: a vector's inputs are all read before
// its outputs are written.
template <class T>
using Affine = void (*)(const T* const* in, T* const* out, const Matrix& matrix, int outs, int64_t count,
                        bool past_cache);

template <class T, int INS, int OUTS>
void affine(const T* const* in, T* const* out, const Matrix& matrix, int, int64_t count,
            bool past_cache) {
  using F = typename Pack<T>::Float;
  constexpr int64_t WIDTH = sizeof(F) / sizeof(T);
  F w[OUTS][INS];
  for (int k = 0; k < OUTS; ++k) {
    for (int m = 0; m < INS; ++m) w[k][m] = F{} + matrix.at<T>(k, m);
  }
  const T* from[INS];
  T* to[OUTS];
  for (int m = 0; m < INS; ++m) from[m] = in[m];
  for (int k = 0; k < OUTS; ++k) to[k] = out[k];
  const auto apply = [&](const F(&x)[INS], F(&y)[OUTS]) {
    for (int k = 0; k < OUTS; ++k) {
      y[k] = w[k][0] * x[0];
      for (int m = 1; m < INS; ++m) y[k] = multiply_add(w[k][m], x[m], y[k]);
    }
  };
  F x[INS], y[OUTS];
  int64_t i = 0;
  for (; i + WIDTH <= count; i += WIDTH) {
    for (int m = 0; m < INS; ++m) x[m] = load<F>(from[m] + i);
    apply(x, y);
    for (int k = 0; k < OUTS; ++k) {
      if (past_cache) {
        store_past_cache(to[k] + i, y[k]);
      } else {
        store(to[k] + i, y[k]);
      }
    }
  }
  if (i < count) {
    for (int m = 0; m < INS; ++m) x[m] = load_some<F>(from[m] + i, count - i);
    apply(x, y);
    for (int k = 0; k < OUTS; ++k) store_some(to[k] + i, y[k], count - i);
  }
}

// Any numbers of planes.
template <class T>
void affine_any(const T* const* in, T* const* out, const Matrix& matrix, int outs, int64_t count, bool) {
  using F = typename Pack<T>::Float;
  constexpr int64_t WIDTH = sizeof(F) / sizeof(T);
  const int ins = matrix.used;
  T weights[MAX_PLANES * (MAX_PLANES + 2)];
  for (int k = 0; k < outs; ++k) {
    for (int m = 0; m < ins; ++m) weights[k * ins + m] = matrix.at<T>(k, m);
  }
  for (int64_t i = 0; i < count; i += WIDTH) {
    const int64_t lanes = shorter(WIDTH, count - i);
    F x[MAX_PLANES + 2], y[MAX_PLANES];
    for (int m = 0; m < ins; ++m) x[m] = load_up_to<F>(in[m] + i, lanes);
    for (int k = 0; k < outs; ++k) {
      y[k] = ins == 0 ? F{} : weights[k * ins] * x[0];
      for (int m = 1; m < ins; ++m) y[k] = multiply_add(F{} + weights[k * ins + m], x[m], y[k]);
    }
    for (int k = 0; k < outs; ++k) {
      if (lanes == WIDTH) {
        store(out[k] + i, y[k]);
      } else {
        store_some(out[k] + i, y[k], lanes);
      }
    }
  }
}

template <class T, int INS>
Affine<T> affine_for(int outs) {
  switch (outs) {
    case 1: return affine<T, INS, 1>;
    case 2: return affine<T, INS, 2>;
    case 3: return affine<T, INS, 3>;
    case 4: return affine<T, INS, 4>;
    default: return affine_any<T>;
  }
}

// The unrolled loop for the counts that solvers use, six inputs and both normals at most.
template <class T>
Affine<T> affine_for(int ins, int outs) {
  switch (ins) {
    case 1: return affine_for<T, 1>(outs);
    case 2: return affine_for<T, 2>(outs);
    case 3: return affine_for<T, 3>(outs);
    case 4: return affine_for<T, 4>(outs);
    case 5: return affine_for<T, 5>(outs);
    case 6: return affine_for<T, 6>(outs);
    case 7: return affine_for<T, 7>(outs);
    case 8: return affine_for<T, 8>(outs);
    default: return affine_any<T>;
  }
}

inline bool pixel_rows(const StageArgs& args) {
  return pixel_rows(args.output, args.outputs, args) && pixel_rows(args.input, args.inputs, args) &&
         pixel_rows(args.copy, args.copies, args);
}

inline StageArgs as_pixel_rows(const StageArgs& args) {
  StageArgs pixels = args;
  pixels.rows = args.rows * args.inner;
  pixels.inner = 1;
  to_pixel_rows(pixels.input, args.inputs);
  to_pixel_rows(pixels.output, args.outputs);
  to_pixel_rows(pixels.copy, args.copies);
  return pixels;
}

template <class T>
class StageRun {
 public:
  // pixels: how many of the rows make one sample, 1 if args were not turned into pixels.
  StageRun(const StageArgs& args, int64_t pixels, bool past_cache)
      : args_(args),
        width_(args.channels * args.inner),
        pixels_(pixels),
        columns_(args.inputs + (args.addressed_noise ? 2 : 0)),
        own_matrix_(args.table || args.matrices > 1),
        past_cache_(past_cache),
        used_(columns_of(args.used, column_)),
        apply_(affine_for<T>(used_, args.outputs)),
        matrices_(args, args.outputs * columns_, args.rows / pixels, !own_matrix_),
        noise_(args, width_, pixels) {
    for (int j = 0; j < args.inputs; ++j) input_[j] = View(args.input[j], args);
    for (int k = 0; k < args.outputs; ++k) output_[k] = View(args.output[k], args);
    for (int k = 0; k < args.copies; ++k) copy_[k] = View(args.copy[k], args);
  }

  void run(int64_t begin, int64_t end) {
    const int64_t sample = width_ * pixels_;
    const bool x = wants_normal(0), v = wants_normal(1);
    const bool narrow = own_matrix_ && width_ < NARROW_ROW && pixels_ == 1;
    const bool by_row = !narrow && (width_ >= WIDE_ROW || (own_matrix_ && pixels_ == 1));
    Run run = {begin / width_, begin % width_, 0};
    for (int64_t pair = begin; pair < end;) {
      int64_t count = shorter(BLOCK, end - pair);
      if (pixels_ > 1) count = shorter(count, sample - pair % sample);
      const int64_t offset = noise_.make(pair, count, x, v);
      if (own_matrix_) matrices_.prepare(pair / sample, (pair + count - 1) / sample + 1);
      for (int64_t done = 0; done < count; done += run.count) {
        run.count = by_row ? shorter(width_ - run.column, count - done) : count - done;
        if (narrow) {
          narrow_rows(run, offset + done);
        } else {
          segment(run, offset + done);
        }
        run.column += run.count;
        if (run.column >= width_) {
          run.row += by_row ? 1 : run.column / width_;
          run.column = by_row ? 0 : run.column % width_;
        }
      }
      pair += count;
    }
    if (past_cache_) store_fence();
  }

 private:
  bool wants_normal(int column) const {
    return args_.addressed_noise && (args_.used >> (columns_ - 2 + column) & 1);
  }

  const T* input(int column, const Run& run, int64_t offset) {
    return column < args_.inputs ? gather<T>(input_[column], run, scratch_in_[column], bits_)
                                 : noise_.normals[column - args_.inputs] + offset;
  }

  // The matrix at one run of pairs, whose normals begin at `offset` of the block's.
  void segment(const Run& run, int64_t offset) {
    const T* in[MAX_PLANES + 2];
    T* out[MAX_PLANES];
    for (int m = 0; m < used_; ++m) in[m] = input(column_[m], run, offset);
    bool past_cache = past_cache_;
    for (int k = 0; k < args_.outputs; ++k) {
      const View& view = output_[k];
      const bool direct = view.dtype == dtype_of<T>() && view.is_dense(run);
      out[k] = direct ? static_cast<T*>(address(view, run)) : scratch_out_[k];
      past_cache = past_cache && direct && reinterpret_cast<uintptr_t>(out[k]) % VECTOR_BYTES == 0;
    }
    const int64_t sample = pixels_ == 1 ? run.row : run.row / pixels_;
    const Matrix matrix = {matrices_[sample], columns_, used_, column_, 1.0};
    apply_(in, out, matrix, args_.outputs, run.count, past_cache);
    finish(run, out);
  }

  // Several rows at once: a lane takes the entries of its own row's matrix. Outputs may be inputs, so
  // they wait in scratch until all are made.
  void narrow_rows(const Run& run, int64_t offset) {
    using F = typename Pack<T>::Float;
    constexpr int64_t WIDTH = sizeof(F) / sizeof(T);
    const T* in[MAX_PLANES + 2];
    T* out[MAX_PLANES];
    for (int m = 0; m < used_; ++m) in[m] = input(column_[m], run, offset);
    for (int k = 0; k < args_.outputs; ++k) {
      out[k] = scratch_out_[k];
      for (int m = 0; m < used_; ++m) {
        const int64_t entry = k * columns_ + column_[m];
        spread(run, width_, lane_weights_,
               [&](int64_t row) { return static_cast<T>(matrices_[row][entry]); });
        for (int64_t i = 0; i < run.count; i += WIDTH) {
          const int64_t lanes = run.count - i;
          const F w = load_up_to<F>(lane_weights_ + i, lanes), x = load_up_to<F>(in[m] + i, lanes);
          store(out[k] + i, m == 0 ? w * x : multiply_add(w, x, load<F>(out[k] + i)));
        }
      }
      for (int64_t i = 0; used_ == 0 && i < run.count; ++i) out[k][i] = 0;
    }
    finish(run, out);
  }

  // Outputs that wait in scratch, and copies.
  void finish(const Run& run, T* const* out) {
    for (int k = 0; k < args_.outputs; ++k) {
      if (out[k] == scratch_out_[k]) scatter<T>(output_[k], run, out[k], bits_);
    }
    for (int k = 0; k < args_.copies; ++k) scatter<T>(copy_[k], run, out[args_.copy_of[k]], bits_);
  }

  const StageArgs& args_;
  const int64_t width_, pixels_;
  const int columns_;
  const bool own_matrix_, past_cache_;
  int column_[MAX_PLANES + 2];
  const int used_;
  const Affine<T> apply_;
  RowMatrices matrices_;
  BlockNormals<T> noise_;
  View input_[MAX_PLANES], output_[MAX_PLANES], copy_[MAX_PLANES];
  alignas(64) T scratch_in_[MAX_PLANES][BLOCK];
  alignas(64) T scratch_out_[MAX_PLANES][BLOCK];
  alignas(64) T lane_weights_[BLOCK];
  alignas(64) double bits_[BLOCK];
};

template <class T>
void stage_of(const StageArgs& args, int64_t begin, int64_t end, bool past_cache) {
  if (pixel_rows(args)) {
    const StageArgs pixels = as_pixel_rows(args);
    StageRun<T>(pixels, args.inner, past_cache).run(begin, end);
  } else {
    StageRun<T>(args, 1, past_cache).run(begin, end);
  }
}

void stage(const StageArgs& args, int64_t begin, int64_t end, bool past_cache) {
  if (args.compute == Dtype::float32) {
    stage_of<float>(args, begin, end, past_cache);
  } else {
    stage_of<double>(args, begin, end, past_cache);
  }
}

}  // namespace

}  // namespace CLDFAST_LEVEL
}  // namespace cldfast
