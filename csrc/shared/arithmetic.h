// The few primitives under shared/philox.h, for scalars: host code and, under nvcc, device code.
// cpu/simd.h overloads the same names for vectors, so that one text of the algorithms serves all.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__CUDACC__)
#define CLDFAST_HD __host__ __device__ __forceinline__
#else
#define CLDFAST_HD inline __attribute__((always_inline))
#endif

// Each instruction set compiles these headers in a namespace of its own, and inside it in an unnamed
// one, so that the linker can never take one level's function for another's.
#if !defined(CLDFAST_LEVEL)
#define CLDFAST_LEVEL scalar
#endif

namespace cldfast::CLDFAST_LEVEL {
namespace {

template <class To, class From>
CLDFAST_HD To bit_cast(From value) {
  static_assert(sizeof(To) == sizeof(From), "a bit cast keeps the size");
  To result;
  memcpy(&result, &value, sizeof(To));
  return result;
}

// The unsigned integer of a float's width.
template <class T>
using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;

// Casts between a float, the unsigned integer of its bits, and the signed one.
#define CLDFAST_CASTS(Float, Unsigned, Signed)                                   \
  CLDFAST_HD Unsigned bits_of(Float value) { return bit_cast<Unsigned>(value); } \
  CLDFAST_HD Float float_of(Unsigned bits) { return bit_cast<Float>(bits); }     \
  CLDFAST_HD Signed signed_of(Unsigned value) { return bit_cast<Signed>(value); }

CLDFAST_CASTS(float, uint32_t, int32_t)
CLDFAST_CASTS(double, uint64_t, int64_t)

template <class F>
CLDFAST_HD F select(bool condition, F yes, F no) {
  return condition ? yes : no;
}

// Product of the low halves of a and b.
CLDFAST_HD uint64_t multiply_low(uint64_t a, uint32_t b) {
#if defined(__CUDA_ARCH__)
  // The compiler adds the product with a's upper half, a zero, at the cost of an instruction.
  uint64_t product;
  asm("mul.wide.u32 %0, %1, %2;" : "=l"(product) : "r"(static_cast<uint32_t>(a)), "r"(b));
  return product;
#else
  return static_cast<uint64_t>(static_cast<uint32_t>(a)) * b;
#endif
}

// a b + c; fused where the instruction set has it, so good for rounding errors only in `fused`.
CLDFAST_HD float multiply_add(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
CLDFAST_HD double multiply_add(double a, double b, double c) { return __builtin_fma(a, b, c); }

// a b + c without the rounding of a b.
CLDFAST_HD float fused(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
CLDFAST_HD double fused(double a, double b, double c) { return __builtin_fma(a, b, c); }

// An integer word below 2^32, rounded to nearest.
CLDFAST_HD float word_to_float(uint32_t word) { return static_cast<float>(word); }
CLDFAST_HD double word_to_float(uint64_t word) { return static_cast<double>(word); }

// Integers of magnitude at most 2^31, rounded to nearest; and back, from integral values.
CLDFAST_HD float int_to_float(int32_t value) { return static_cast<float>(value); }
CLDFAST_HD double int_to_float(int64_t value) { return static_cast<double>(value); }
CLDFAST_HD int32_t float_to_int(float value) { return static_cast<int32_t>(value); }

// 1 / sqrt(x) of a normal x, to 2^-14 or better.
CLDFAST_HD float inverse_root(float x) {
#if defined(__CUDA_ARCH__)
  float root;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(root) : "f"(x));
  return root;
#else
  return 1.0f / __builtin_sqrtf(x);
#endif
}
CLDFAST_HD double inverse_root(double x) { return 1.0 / __builtin_sqrt(x); }

}  // namespace
}  // namespace cldfast::CLDFAST_LEVEL
