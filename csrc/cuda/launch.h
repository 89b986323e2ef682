// What the launches of a stage and of a residual have in common. Host code, no CUDA.
#pragma once

#include <cstddef>
#include <cstdint>

#include "shared/call.h"

namespace cldfast {

// Neighbouring pairs that a thread of a vector kernel takes together: two calls of Philox.
constexpr int QUAD = 4;
// Rows are cut at multiples of so many pairs, whatever the batch. A warp takes a piece.
constexpr int64_t PIECE = 1024;
// From so many pairs on a row has two quads for every lane.
constexpr int64_t QUADS_FROM = 256;

inline int64_t pieces_of(int64_t width) { return (width + PIECE - 1) / PIECE; }

// Division by a constant. For dividends below 2^31 it is a product and a shift (Granlund, Montgomery 1994,
// "Division by invariant integers using multiplication"), for others the machine's division.
struct Divisor {
  int64_t value;
  uint32_t factor;
  int32_t shift;  // -1: too large for the product

  Divisor() = default;
  Divisor(int64_t divisor, int64_t largest_dividend) : value(divisor), factor(0), shift(-1) {
    if (largest_dividend >= int64_t(1) << 31) return;
    shift = 0;
    while ((int64_t(1) << shift) < divisor) ++shift;
    factor = static_cast<uint32_t>(
        (((uint64_t(1) << shift) - static_cast<uint64_t>(divisor)) << 32) / divisor + 1);
  }

  CLDFAST_HD int64_t quotient(int64_t dividend) const {
    if (shift < 0) return dividend / value;
    const uint32_t n = static_cast<uint32_t>(dividend);
    const uint32_t high = static_cast<uint32_t>(static_cast<uint64_t>(n) * factor >> 32);
    return (high + n) >> shift;
  }
};

struct LaunchShape {
  Dtype compute;
  int64_t rows, channels, inner;
  int64_t width;       // D
  int64_t pieces;      // of a row
  Divisor by_channel;  // by S, or, if a stage's `pixels`, by C
  Divisor by_piece;    // by the pieces of a row
  bool vector;         // threads take quads of dense planes, and compute in float32
  bool plain;          // all planes are float32

  explicit LaunchShape(const Call& call)
      : compute(call.compute),
        rows(call.rows),
        channels(call.channels),
        inner(call.inner),
        width(call.width()),
        pieces(pieces_of(width)),
        by_channel(inner, width),
        by_piece(pieces, rows * pieces),
        vector(compute == Dtype::float32 && rows < MOST_SHORT && width < MOST_SHORT),
        plain(true) {}

  // The plane as kernels take it. Each plane may rule out `vector` and `plain`.
  Plane take(Plane plane) {
    constexpr int64_t LIMIT = int64_t(1) << 32;
    const bool dense = (inner == 1 || plane.inner_stride == 1) &&
                       (channels == 1 || plane.channel_stride == inner);
    const int64_t size = size_of(plane.dtype);
    vector = vector && dense && aligned(plane) && (rows == 1 || plane.batch_stride * size < LIMIT);
    plain = plain && plane.dtype == Dtype::float32;
    return plane;
  }

  // The batch strides that vector kernels take are in bytes.
  void in_bytes(Plane* planes, int count) const {
    for (int i = 0; vector && i < count; ++i) planes[i].batch_stride *= size_of(planes[i].dtype);
  }

 private:
  // For fewer rows and columns, products with the 8 bytes of an element have 32 bits.
  static constexpr int64_t MOST_SHORT = int64_t(1) << 29;

  // Whether each quad of a row is one aligned access, or two of 16 bytes.
  bool aligned(const Plane& plane) const {
    const int64_t size = size_of(plane.dtype), bytes = QUAD * size < 16 ? QUAD * size : 16;
    const bool starts = rows == 1 || plane.batch_stride * size % bytes == 0;
    return starts && width % QUAD == 0 &&
           reinterpret_cast<uintptr_t>(plane.data) % static_cast<uintptr_t>(bytes) == 0;
  }
};

}  // namespace cldfast
