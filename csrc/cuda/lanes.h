// What the CUDA threads' code has in common: 16-bit numbers, and the normals of two pairs.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "cuda/launch.h"
#include "cuda/residual_launch.h"

#define CLDFAST_DEVICE __device__ __forceinline__
// Arrays of registers are indexed by constants only.
#define CLDFAST_UNROLL _Pragma("unroll")

namespace cldfast {
namespace CLDFAST_LEVEL {
namespace {

constexpr int LANES = 32;
constexpr unsigned WARP = 0xFFFFFFFFu;  // all lanes

// The units `begin` ... `end` - 1 of a piece of a row; the row's last piece may be shorter.
struct PieceUnits {
  int64_t begin, end;

  CLDFAST_DEVICE PieceUnits(int64_t piece, int64_t of_piece, int64_t of_row) : begin(piece * of_piece) {
    end = begin + of_piece < of_row ? begin + of_piece : of_row;
  }
};

// Four 16-bit numbers, and eight: what one lane holds, and what one wide access moves.
struct alignas(8) Half4 {
  uint32_t pair[2];
};
struct alignas(16) Half8 {
  Half4 half[2];
};
struct alignas(16) Float4 {
  float value[4];
};
struct alignas(16) Double2 {
  double value[2];
};

CLDFAST_DEVICE float widened(uint16_t bits, Dtype dtype) {
  if (dtype == Dtype::bfloat16) return bit_cast<float>(static_cast<uint32_t>(bits) << 16);
  return __half2float(bit_cast<__half>(bits));
}

CLDFAST_DEVICE uint16_t narrowed(float value, Dtype dtype) {
  if (dtype == Dtype::bfloat16) return bit_cast<uint16_t>(__float2bfloat16_rn(value));
  return bit_cast<uint16_t>(__float2half_rn(value));
}

CLDFAST_DEVICE void widen(Half4 from, Dtype dtype, float* to) {
  CLDFAST_UNROLL for (int i = 0; i < QUAD; ++i) {
    to[i] = widened(static_cast<uint16_t>(from.pair[i / 2] >> (16 * (i & 1))), dtype);
  }
}

CLDFAST_DEVICE Half4 narrow(const float* from, Dtype dtype) {
  Half4 to;
  CLDFAST_UNROLL for (int i = 0; i < 2; ++i) {
    to.pair[i] = narrowed(from[2 * i], dtype) |
                 static_cast<uint32_t>(narrowed(from[2 * i + 1], dtype)) << 16;
  }
  return to;
}

// The normals of two pairs from the even address `pair` on: all four words of one call.
template <class T, class Call>
CLDFAST_DEVICE void make_normals(const Call& launch, uint32_t stage_index, uint64_t pair, T z_x[2],
                             T z_v[2]) {
  using Word = typename Lane<T>::Unsigned;
  const Words<uint64_t> w =
      philox4x32(pair_counter<uint64_t>(pair >> 1, stage_index, launch.stream), launch.keys);
  const auto word = [](uint64_t wide) { return Word(static_cast<uint32_t>(wide)); };
  box_muller<T>(word(w.w0), word(w.w1), z_x[0], z_v[0]);
  box_muller<T>(word(w.w2), word(w.w3), z_x[1], z_v[1]);
}

}  // namespace
}  // namespace CLDFAST_LEVEL
}  // namespace cldfast
