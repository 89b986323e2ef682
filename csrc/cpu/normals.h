// Addressed words and normals: several vectors at a time, and in the order in which kernels walk pairs.
#pragma once

#include "cpu/planes.h"
#include "cpu/simd.h"
// Below cpu/simd.h, which declares what it calls.
#include "shared/philox.h"

namespace cldfast::CLDFAST_LEVEL {
namespace {

// Pairs whose normals are made at once: two vectors of 64-bit lanes hold the words of as many pairs as
// there are 32-bit lanes in them.
constexpr int64_t LANES = VECTOR_BYTES / 4;
constexpr int64_t GROUP = 2 * LANES;

// Words of GROUP pairs from an even one on, in the order of the pairs.
CLDFAST_HD void group_words(const NoiseAddress& noise, Duo<U32>& radius, Duo<U32>& angle) {
  U64 lane = {};
  for (int64_t i = 0; i < LANES / 2; ++i) lane[i] = i;
  const uint64_t half = noise.first_pair >> 1;
  const Duo<U64> halves = {lane + half, lane + (half + LANES / 2)};
  const Words<Duo<U64>> words =
      philox4x32(pair_counter(halves, noise.stage_index, noise.stream), noise.seed);
  constexpr uint64_t LOW = 0xFFFFFFFFu;
  const Duo<U64> wide_radius = (words.w0 & LOW) | (words.w2 << 32);
  const Duo<U64> wide_angle = (words.w1 & LOW) | (words.w3 << 32);
  radius = {bit_cast<U32>(wide_radius.a), bit_cast<U32>(wide_radius.b)};
  angle = {bit_cast<U32>(wide_angle.a), bit_cast<U32>(wide_angle.b)};
}

template <class F, class T>
CLDFAST_HD void store(T* to, Duo<F> value) {
  store(to, value.a);
  store(to + sizeof(F) / sizeof(T), value.b);
}

CLDFAST_HD void group_normals(Duo<U32> radius, Duo<U32> angle, float* z_x, float* z_v) {
  Duo<F32> z_cos, z_sin;
  box_muller<float>(radius, angle, z_cos, z_sin);
  if (z_x) store(z_x, z_cos);
  if (z_v) store(z_v, z_sin);
}

// The words of one vector as two of 64-bit lanes.
CLDFAST_HD Duo<U64> widened(U32 words) {
  uint32_t lanes[LANES];
  store(lanes, words);
  return {__builtin_convertvector(load<U32Half>(lanes), U64),
          __builtin_convertvector(load<U32Half>(lanes + LANES / 2), U64)};
}

CLDFAST_HD void group_normals(U32 radius, U32 angle, double* z_x, double* z_v) {
  Duo<F64> z_cos, z_sin;
  box_muller<double>(widened(radius), widened(angle), z_cos, z_sin);
  if (z_x) store(z_x, z_cos);
  if (z_v) store(z_v, z_sin);
}

CLDFAST_HD void group_normals(Duo<U32> radius, Duo<U32> angle, double* z_x, double* z_v) {
  group_normals(radius.a, angle.a, z_x, z_v);
  group_normals(radius.b, angle.b, z_x ? z_x + LANES : nullptr, z_v ? z_v + LANES : nullptr);
}

// Normals of `count` pairs, rounded up to whole groups, from an even one on. `X` and `V` say which of
// the two are wanted.
template <bool X, bool V, class T>
void fill_normals(const NoiseAddress& noise, int64_t count, T* z_x, T* z_v) {
  alignas(64) uint32_t words[2][BLOCK + GROUP];
  for (int64_t i = 0; i < count; i += GROUP) {
    Duo<U32> radius, angle;
    group_words(noise.after(i), radius, angle);
    store(words[0] + i, radius);
    store(words[1] + i, angle);
  }
  for (int64_t i = 0; i < count; i += GROUP) {
    const Duo<U32> radius = {load<U32>(words[0] + i), load<U32>(words[0] + i + LANES)};
    const Duo<U32> angle = {load<U32>(words[1] + i), load<U32>(words[1] + i + LANES)};
    group_normals(radius, angle, X ? z_x + i : nullptr, V ? z_v + i : nullptr);
  }
}

// The normals of one block of pairs, in the order in which the pairs are walked.
template <class T>
class BlockNormals {
 public:
  // pixels: of a row that is walked by pixel, `width` pairs; else 1.
  BlockNormals(const NoiseAddress& noise, int64_t width, int64_t pixels)
      : noise_(noise), width_(width), pixels_(pixels) {}

  // Makes the normals wanted of at most BLOCK pairs, of one row if by pixel; returns where in `normals`
  // they begin.
  int64_t make(int64_t pair, int64_t count, bool x, bool v) {
    if (!x && !v) return 0;
    if (pixels_ == 1) return fill_run(pair, count, x ? normals[0] : nullptr, v ? normals[1] : nullptr);
    // Channel by channel, as they are addressed; whole pixels.
    const int64_t channels = width_ / pixels_;
    const int64_t row = pair / width_, first = pair % width_ / channels;
    const int64_t pixels = (pair % width_ + count - 1) / channels + 1 - first;
    T* from_x = x ? channel_[0] : nullptr;
    T* from_v = v ? channel_[1] : nullptr;
    for (int64_t c = 0; c < channels; ++c) {
      const int64_t odd = fill_run(row * width_ + c * pixels_ + first, pixels, from_x, from_v);
      if (x) move_strided<Way::out>(normals[0] + c, channels, from_x + odd, pixels);
      if (v) move_strided<Way::out>(normals[1] + c, channels, from_v + odd, pixels);
    }
    return pair % width_ - first * channels;
  }

  // A block that begins at an odd pair makes one more, groups are made whole, and so are pixels.
  static constexpr int64_t MORE = GROUP > 2 * PIXEL_CHANNELS ? GROUP : 2 * PIXEL_CHANNELS;
  alignas(64) T normals[2][BLOCK + MORE];

 private:
  // A flat run's normals, and the one before it where the run begins at an odd pair: returns 1 then.
  int64_t fill_run(int64_t pair, int64_t count, T* z_x, T* z_v) const {
    const NoiseAddress first = noise_.after(pair);
    const int64_t odd = static_cast<int64_t>(first.first_pair & 1);
    const auto fill = z_x ? (z_v ? fill_normals<true, true, T> : fill_normals<true, false, T>)
                          : fill_normals<false, true, T>;
    fill(first.after(-odd), count + odd, z_x, z_v);
    return odd;
  }

  const NoiseAddress noise_;
  const int64_t width_, pixels_;
  alignas(64) T channel_[2][BLOCK + GROUP];
};

void words(const NoiseAddress& noise, int64_t count, uint32_t* radius, uint32_t* angle) {
  const int64_t odd = static_cast<int64_t>(noise.first_pair & 1);
  for (int64_t i = -odd; i < count; i += GROUP) {
    Duo<U32> group_radius, group_angle;
    group_words(noise.after(i), group_radius, group_angle);
    uint32_t lanes[2][GROUP];
    store(lanes[0], group_radius);
    store(lanes[1], group_angle);
    for (int64_t j = i < 0 ? 1 : 0; j < shorter(GROUP, count - i); ++j) {
      radius[i + j] = lanes[0][j];
      angle[i + j] = lanes[1][j];
    }
  }
}

}  // namespace
}  // namespace cldfast::CLDFAST_LEVEL
