// Small matrices as functions of time: polynomials on panels, evaluated in float64.
// cldfast/kernels/time_tables.py makes them and explains how. Host and device code share `locate`.
#pragma once

#include "shared/arithmetic.h"

namespace cldfast {

// Octave i covers the times end (2^-(i+1), 2^-i], in 2^bits equal panels, the lowest first. A panel's
// coefficients of x^0, x^1, ... on [-1, 1] lie at coefficients + panel * terms * stride.
struct Table {
  const double* coefficients;  // (panels, terms, stride)
  const int64_t* octaves;      // (count, 2): the octave's first panel, and bits
  int64_t count;  // of octaves
  int64_t terms;
  int64_t stride;  // entries of a matrix and padding: a multiple of 8
  double end;
  uint64_t used;  // bit j: column j of the matrices is not 0 at all times
};

namespace CLDFAST_LEVEL {
namespace {

// Whether the table covers a time. An end time that was rounded to float32 may lie just beyond the end.
CLDFAST_HD bool covers(const Table& table, double t) {
  const double s = t / table.end;
  return s > float_of((1023 - static_cast<uint64_t>(table.count)) << 52) && s <= 1.0 + 0x1p-20;
}

// The panel of a time that the table covers, and where in it the time lies.
CLDFAST_HD void locate(const Table& table, double t, int64_t& panel, double& x) {
  constexpr int MANTISSA_BITS = 52;
  constexpr uint64_t ONE = 1;
  const double s = t / table.end;
  // The bits of a positive double, read as an integer, grow with the number, so that octaves and panels
  // are ranges of integers. One is subtracted because each range includes its upper end.
  const double inside = s < 1.0 ? s : 1.0;
  const uint64_t bits = bits_of(inside) - 1;
  // The caller has checked the times or knows their bounds. No time at all leads outside the table's
  // memory.
  const uint64_t last = static_cast<uint64_t>(table.count) - 1;
  const uint64_t found = (bits_of(1.0) - 1 - bits) >> MANTISSA_BITS;
  const uint64_t octave = found < last ? found : last;
  const int split = static_cast<int>(table.octaves[2 * octave + 1]);
  const uint64_t mantissa = bits & ((ONE << MANTISSA_BITS) - 1);
  const uint64_t number = mantissa >> (MANTISSA_BITS - split);
  panel = table.octaves[2 * octave] + static_cast<int64_t>(number);
  const uint64_t rest = mantissa - (number << (MANTISSA_BITS - split)) + 1;
  x = int_to_float(static_cast<int64_t>(rest)) *
          float_of((1023 + ONE + split - MANTISSA_BITS) << MANTISSA_BITS) -
      1.0;
  // The highest panel is 2^-(split + 1) wide.
  if (s > 1.0) x += (s - 1.0) * float_of((1023 + 2 * ONE + split) << MANTISSA_BITS);
}

}  // namespace
}  // namespace CLDFAST_LEVEL
}  // namespace cldfast
