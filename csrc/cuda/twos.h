// Planes of any strides and dtypes: a thread takes two pairs.
#pragma once

#include "cuda/lanes.h"

namespace cldfast {
namespace CLDFAST_LEVEL {
namespace {

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

// The two pairs of one thread where planes have any strides.
struct Two {
  int64_t row[2], channel[2], position[2];
  bool valid[2];

  CLDFAST_DEVICE Two(const Launch& launch, int64_t unit) {
    if (launch.way == Way::pixels) {
      const int64_t rest = launch.by_channel.quotient(unit);
      const int64_t b = launch.by_row.quotient(rest);
      CLDFAST_UNROLL for (int i = 0; i < 2; ++i) {
        row[i] = b;
        channel[i] = unit - rest * launch.channels;
        position[i] = 2 * (rest - b * launch.by_row.value) + i;
        valid[i] = position[i] < launch.inner;
      }
    } else {
      CLDFAST_UNROLL for (int i = 0; i < 2; ++i) {
        const int64_t pair = 2 * unit + i - static_cast<int64_t>(launch.first_pair & 1);
        valid[i] = pair >= 0 && pair < launch.rows * launch.width;
        const int64_t safe = valid[i] ? pair : 0;
        row[i] = launch.by_row.quotient(safe);
        const int64_t j = safe - row[i] * launch.width;
        channel[i] = launch.by_channel.quotient(j);
        position[i] = j - channel[i] * launch.inner;
      }
    }
  }

  // Two `unit` of one row, whose pairs are two by two where their addresses are.
  CLDFAST_DEVICE Two(const ResidualLaunch& launch, int64_t row_index, int64_t unit) {
    const uint64_t start = launch.first_pair + static_cast<uint64_t>(row_index * launch.width);
    CLDFAST_UNROLL for (int i = 0; i < 2; ++i) {
      row[i] = row_index;
      if (launch.way == Way::pixels) {
        const int64_t half = launch.by_channel.quotient(unit);
        channel[i] = unit - half * launch.channels;
        position[i] = 2 * half + i;
        valid[i] = position[i] < launch.inner;
      } else {
        const int64_t j = 2 * unit + i - static_cast<int64_t>(start & 1);
        valid[i] = j >= 0 && j < launch.width;
        channel[i] = valid[i] ? launch.by_channel.quotient(j) : 0;
        position[i] = valid[i] ? j - channel[i] * launch.inner : 0;
      }
    }
  }

  CLDFAST_DEVICE int64_t at(const Plane& plane, int i) const {
    return row[i] * plane.batch_stride + channel[i] * plane.channel_stride +
           position[i] * plane.inner_stride;
  }

  // The noise address of a pair.
  template <class Call>
  CLDFAST_DEVICE uint64_t address(const Call& launch, int i) const {
    return launch.first_pair + static_cast<uint64_t>(row[i] * launch.width +
                                                     channel[i] * launch.inner + position[i]);
  }
};

// Two calls of the generator only where a channel begins at an odd pair.
template <class T, class Call>
CLDFAST_DEVICE void two_normals(const Call& launch, uint32_t stage_index, const Two& two, T z_x[2],
                            T z_v[2]) {
  const uint64_t first = two.address(launch, 0);
  const uint64_t last = two.valid[1] ? two.address(launch, 1) : first;
  T x[2], v[2];
  make_normals(launch, stage_index, last & ~uint64_t(1), x, v);
  z_x[1] = last & 1 ? x[1] : x[0];
  z_v[1] = last & 1 ? v[1] : v[0];
  if ((first ^ last) > 1) make_normals(launch, stage_index, first & ~uint64_t(1), x, v);
  z_x[0] = first & 1 ? x[1] : x[0];
  z_v[0] = first & 1 ? v[1] : v[0];
}

}  // namespace
}  // namespace CLDFAST_LEVEL
}  // namespace cldfast
