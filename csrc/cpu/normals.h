// Runs of addressed words and normals, several vectors at a time.
#pragma once

#include "cpu/planes.h"
#include "cpu/simd.h"
// Below cpu/simd.h, which declares what it calls.
#include "shared/philox.h"

namespace cldfast {
namespace CLDFAST_LEVEL {
namespace {

// Pairs whose normals are made at once: two vectors of 64-bit lanes hold the words of as many pairs as
// there are 32-bit lanes in them.
constexpr int64_t LANES = VECTOR_BYTES / 4;
constexpr int64_t GROUP = 2 * LANES;

// Words of GROUP pairs from the even pair 2 `half` on, in the order of the pairs.
CLDFAST_HD void group_words(uint64_t half, uint64_t key, uint32_t stage_index, uint32_t stream,
                            Duo<U32>& radius, Duo<U32>& angle) {
  U64 lane = {};
  for (int64_t i = 0; i < LANES / 2; ++i) lane[i] = i;
  const Duo<U64> halves = {lane + half, lane + (half + LANES / 2)};
  const Words<Duo<U64>> words = philox4x32(pair_counter(halves, stage_index, stream), key);
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

// Normals of the pairs from the even `first_pair` on, `count` rounded up to whole groups. `X` and `V`
// say which of the two are wanted.
template <bool X, bool V, class T>
void fill_normals(uint64_t seed, uint64_t first_pair, int64_t count, uint32_t stage_index,
                  uint32_t stream, T* z_x, T* z_v) {
  alignas(64) uint32_t words[2][BLOCK + GROUP];
  for (int64_t i = 0; i < count; i += GROUP) {
    Duo<U32> radius, angle;
    group_words((first_pair + static_cast<uint64_t>(i)) >> 1, seed, stage_index, stream, radius, angle);
    store(words[0] + i, radius);
    store(words[1] + i, angle);
  }
  for (int64_t i = 0; i < count; i += GROUP) {
    const Duo<U32> radius = {load<U32>(words[0] + i), load<U32>(words[0] + i + LANES)};
    const Duo<U32> angle = {load<U32>(words[1] + i), load<U32>(words[1] + i + LANES)};
    group_normals(radius, angle, X ? z_x + i : nullptr, V ? z_v + i : nullptr);
  }
}

template <class T>
void fill_normals(uint64_t seed, uint64_t first_pair, int64_t count, uint32_t stage_index,
                  uint32_t stream, T* z_x, T* z_v) {
  const auto fill = z_x ? (z_v ? fill_normals<true, true, T> : fill_normals<true, false, T>)
                        : fill_normals<false, true, T>;
  fill(seed, first_pair, count, stage_index, stream, z_x, z_v);
}

void words(uint64_t seed, uint64_t first_pair, int64_t count, uint32_t stage_index, uint32_t stream,
           uint32_t* radius, uint32_t* angle) {
  const int64_t odd = static_cast<int64_t>(first_pair & 1);
  for (int64_t i = -odd; i < count; i += GROUP) {
    Duo<U32> group_radius, group_angle;
    group_words((first_pair + static_cast<uint64_t>(i)) >> 1, seed, stage_index, stream, group_radius,
                group_angle);
    uint32_t lanes[2][GROUP];
    store(lanes[0], group_radius);
    store(lanes[1], group_angle);
    for (int64_t j = i < 0 ? 1 : 0; j < shorter(GROUP, count - i); ++j) {
      radius[i + j] = lanes[0][j];
      angle[i + j] = lanes[1][j];
    }
  }
}

template <class T>
void normals_of(uint64_t seed, uint64_t first_pair, int64_t count, uint32_t stage_index,
                uint32_t stream, T* z_x, T* z_v) {
  alignas(64) T block[2][BLOCK + GROUP];
  const int64_t odd = static_cast<int64_t>(first_pair & 1);
  for (int64_t i = 0; i < count; i += BLOCK) {
    const int64_t part = shorter(BLOCK, count - i);
    fill_normals(seed, first_pair + static_cast<uint64_t>(i - odd), part + odd, stage_index, stream,
                 block[0], block[1]);
    move_dense<Way::in>(block[0] + odd, z_x + i, part);
    move_dense<Way::in>(block[1] + odd, z_v + i, part);
  }
}

void normals(uint64_t seed, uint64_t first_pair, int64_t count, uint32_t stage_index,
             uint32_t stream, Dtype dtype, void* z_x, void* z_v) {
  if (dtype == Dtype::float32) {
    normals_of(seed, first_pair, count, stage_index, stream, static_cast<float*>(z_x),
               static_cast<float*>(z_v));
  } else {
    normals_of(seed, first_pair, count, stage_index, stream, static_cast<double*>(z_x),
               static_cast<double*>(z_v));
  }
}

}  // namespace
}  // namespace CLDFAST_LEVEL
}  // namespace cldfast
