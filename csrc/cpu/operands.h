// What the kernels of a stage and of a residual share: planes at hand as dense runs, and sums over planes
// where each row has numbers of its own.
#pragma once

#include "cpu/planes.h"
#include "cpu/row_matrices.h"

namespace cldfast::CLDFAST_LEVEL {
namespace {

// Rows narrower than a vector of floats, each with a matrix of its own, are worked on several at a time.
constexpr int64_t NARROW_ROW = VECTOR_BYTES / 4;

template <class T>
class Operands {
 public:
  explicit Operands(const Call& call) : width_(call.width()), results_(call.results) {
    for (int j = 0; j < call.inputs; ++j) input_[j] = View(call.input[j], call);
    for (int k = 0; k < call.results; ++k) result_[k] = View(call.result[k], call);
  }

 protected:
  const T* input(int j, const Run& run) { return gather<T>(input_[j], run, scratch_in_[j], own_); }

  // Where the results of a run are to be made: in their planes, or in scratch.
  void place_results(const Run& run, T** result) {
    for (int k = 0; k < results_; ++k) {
      const View& view = result_[k];
      const bool direct = view.dtype == dtype_of<T>() && view.is_dense(run);
      result[k] = direct ? static_cast<T*>(view.start(run)) : scratch_out_[k];
    }
  }

  bool is_direct(int k, const T* result) const { return result != scratch_out_[k]; }

  // Takes results that wait in scratch to their planes.
  void finish(const Run& run, T* const* result) {
    for (int k = 0; k < results_; ++k) {
      if (!is_direct(k, result[k])) scatter<T>(result_[k], run, result[k], own_);
    }
  }

  // to = sum of weight(m, row) in[m] over several rows: a lane takes the numbers of its own row. `to` has
  // room for whole vectors.
  template <class Weight>
  void lane_sum(const Run& run, int count, const T* const* in, T* to, const Weight& weight) {
    using F = typename Pack<T>::Float;
    for (int64_t i = 0; count == 0 && i < run.count; ++i) to[i] = T(0);
    for (int m = 0; m < count; ++m) {
      spread(run, width_, lane_weights_, [&](int64_t row) { return static_cast<T>(weight(m, row)); });
      by_vectors<F, T>(run.count, [&](int64_t i, auto lanes) {
        const F w = load<F>(lane_weights_ + i, lanes), x = load<F>(in[m] + i, lanes);
        store(to + i, m == 0 ? w * x : multiply_add(w, x, load<F>(to + i)));
      });
    }
  }

  const int64_t width_;
  alignas(64) T scratch_in_[MOST_PLANES][BLOCK];
  alignas(64) T scratch_out_[MOST_PLANES][BLOCK];

 private:
  const int results_;
  View input_[MOST_PLANES], result_[MOST_PLANES];
  alignas(64) T lane_weights_[BLOCK];
  alignas(64) double own_[BLOCK];  // a run in a plane's own dtype
};

}  // namespace
}  // namespace cldfast::CLDFAST_LEVEL
