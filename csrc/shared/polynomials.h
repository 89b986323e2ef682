// Minimax polynomials of the normals. Written by csrc/tools/fit_polynomials.py; do not edit.
#pragma once

#include "shared/horner.h"

namespace cldfast::CLDFAST_LEVEL {
namespace {

// (2 f - 2 ln(1 + f)) / f^2 for 1 + f in [sqrt(1/2), sqrt(2)); relative error 2^-28.1.
template <class F>
CLDFAST_HD F log_series(F x, float) {
  return horner(x, 0.999999863f, -0.666665198f, 0.500028576f, -0.400097019f, 0.332243849f,
      -0.282805446f, 0.263848017f, -0.262097802f, 0.158790814f);
}

// (2 f - 2 ln(1 + f)) / f^2 for 1 + f in [sqrt(1/2), sqrt(2)); relative error 2^-57.3.
template <class F>
CLDFAST_HD F log_series(F x, double) {
  return horner(x, 1.0000000000000002, -0.66666666666669014, 0.49999999999942697,
      -0.39999999999534163, 0.3333333334480304, -0.28571428613871287, 0.24999999070539911,
      -0.22222219670706819, 0.20000039631478508, -0.18181924592671167, 0.1666569635110131,
      -0.15381693100387011, 0.14299341902633051, -0.13383495699057475, 0.12403404547713524,
      -0.11258644654057655, 0.11230347238331307, -0.13143716082189849, 0.12398438297602257,
      -0.054964240278267675);
}

// (sin t / t - 1) / q for q = t^2, |t| <= pi / 4; relative error 2^-28.0.
template <class F>
CLDFAST_HD F sine_series(F x, float) {
  return horner(x, -0.166666546f, 0.00833216079f, -0.000195152867f);
}

// (sin t / t - 1) / q for q = t^2, |t| <= pi / 4; relative error 2^-57.9.
template <class F>
CLDFAST_HD F sine_series(F x, double) {
  return horner(x, -0.16666666666666631, 0.0083333333333221181, -0.0001984126982958921,
      2.7557313621283784e-6, -2.5050747747984916e-8, 1.5896229337812468e-10);
}

// (cos t - 1) / q for q = t^2, |t| <= pi / 4; relative error 2^-33.9.
template <class F>
CLDFAST_HD F cosine_series(F x, float) {
  return horner(x, -0.499999997f, 0.0416666204f, -0.00138866817f, 2.43835682e-5f);
}

// (cos t - 1) / q for q = t^2, |t| <= pi / 4; relative error 2^-64.5.
template <class F>
CLDFAST_HD F cosine_series(F x, double) {
  return horner(x, -0.5, 0.04166666666666647, -0.0013888888888862, 2.4801587284094411e-5,
      -2.7557313117234763e-7, 2.0875582119921575e-9, -1.1353280907472404e-11);
}

}  // namespace
}  // namespace cldfast::CLDFAST_LEVEL
