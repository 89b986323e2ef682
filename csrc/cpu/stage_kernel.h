// The stage kernel for one instruction set: blocks of flat pairs, noise into L1, one small matrix.
//
// Every vector of a run, the last incomplete one included, goes through the same vector instructions,
// so a coordinate's result does not depend on where in a batch, block or thread it lies. That holds for
// finite planes: a plane is read for all rows of a call or for none.
#pragma once

#include "cpu/normals.h"
#include "cpu/operands.h"
#include "shared/operations.h"

namespace cldfast::CLDFAST_LEVEL {
namespace {

// Rows at least this wide are worked on in place; narrower ones are gathered, several to a vector.
constexpr int64_t WIDE_ROW = 64;

// out[k][i] = sum_m matrix(k, m) in[m][i]. Outputs may be inputs: a vector's inputs are all read before
// its outputs are written.
template <class T>
using Affine = void (*)(const T* const* in, T* const* out, const Matrix& matrix, int outs, int64_t count,
                        bool past_cache);

// INS inputs and OUTS outputs, or any numbers of them where INS is 0.
template <class T, int INS, int OUTS>
void affine(const T* const* in, T* const* out, const Matrix& matrix, int any_outs, int64_t count,
            bool past_cache) {
  using F = typename Pack<T>::Float;
  constexpr int MOST_INS = INS ? INS : STAGE_COLUMNS, MOST_OUTS = INS ? OUTS : MOST_PLANES;
  const int ins = INS ? INS : matrix.used, outs = INS ? OUTS : any_outs;
  const MatrixEntries<T, MOST_OUTS, MOST_INS, INS != 0> w(matrix, outs, ins);
  const T* from[MOST_INS];
  T* to[MOST_OUTS];
  for (int m = 0; m < ins; ++m) from[m] = in[m];
  for (int k = 0; k < outs; ++k) to[k] = out[k];
  by_vectors<F, T>(count, [&](int64_t i, auto lanes) CLDFAST_INLINED {
    F x[MOST_INS], y[MOST_OUTS];
    for (int m = 0; m < ins; ++m) x[m] = load<F>(from[m] + i, lanes);
    for (int k = 0; k < outs; ++k) {
      y[k] = ins == 0 ? F{} : w(k, 0) * x[0];
      for (int m = 1; m < ins; ++m) y[k] = multiply_add(w(k, m), x[m], y[k]);
    }
    for (int k = 0; k < outs; ++k) {
      if (lanes.all && past_cache) {
        store_past_cache(to[k] + i, y[k]);
      } else {
        store(to[k] + i, y[k], lanes);
      }
    }
  });
}

// The unrolled loop for the counts that solvers use, six inputs and both normals and four outputs at most.
template <class T, int... I>
Affine<T> affine_for(int ins, int outs, std::integer_sequence<int, I...>) {
  static constexpr Affine<T> unrolled[] = {affine<T, I / 4 + 1, I % 4 + 1>...};
  if (ins < 1 || ins > 8 || outs < 1 || outs > 4) return affine<T, 0, 0>;
  return unrolled[(ins - 1) * 4 + outs - 1];
}

template <class T>
class StageRun : Operands<T> {
 public:
  StageRun(const StageArgs& args, bool past_cache)
      : Operands<T>(args),
        args_(args),
        own_matrix_(args.table || args.matrices > 1),
        past_cache_(past_cache),
        used_(columns_of(args.used, column_)),
        apply_(affine_for<T>(used_, args.results, std::make_integer_sequence<int, 32>())),
        matrices_(args, args.results * args.columns(), !own_matrix_),
        noise_(args.noise, width_, args.by_pixel ? args.channels : 1) {}

  void run(int64_t begin, int64_t end) {
    const bool x = wants_normal(0), v = wants_normal(1);
    const bool narrow = own_matrix_ && width_ < NARROW_ROW;
    const bool by_row = !narrow && (width_ >= WIDE_ROW || own_matrix_);
    Run run = {begin / width_, begin % width_, 0};
    for (int64_t pair = begin; pair < end;) {
      int64_t count = shorter(BLOCK, end - pair);
      if (args_.by_pixel) count = shorter(count, width_ - run.column);
      const int64_t offset = noise_.make(pair, count, x, v);
      if (own_matrix_) matrices_.prepare(run.row, (pair + count - 1) / width_ + 1);
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
  using Operands<T>::width_;

  bool wants_normal(int number) const {
    return args_.addressed_noise && (args_.used >> (args_.inputs + number) & 1);
  }

  // What the used columns are multiplied by, at a run whose normals begin at `offset` of the block's.
  void used_inputs(const Run& run, int64_t offset, const T** in) {
    for (int m = 0; m < used_; ++m) {
      const int j = column_[m], normal = j - args_.inputs;
      in[m] = normal < 0 ? this->input(j, run) : noise_.normals[normal] + offset;
    }
  }

  void segment(const Run& run, int64_t offset) {
    const T* in[STAGE_COLUMNS];
    T* out[MOST_PLANES];
    used_inputs(run, offset, in);
    this->place_results(run, out);
    bool past_cache = past_cache_;
    for (int k = 0; past_cache && k < args_.results; ++k) {
      past_cache = this->is_direct(k, out[k]) && reinterpret_cast<uintptr_t>(out[k]) % VECTOR_BYTES == 0;
    }
    const Matrix matrix = {matrices_[run.row], args_.columns(), used_, column_, 1.0};
    apply_(in, out, matrix, args_.results, run.count, past_cache);
    this->finish(run, out);
  }

  // Several rows at once. Outputs may be inputs, so they wait in scratch until all are made.
  void narrow_rows(const Run& run, int64_t offset) {
    const T* in[STAGE_COLUMNS];
    T* out[MOST_PLANES];
    used_inputs(run, offset, in);
    for (int k = 0; k < args_.results; ++k) {
      out[k] = this->scratch_out_[k];
      this->lane_sum(run, used_, in, out[k], [&](int m, int64_t row) {
        return matrices_[row][k * args_.columns() + column_[m]];
      });
    }
    this->finish(run, out);
  }

  const StageArgs& args_;
  const bool own_matrix_, past_cache_;
  int column_[STAGE_COLUMNS];
  const int used_;
  const Affine<T> apply_;
  RowMatrices matrices_;
  BlockNormals<T> noise_;
};

void stage(const StageArgs& args, int64_t begin, int64_t end, bool past_cache) {
  if (args.compute == Dtype::float32) {
    StageRun<float>(args, past_cache).run(begin, end);
  } else {
    StageRun<double>(args, past_cache).run(begin, end);
  }
}

}  // namespace
}  // namespace cldfast::CLDFAST_LEVEL
