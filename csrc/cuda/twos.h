// Planes of any strides and dtypes in a stage: a thread takes two pairs that are neighbours by address.
#pragma once

#include "cuda/lanes.h"
#include "cuda/stage_launch.h"

namespace cldfast::CLDFAST_LEVEL {
namespace {

struct Twos {
  int64_t row[2], channel[2], position[2];
  bool valid[2];

  CLDFAST_DEVICE Twos(const StageLaunch& launch, int64_t unit) {
    if (launch.pixels) {
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
        const int64_t pair = 2 * unit + i - static_cast<int64_t>(launch.noise.first_pair & 1);
        valid[i] = pair >= 0 && pair < launch.rows * launch.width;
        const int64_t safe = valid[i] ? pair : 0;
        row[i] = launch.by_row.quotient(safe);
        const int64_t j = safe - row[i] * launch.width;
        channel[i] = launch.by_channel.quotient(j);
        position[i] = j - channel[i] * launch.inner;
      }
    }
  }

  CLDFAST_DEVICE int64_t at(const Plane& plane, int i) const {
    return row[i] * plane.batch_stride + channel[i] * plane.channel_stride +
           position[i] * plane.inner_stride;
  }

  // The noise address of a pair.
  CLDFAST_DEVICE uint64_t address(const StageLaunch& launch, int i) const {
    return launch.noise.first_pair + static_cast<uint64_t>(row[i] * launch.width +
                                                           channel[i] * launch.inner + position[i]);
  }
};

}  // namespace
}  // namespace cldfast::CLDFAST_LEVEL
