// The normals of one block of pairs, in the order in which a kernel walks them.
#pragma once

#include "cpu/normals.h"

namespace cldfast {
namespace CLDFAST_LEVEL {
namespace {

template <class T>
class BlockNormals {
 public:
  // Args: where the noise is addressed. width: pairs of a row; pixels: how many of the rows make one
  // sample, 1 if they were not turned into pixels.
  template <class Args>
  BlockNormals(const Args& args, int64_t width, int64_t pixels)
      : seed_(args.seed),
        first_pair_(args.first_pair),
        stage_index_(args.stage_index),
        stream_(args.stream),
        width_(width),
        pixels_(pixels) {}

  // Makes the normals wanted of at most BLOCK pairs; returns where in `normals` they begin.
  int64_t make(int64_t pair, int64_t count, bool x, bool v) {
    if (!x && !v) return 0;
    if (pixels_ == 1) {
      return fill_run(first_pair_ + static_cast<uint64_t>(pair), count, x ? normals[0] : nullptr,
                      v ? normals[1] : nullptr);
    }
    // Channel by channel, as they are addressed; whole pixels.
    const int64_t first = pair / width_, pixels = (pair + count - 1) / width_ + 1 - first;
    const int64_t sample = first / pixels_ * pixels_ * width_;
    T* from_x = x ? channel_[0] : nullptr;
    T* from_v = v ? channel_[1] : nullptr;
    for (int64_t c = 0; c < width_; ++c) {
      const int64_t flat = sample + c * pixels_ + first % pixels_;
      const int64_t odd = fill_run(first_pair_ + static_cast<uint64_t>(flat), pixels, from_x, from_v);
      if (x) move_strided<Way::out>(normals[0] + c, width_, from_x + odd, pixels);
      if (v) move_strided<Way::out>(normals[1] + c, width_, from_v + odd, pixels);
    }
    return pair - first * width_;
  }

  // A block that begins at an odd pair makes one more, groups are made whole, and so are pixels.
  static constexpr int64_t MORE = GROUP > 2 * PIXEL_CHANNELS ? GROUP : 2 * PIXEL_CHANNELS;
  alignas(64) T normals[2][BLOCK + MORE];

 private:
  // A flat run's normals, and the one before it where the run begins at an odd pair: returns 1 then.
  int64_t fill_run(uint64_t pair, int64_t count, T* z_x, T* z_v) const {
    const uint64_t odd = pair & 1;
    fill_normals(seed_, pair - odd, count + static_cast<int64_t>(odd), stage_index_, stream_, z_x, z_v);
    return static_cast<int64_t>(odd);
  }

  const uint64_t seed_, first_pair_;
  const uint32_t stage_index_, stream_;
  const int64_t width_, pixels_;
  alignas(64) T channel_[2][BLOCK + GROUP];
};

}  // namespace
}  // namespace CLDFAST_LEVEL
}  // namespace cldfast
