// Polynomials by Horner's rule.
//
// Vector types have no namespace of their own, so what these templates call must be declared
// before them: a translation unit with vectors includes cpu/simd.h first.
#pragma once

#include "shared/arithmetic.h"

namespace cldfast::CLDFAST_LEVEL {
namespace {

template <class F, class C>
CLDFAST_HD F horner(F, C last) {
  return F{} + last;
}

// c0 + x (c1 + x (c2 + ...)).
template <class F, class C, class... Rest>
CLDFAST_HD F horner(F x, C first, Rest... rest) {
  return multiply_add(horner(x, rest...), x, F{} + first);
}

}  // namespace
}  // namespace cldfast::CLDFAST_LEVEL
