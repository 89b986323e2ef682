// Evaluation of tables for one instruction set: a vector holds entries of one matrix.
#pragma once

#include "cpu/planes.h"
#include "cpu/simd.h"
#include "shared/table.h"

namespace cldfast::CLDFAST_LEVEL {
namespace {

// Horner's rule at MATRICES times at once, whose chains of sums do not wait for each other.
template <int MATRICES>
void matrices_together(const Table& table, const double* t, int64_t entries, double* to) {
  const double* last[MATRICES];
  F64 x[MATRICES];
  for (int i = 0; i < MATRICES; ++i) {
    int64_t panel;
    double place;
    locate(table, t[i], panel, place);
    x[i] = F64{} + place;
    last[i] = table.coefficients + ((panel + 1) * table.terms - 1) * table.stride;
  }
  by_vectors<F64, double>(entries, [&](int64_t j, auto lanes) CLDFAST_INLINED {
    F64 sum[MATRICES];
    for (int i = 0; i < MATRICES; ++i) sum[i] = load<F64>(last[i] + j);
    for (int64_t k = 1; k < table.terms; ++k) {
      for (int i = 0; i < MATRICES; ++i) {
        sum[i] = multiply_add(sum[i], x[i], load<F64>(last[i] + j - k * table.stride));
      }
    }
    for (int i = 0; i < MATRICES; ++i) store(to + i * entries + j, sum[i], lanes);
  });
}

// The matrices at `count` times, all of which the table covers, `entries` numbers each.
void matrices(const Table& table, const double* t, int64_t count, int64_t entries, double* to) {
  constexpr int TOGETHER = 4;
  int64_t i = 0;
  for (; i + TOGETHER <= count; i += TOGETHER) {
    matrices_together<TOGETHER>(table, t + i, entries, to + i * entries);
  }
  for (; i < count; ++i) matrices_together<1>(table, t + i, entries, to + i * entries);
}

}  // namespace
}  // namespace cldfast::CLDFAST_LEVEL
