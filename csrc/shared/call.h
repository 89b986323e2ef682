// What every operation is told: planes by address and strides, matrices, and the address of noise.
// Plain data, no Python and no torch. cldfast/kernels/backends/reference.py specifies the operations.
#pragma once

#include <cstdint>
#include <utility>

#include "shared/arithmetic.h"
#include "shared/limits.h"

namespace cldfast {

enum class Dtype : int32_t { float32, float64, bfloat16, float16 };

// In bytes.
CLDFAST_HD constexpr int64_t size_of(Dtype dtype) {
  return dtype == Dtype::float32 ? 4 : dtype == Dtype::float64 ? 8 : 2;
}

// One scalar per coordinate. Coordinate j = c * inner + s of row b lies at data[b * batch_stride +
// c * channel_stride + s * inner_stride], in elements. Contiguous: channel_stride = inner,
// inner_stride = 1.
struct Plane {
  void* data;
  int64_t batch_stride;
  int64_t channel_stride;
  int64_t inner_stride;
  Dtype dtype;
};

struct Table;

// Where the normals of a call begin: a pair of normals is addressed by its flat index.
struct NoiseAddress {
  uint64_t seed;
  uint64_t first_pair;  // of the first row's first coordinate
  uint32_t stage_index;
  uint32_t stream;

  // The address of the normals that come so many pairs later.
  CLDFAST_HD NoiseAddress after(int64_t pairs) const {
    return {seed, first_pair + static_cast<uint64_t>(pairs), stage_index, stream};
  }
};

struct Call {
  int64_t rows;      // B
  int64_t channels;  // C
  int64_t inner;     // S, the product of the spatial sizes
  Dtype compute;     // the state's dtype, float32 or float64

  int inputs, results;  // planes that are read, and planes that are written
  Plane input[MOST_PLANES], result[MOST_PLANES];
  bool by_pixel;  // channels and inner positions have changed places, see `walk_by_pixel`

  // A matrix for each row, or in a stage one for all rows. On the CPU the matrices may be those of a
  // table at each row's time.
  const double* weights;
  const Table* table;
  const double* times;  // (rows)
  uint64_t used;        // bit j: some matrix has a number other than 0 in column j, so plane j is read

  CLDFAST_HD int64_t width() const { return channels * inner; }  // D
  CLDFAST_HD int64_t pairs() const { return rows * width(); }
};

namespace CLDFAST_LEVEL {
namespace {

template <class Visit>
void each_plane(Call& call, const Visit& visit) {
  for (int j = 0; j < call.inputs; ++j) visit(call.input[j]);
  for (int k = 0; k < call.results; ++k) visit(call.result[k]);
}

// In channels-last images the channels of a pixel lie side by side. Where that holds for all planes of a
// call, channels and inner positions change places, so that kernels walk through memory in order.
inline void walk_by_pixel(Call& call) {
  call.by_pixel = call.channels > 1 && call.inner > 1;
  each_plane(call, [&](const Plane& plane) { call.by_pixel &= plane.channel_stride == 1; });
  if (!call.by_pixel) return;
  std::swap(call.channels, call.inner);
  each_plane(call, [](Plane& plane) { std::swap(plane.channel_stride, plane.inner_stride); });
}

}  // namespace
}  // namespace CLDFAST_LEVEL

}  // namespace cldfast
