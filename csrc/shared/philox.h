// Philox4x32-10 and the normals that its words give; cldfast/kernels/philox.py specifies them.
//
// Written once for every width: `Word`, `Int` and so on are scalars or SIMD vectors. Generator: Salmon,
// Moraes, Dror, Shaw (2011), "Parallel random numbers: as easy as 1, 2, 3". Normals: Box, Muller (1958).
#pragma once

#include "shared/arithmetic.h"
#include "shared/polynomials.h"

namespace cldfast::CLDFAST_LEVEL {
namespace {

// Multipliers and Weyl key increments of philox4x32 (Salmon et al. 2011, table 2 and section 3.3).
constexpr uint32_t MULTIPLIER_0 = 0xD2511F53u;
constexpr uint32_t MULTIPLIER_1 = 0xCD9E8D57u;
constexpr uint32_t WEYL_0 = 0x9E3779B9u;
constexpr uint32_t WEYL_1 = 0xBB67AE85u;
constexpr int PHILOX_ROUNDS = 10;

// Four counter words, each in the low half of a 64-bit lane. What the high halves hold does not matter: a
// product reads low halves only. The high half of a product, shifted down, is the next word.
template <class Wide>
struct Words {
  Wide w0, w1, w2, w3;
};

template <class Wide>
CLDFAST_HD Words<Wide> philox_round(Words<Wide> c, uint32_t k0, uint32_t k1) {
  const Wide p0 = multiply_low(c.w0, MULTIPLIER_0);
  const Wide p1 = multiply_low(c.w2, MULTIPLIER_1);
  return {(p1 >> 32) ^ c.w1 ^ k0, p1, (p0 >> 32) ^ c.w3 ^ k1, p0};
}

// The keys of all rounds, which GPUs read from constant memory at no cost.
struct RoundKeys {
  uint32_t k0[PHILOX_ROUNDS], k1[PHILOX_ROUNDS];
};

inline RoundKeys round_keys(uint64_t key) {
  RoundKeys keys;
  for (int round = 0; round < PHILOX_ROUNDS; ++round) {
    const uint32_t number = static_cast<uint32_t>(round);
    keys.k0[round] = static_cast<uint32_t>(key) + number * WEYL_0;
    keys.k1[round] = static_cast<uint32_t>(key >> 32) + number * WEYL_1;
  }
  return keys;
}

template <class Wide>
CLDFAST_HD Words<Wide> philox4x32(Words<Wide> c, const RoundKeys& keys) {
  for (int round = 0; round < PHILOX_ROUNDS; ++round) {
    c = philox_round(c, keys.k0[round], keys.k1[round]);
  }
  return c;
}

// The keys of the rounds of a seed that is found in device memory, one made of the last.
struct SeedKeys {
  uint32_t k0, k1;
};

template <class Wide>
CLDFAST_HD Words<Wide> philox4x32(Words<Wide> c, SeedKeys key) {
  for (int round = 0; round < PHILOX_ROUNDS; ++round) {
    c = philox_round(c, key.k0, key.k1);
    key.k0 += WEYL_0;
    key.k1 += WEYL_1;
  }
  return c;
}

// Counter of the pairs 2 half and 2 half + 1.
template <class Wide>
CLDFAST_HD Words<Wide> pair_counter(Wide half, uint32_t stage_index, uint32_t stream) {
  const Wide zero = half ^ half;
  return {half, half >> 32, zero + stage_index, zero + stream};
}

template <class T>
struct NormalConstants;

// LN4_HIGH has so many trailing zeros that its products with 0..33 are exact; LN4_LOW and TURN_LOW are
// the remainders of 2 ln 2 and of 2 pi / 2^32. SQRT_HALF is the bit pattern of sqrt(1/2).
template <>
struct NormalConstants<float> {
  static constexpr int MANTISSA_BITS = 23;
  static constexpr uint32_t SQRT_HALF = 0x3F3504F3;
  static constexpr float LN4_HIGH = 0x1.62e4p+0f;
  static constexpr float LN4_LOW = 0x1.7f7d1cp-19f;
  static constexpr float TURN_HIGH = 0x1.921fb6p-30f;
  static constexpr float TURN_LOW = -0x1.777a5cp-55f;
};

template <>
struct NormalConstants<double> {
  static constexpr int MANTISSA_BITS = 52;
  static constexpr uint64_t SQRT_HALF = 0x3FE6A09E667F3BCD;
  static constexpr double LN4_HIGH = 0x1.62e42fefa3ap+0;
  static constexpr double LN4_LOW = -0x1.0ca86c3898dp-48;
  static constexpr double TURN_HIGH = 0x1.921fb54442d18p-30;
  static constexpr double TURN_LOW = 0x1.1a62633145c07p-84;
};

// What an angle's offset loses when it is rounded to T, from the integer and its rounding. A double
// loses nothing.
template <class F, class I>
CLDFAST_HD F offset_remainder(I offset, F rounded, float) {
  return int_to_float(offset - float_to_int(rounded));
}
template <class F, class I>
CLDFAST_HD F offset_remainder(I, F, double) {
  return F{};
}

// sqrt(-2 ln(w / 2^32)) as high + low, with w = round(round(word) + 1/2).
//
// w = 2^e m with m in [sqrt(1/2), sqrt(2)), f = m - 1:  -2 ln = (32 - e) ln 4 - 2 f + f^2 series(f).
// The first two terms are summed without error, so the result is good near ln 1 = 0 as well.
template <class T, class U, class F>
CLDFAST_HD void box_muller_radius(U word, F& high, F& low) {
  using C = NormalConstants<T>;
  constexpr Bits<T> ONE = 1;
  const F w = word_to_float(word) + T(0.5);
  const U bits = bits_of(w);
  // w >= 1/2 lies at most one octave below sqrt(1/2). That octave is added, so that the shifted number
  // is not negative.
  const U octave =
      (bits - C::SQRT_HALF + (ONE << C::MANTISSA_BITS)) >> C::MANTISSA_BITS;
  const F f = float_of(bits - (octave << C::MANTISSA_BITS) + (ONE << C::MANTISSA_BITS)) - T(1);
  const F halvings = int_to_float(signed_of(U{} + 33 - octave));
  const F base = halvings * C::LN4_HIGH;
  const F sum = base - (f + f);
  const F error = (base - sum) - (f + f);
  const F rest =
      multiply_add(f * f, log_series(f, T()), multiply_add(halvings, F{} + C::LN4_LOW, error));
  const F log = sum + rest;
  // ln 1 = 0 has no inverse root. Any positive number below all other values may take its place.
  const F tiny = F{} + T(1e-30);
  const F inverse = inverse_root(select(tiny < log, log, tiny));
  const F root = log * inverse;
  // One Newton step of the square root. It is kept apart, so that its low bits are not lost.
  const F step = (fused(-root, root, sum) + rest) * (inverse * T(0.5));
  high = root + step;
  low = (root - high) + step;
}

// Standard normals radius (cos, sin)(2 pi angle / 2^32) from a pair of words.
//
// The cosine is kept as 1 + t and the sine as angle + s, with the low parts of the products, so that each
// normal is within about one unit in the last place of the exact value.
template <class T, class U, class F>
CLDFAST_HD void box_muller(U radius_word, U angle_word, F& z_cos, F& z_sin) {
  using C = NormalConstants<T>;
  using Unsigned = Bits<T>;
  constexpr int TOP = 8 * static_cast<int>(sizeof(T)) - 32;  // a word's top bit to the sign bit
  constexpr Unsigned SIGN = Unsigned(1) << (8 * sizeof(T) - 1);
  constexpr Unsigned EIGHTH = Unsigned(1) << 29;
  F radius, radius_low;
  box_muller_radius<T>(radius_word, radius, radius_low);

  // Exact reduction to an eighth of a turn; bits 30 and 31 of `shifted` are the quarter turn.
  const U shifted = angle_word + EIGHTH;
  const auto offset = signed_of((shifted & (2 * EIGHTH - 1)) - EIGHTH);
  const F rounded = int_to_float(offset);
  const F angle = rounded * C::TURN_HIGH;
  const F turn = F{} + C::TURN_HIGH;
  const F angle_low =
      multiply_add(offset_remainder<F>(offset, rounded, T()), turn,
                   multiply_add(rounded, F{} + C::TURN_LOW, fused(rounded, turn, -angle)));
  const F square = angle * angle;
  const F t = multiply_add(square, cosine_series(square, T()), -(angle * angle_low));
  const F s = multiply_add(angle * square, sine_series(square, T()),
                           multiply_add(angle_low, t, angle_low));
  const F cosine = radius + multiply_add(radius, t, radius_low);
  const F sine = fused(radius, angle, multiply_add(radius, s, radius_low * angle));

  // Quarter turns 0, 1, 2, 3 send (cos, sin) to (c, s), (-s, c), (-c, -s), (s, -c).
  const U turned = shifted << TOP;
  const auto swap = signed_of(turned << 1) < 0;
  z_cos = float_of(bits_of(select(swap, sine, cosine)) ^ ((turned ^ (turned << 1)) & SIGN));
  z_sin = float_of(bits_of(select(swap, cosine, sine)) ^ (turned & SIGN));
}

}  // namespace
}  // namespace cldfast::CLDFAST_LEVEL
