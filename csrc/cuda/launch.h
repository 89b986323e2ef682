// What the launches of a stage and of a residual have in common. Host code, no CUDA.
#pragma once

#include <cstddef>
#include <cstdint>

#include "shared/call.h"

namespace cldfast {

// What a thread of a vector kernel takes at a time: neighbouring pairs, two Philox calls.
constexpr int QUAD = 4;
// Pairs of a row to a warp, where that is how rows are cut: at these multiples, whatever the batch.
constexpr int64_t PIECE = 1024;
// Rows of fewer pairs have not a quad for every lane.
constexpr int64_t QUADS_FROM = 256;

inline int64_t pieces_of(int64_t width) { return (width + PIECE - 1) / PIECE; }

// Division by a constant: a product and a shift for dividends below 2^31 (Granlund, Montgomery 1994,
// "Division by invariant integers using multiplication"), the machine's division beyond.
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
  Divisor by_channel;  // by S, or by C where channels are fastest
  Divisor by_piece;    // by the pieces of a row
  bool vector;         // quads of dense planes, in float32
  bool plain;          // all planes are float32

  LaunchShape() = default;
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

  // A plane as it is launched. Planes decide whether the launch can be a vector kernel's.
  Plane take(Plane plane) {
    constexpr int64_t LIMIT = int64_t(1) << 32;
    const bool dense = (inner == 1 || plane.inner_stride == 1) &&
                       (channels == 1 || plane.channel_stride == inner);
    const int64_t size = size_of(plane.dtype);
    vector = vector && dense && aligned(plane, QUAD) && (rows == 1 || plane.batch_stride * size < LIMIT);
    plain = plain && plane.dtype == Dtype::float32;
    plane.wide = size == 2 && aligned(plane, 8);
    return plane;
  }

  // Vector kernels take batch strides in bytes.
  void in_bytes(Plane* planes, int count) const {
    for (int i = 0; vector && i < count; ++i) planes[i].batch_stride *= size_of(planes[i].dtype);
  }

 private:
  // Of rows and columns: products with elements' sizes of 8 bytes then fit 32 bits.
  static constexpr int64_t MOST_SHORT = int64_t(1) << 29;

  // Whether `count` neighbours of a row that starts at a multiple of `count` are one aligned access.
  bool aligned(const Plane& plane, int64_t count) const {
    const int64_t size = size_of(plane.dtype), bytes = count * size < 16 ? count * size : 16;
    const bool starts = rows == 1 || plane.batch_stride * size % bytes == 0;
    return starts && width % count == 0 &&
           reinterpret_cast<uintptr_t>(plane.data) % static_cast<uintptr_t>(bytes) == 0;
  }
};

}  // namespace cldfast
