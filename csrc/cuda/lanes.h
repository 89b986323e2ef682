// What the code of all CUDA threads shares: blocks, warps, and numbers of any dtype.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "cuda/launch.h"

#define CLDFAST_DEVICE __device__ __forceinline__
// Arrays of registers are indexed by constants only.
#define CLDFAST_UNROLL _Pragma("unroll")

namespace cldfast::CLDFAST_LEVEL {
namespace {

constexpr int LANES = 32;
constexpr unsigned WARP = 0xFFFFFFFFu;  // all lanes
constexpr int THREADS = 256;            // of a block
constexpr int WARPS = THREADS / LANES;

// The units `begin` ... `end` - 1 of a piece of a row; the row's last piece may be shorter.
struct PieceUnits {
  int64_t begin, end;

  CLDFAST_DEVICE PieceUnits(int64_t piece, int64_t of_piece, int64_t of_row) : begin(piece * of_piece) {
    end = begin + of_piece < of_row ? begin + of_piece : of_row;
  }
};

// Four 16-bit numbers, a lane's quad.
struct alignas(8) Half4 {
  uint32_t pair[2];
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

// One number of a plane, as T.
template <class T>
CLDFAST_DEVICE T load_one(const Plane& plane, int64_t at) {
  switch (plane.dtype) {
    case Dtype::float32: return static_cast<T>(static_cast<const float*>(plane.data)[at]);
    case Dtype::float64: return static_cast<T>(static_cast<const double*>(plane.data)[at]);
    default: return static_cast<T>(widened(static_cast<const uint16_t*>(plane.data)[at], plane.dtype));
  }
}

template <class T>
CLDFAST_DEVICE void store_one(const Plane& plane, int64_t at, T value) {
  switch (plane.dtype) {
    case Dtype::float32: static_cast<float*>(plane.data)[at] = static_cast<float>(value); break;
    case Dtype::float64: static_cast<double*>(plane.data)[at] = static_cast<double>(value); break;
    default:
      static_cast<uint16_t*>(plane.data)[at] = narrowed(static_cast<float>(value), plane.dtype);
  }
}

}  // namespace
}  // namespace cldfast::CLDFAST_LEVEL
