// Vectors of one instruction set: the compiler's vector extension, and a few intrinsics where it has
// no operator. Overloads the primitives of shared/arithmetic.h. VECTOR_BYTES is the only width there is.
#pragma once

#include <cstddef>

#include "shared/arithmetic.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the word order of addressed noise is written for little-endian machines"
#endif

namespace cldfast::CLDFAST_LEVEL {
namespace {

#if defined(__AVX512F__)
constexpr int VECTOR_BYTES = 64;
#elif defined(__AVX2__)
constexpr int VECTOR_BYTES = 32;
#else
constexpr int VECTOR_BYTES = 16;
#endif

typedef float F32 __attribute__((vector_size(VECTOR_BYTES)));
typedef double F64 __attribute__((vector_size(VECTOR_BYTES)));
typedef int32_t I32 __attribute__((vector_size(VECTOR_BYTES)));
typedef int64_t I64 __attribute__((vector_size(VECTOR_BYTES)));
typedef uint32_t U32 __attribute__((vector_size(VECTOR_BYTES)));
typedef uint64_t U64 __attribute__((vector_size(VECTOR_BYTES)));
typedef uint32_t U32Half __attribute__((vector_size(VECTOR_BYTES / 2)));
typedef float F32Half __attribute__((vector_size(VECTOR_BYTES / 2)));

template <class T>
struct Pack {
  typedef T Float __attribute__((vector_size(VECTOR_BYTES)));
};

template <class V, class E>
CLDFAST_HD V load(const E* from) {
  V value;
  memcpy(&value, from, sizeof(V));
  return value;
}

template <class V, class E>
CLDFAST_HD void store(E* to, V value) {
  memcpy(to, &value, sizeof(V));
}

// Which lanes of a vector are moved: all of them, or the first ones. The others read as zero and are not
// written.
struct AllLanes {
  static constexpr bool all = true;
};
struct SomeLanes {
  static constexpr bool all = false;
  int64_t count;
};

template <class V, class E>
CLDFAST_HD V load(const E* from, AllLanes) {
  return load<V>(from);
}
template <class V, class E>
CLDFAST_HD void store(E* to, V value, AllLanes) {
  store(to, value);
}

template <class V, class E>
CLDFAST_HD V load(const E* from, SomeLanes lanes) {
#if defined(__AVX512F__)
  const unsigned mask = (1u << lanes.count) - 1;
  if constexpr (sizeof(E) == 4) {
    return bit_cast<V>(_mm512_maskz_loadu_epi32(static_cast<__mmask16>(mask), from));
  } else {
    return bit_cast<V>(_mm512_maskz_loadu_epi64(static_cast<__mmask8>(mask), from));
  }
#else
  E values[sizeof(V) / sizeof(E)] = {};
  for (int64_t i = 0; i < lanes.count; ++i) values[i] = from[i];
  return load<V>(values);
#endif
}
template <class V, class E>
CLDFAST_HD void store(E* to, V value, SomeLanes lanes) {
#if defined(__AVX512F__)
  const unsigned mask = (1u << lanes.count) - 1;
  if constexpr (sizeof(E) == 4) {
    _mm512_mask_storeu_epi32(to, static_cast<__mmask16>(mask), bit_cast<__m512i>(value));
  } else {
    _mm512_mask_storeu_epi64(to, static_cast<__mmask8>(mask), bit_cast<__m512i>(value));
  }
#else
  E values[sizeof(V) / sizeof(E)];
  store(values, value);
  for (int64_t i = 0; i < lanes.count; ++i) to[i] = values[i];
#endif
}

// For a body that `by_vectors` calls in two places.
#define CLDFAST_INLINED __attribute__((always_inline))

// Calls body(i, lanes) for the vectors of V that cover `count` numbers, i the first number of each.
template <class V, class E, class Body>
CLDFAST_HD void by_vectors(int64_t count, const Body& body) {
  constexpr int64_t WIDTH = sizeof(V) / sizeof(E);
  int64_t i = 0;
  for (; i + WIDTH <= count; i += WIDTH) body(i, AllLanes{});
  if (i < count) body(i, SomeLanes{count - i});
}

// To an aligned address, past the caches: the line is not read before it is overwritten.
template <class V, class E>
CLDFAST_HD void store_past_cache(E* to, V value) {
#if defined(__AVX512F__)
  _mm512_stream_si512(reinterpret_cast<__m512i*>(to), bit_cast<__m512i>(value));
#elif defined(__AVX2__)
  _mm256_stream_si256(reinterpret_cast<__m256i*>(to), bit_cast<__m256i>(value));
#elif defined(__SSE2__)
  _mm_stream_si128(reinterpret_cast<__m128i*>(to), bit_cast<__m128i>(value));
#else
  store(to, value);
#endif
}

// Orders stores past the caches before whatever the thread does next.
CLDFAST_HD void store_fence() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

CLDFAST_CASTS(F32, U32, I32)
CLDFAST_CASTS(F64, U64, I64)

CLDFAST_HD F32 select(I32 condition, F32 yes, F32 no) { return condition ? yes : no; }
CLDFAST_HD F64 select(I64 condition, F64 yes, F64 no) { return condition ? yes : no; }

CLDFAST_HD U64 multiply_low(U64 a, uint32_t b) {
#if defined(__AVX512F__)
  return bit_cast<U64>(_mm512_mul_epu32(bit_cast<__m512i>(a), _mm512_set1_epi64(b)));
#elif defined(__AVX2__)
  return bit_cast<U64>(_mm256_mul_epu32(bit_cast<__m256i>(a), _mm256_set1_epi64x(b)));
#elif defined(__SSE2__)
  return bit_cast<U64>(_mm_mul_epu32(bit_cast<__m128i>(a), _mm_set1_epi64x(b)));
#elif defined(__aarch64__)
  return bit_cast<U64>(vmull_u32(vmovn_u64(bit_cast<uint64x2_t>(a)), vdup_n_u32(b)));
#else
  return (a & 0xFFFFFFFFu) * b;
#endif
}

#if defined(__AVX512F__)
CLDFAST_HD F32 fused(F32 a, F32 b, F32 c) { return _mm512_fmadd_ps(a, b, c); }
CLDFAST_HD F64 fused(F64 a, F64 b, F64 c) { return _mm512_fmadd_pd(a, b, c); }
#elif defined(__FMA__)
CLDFAST_HD F32 fused(F32 a, F32 b, F32 c) { return _mm256_fmadd_ps(a, b, c); }
CLDFAST_HD F64 fused(F64 a, F64 b, F64 c) { return _mm256_fmadd_pd(a, b, c); }
#elif defined(__aarch64__)
CLDFAST_HD F32 fused(F32 a, F32 b, F32 c) { return vfmaq_f32(c, a, b); }
CLDFAST_HD F64 fused(F64 a, F64 b, F64 c) { return vfmaq_f64(c, a, b); }
#else
#define CLDFAST_NO_FMA
// A product of two floats is exact in double.
CLDFAST_HD F32 fused(F32 a, F32 b, F32 c) {
  F32 result;
  for (size_t i = 0; i < sizeof(F32) / 4; ++i) {
    result[i] = static_cast<float>(static_cast<double>(a[i]) * b[i] + c[i]);
  }
  return result;
}

// Dekker (1971): 2^27 + 1 splits a double into two halves whose products are exact.
CLDFAST_HD F64 high_half(F64 a) {
  const F64 scaled = a * 134217729.0;
  return scaled - (scaled - a);
}
CLDFAST_HD F64 fused(F64 a, F64 b, F64 c) {
  const F64 product = a * b;
  const F64 a1 = high_half(a), a2 = a - a1, b1 = high_half(b), b2 = b - b1;
  return (product + c) + (((a1 * b1 - product) + a1 * b2 + a2 * b1) + a2 * b2);
}
#endif

#if defined(CLDFAST_NO_FMA)
CLDFAST_HD F32 multiply_add(F32 a, F32 b, F32 c) { return a * b + c; }
CLDFAST_HD F64 multiply_add(F64 a, F64 b, F64 c) { return a * b + c; }
#else
CLDFAST_HD F32 multiply_add(F32 a, F32 b, F32 c) { return fused(a, b, c); }
CLDFAST_HD F64 multiply_add(F64 a, F64 b, F64 c) { return fused(a, b, c); }
#endif

CLDFAST_HD F32 int_to_float(I32 value) { return __builtin_convertvector(value, F32); }
CLDFAST_HD I32 float_to_int(F32 value) { return __builtin_convertvector(value, I32); }

// 1.5 * 2^52 has room for the integer in its low mantissa bits, below its own top bits.
CLDFAST_HD F64 int_to_float(I64 value) {
  const F64 room = F64{} + 0x1.8p52;
  return bit_cast<F64>(bit_cast<I64>(room) + value) - room;
}

// The halves of a word convert exactly; the sum rounds once.
CLDFAST_HD F32 word_to_float(U32 word) {
#if defined(__AVX512F__)
  return _mm512_cvtepu32_ps(bit_cast<__m512i>(word));
#else
  return multiply_add(int_to_float(signed_of(word >> 16)), F32{} + 65536.0f,
                      int_to_float(signed_of(word & 0xFFFFu)));
#endif
}
CLDFAST_HD F64 word_to_float(U64 word) { return int_to_float(signed_of(word)); }

CLDFAST_HD F32 inverse_root(F32 x) {
#if defined(__AVX512F__)
  return _mm512_rsqrt14_ps(x);
#elif defined(__AVX2__)
  // 12 bits, and a Newton step.
  const F32 guess = _mm256_rsqrt_ps(x);
  return guess * (1.5f - (0.5f * x) * (guess * guess));
#else
  F32 root;
  for (size_t i = 0; i < sizeof(F32) / 4; ++i) root[i] = __builtin_sqrtf(x[i]);
  return 1.0f / root;
#endif
}

CLDFAST_HD F64 inverse_root(F64 x) {
#if defined(__AVX512F__)
  return 1.0 / bit_cast<F64>(_mm512_sqrt_pd(x));
#elif defined(__AVX2__)
  return 1.0 / bit_cast<F64>(_mm256_sqrt_pd(x));
#else
  F64 root;
  for (size_t i = 0; i < sizeof(F64) / 8; ++i) root[i] = __builtin_sqrt(x[i]);
  return 1.0 / root;
#endif
}

// Two vectors worked on side by side: one chain of dependent instructions leaves most of a core idle.
template <class V>
struct Duo {
  V a, b;
};
template <class V>
Duo(V, V) -> Duo<V>;

#define CLDFAST_DUO_OPERATOR(op)                    \
  template <class V, class W>                       \
  CLDFAST_HD auto operator op(Duo<V> x, Duo<W> y) { \
    return Duo{x.a op y.a, x.b op y.b};             \
  }                                                 \
  template <class V, class S>                       \
  CLDFAST_HD auto operator op(Duo<V> x, S y) {      \
    return Duo{x.a op y, x.b op y};                 \
  }
CLDFAST_DUO_OPERATOR(+)
CLDFAST_DUO_OPERATOR(-)
CLDFAST_DUO_OPERATOR(*)
CLDFAST_DUO_OPERATOR(&)
CLDFAST_DUO_OPERATOR(|)
CLDFAST_DUO_OPERATOR(^)
CLDFAST_DUO_OPERATOR(<<)
CLDFAST_DUO_OPERATOR(>>)
CLDFAST_DUO_OPERATOR(<)
#undef CLDFAST_DUO_OPERATOR

#define CLDFAST_DUO_FUNCTION(name)            \
  template <class... V>                       \
  CLDFAST_HD auto name(Duo<V>... x) {         \
    return Duo{name(x.a...), name(x.b...)};   \
  }
CLDFAST_DUO_FUNCTION(bits_of)
CLDFAST_DUO_FUNCTION(float_of)
CLDFAST_DUO_FUNCTION(signed_of)
CLDFAST_DUO_FUNCTION(int_to_float)
CLDFAST_DUO_FUNCTION(float_to_int)
CLDFAST_DUO_FUNCTION(word_to_float)
CLDFAST_DUO_FUNCTION(inverse_root)
CLDFAST_DUO_FUNCTION(multiply_add)
CLDFAST_DUO_FUNCTION(fused)
CLDFAST_DUO_FUNCTION(select)
#undef CLDFAST_DUO_FUNCTION

template <class V>
CLDFAST_HD Duo<V> operator-(Duo<V> x) {
  return {-x.a, -x.b};
}
template <class V>
CLDFAST_HD Duo<V> multiply_low(Duo<V> x, uint32_t y) {
  return {multiply_low(x.a, y), multiply_low(x.b, y)};
}

// A vector's two halves in double.
CLDFAST_HD Duo<F64> widened(F32 value) {
#if defined(__AVX512F__)
  return {_mm512_cvtps_pd(_mm512_castps512_ps256(value)),
          _mm512_cvtps_pd(_mm512_extractf32x8_ps(value, 1))};
#elif defined(__AVX2__)
  return {_mm256_cvtps_pd(_mm256_castps256_ps128(value)),
          _mm256_cvtps_pd(_mm256_extractf128_ps(value, 1))};
#else
  F32Half halves[2];
  memcpy(halves, &value, sizeof(value));
  return {__builtin_convertvector(halves[0], F64), __builtin_convertvector(halves[1], F64)};
#endif
}

}  // namespace
}  // namespace cldfast::CLDFAST_LEVEL
