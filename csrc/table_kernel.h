// Evaluation of tables for one instruction set: a vector holds entries of one matrix.
#pragma once

#include "planes.h"
#include "simd.h"
#include "table.h"

namespace cldfast {
namespace CLDFAST_LEVEL {
namespace {

// The matrices at the times begin ... end - 1, `entries` numbers each; false, and an unfinished
// result, where a time lies outside the table.
bool matrices(const Table& table, const double* t, int64_t begin, int64_t end, int64_t entries,
              double* to) {
  constexpr int64_t WIDTH = sizeof(F64) / 8;
  for (int64_t i = begin; i < end; ++i) {
    int64_t panel;
    double x;
    if (!locate(table, t[i], panel, x)) return false;
    const double* from = table.coefficients + panel * table.terms * table.stride;
    for (int64_t j = 0; j < entries; j += WIDTH) {
      const double* term = from + (table.terms - 1) * table.stride + j;
      F64 sum = load<F64>(term);
      for (int64_t k = 1; k < table.terms; ++k) {
        term -= table.stride;
        sum = multiply_add(sum, F64{} + x, load<F64>(term));
      }
      if (entries - j >= WIDTH) {
        store(to + i * entries + j, sum);
      } else {
        store_some(to + i * entries + j, sum, entries - j);
      }
    }
  }
  return true;
}

}  // namespace
}  // namespace CLDFAST_LEVEL
}  // namespace cldfast
