// Dense planes: each lane of a warp holds quads, four neighbouring pairs.
#pragma once

#include "cuda/lanes.h"
#include "cuda/stage_launch.h"

namespace cldfast::CLDFAST_LEVEL {
namespace {

// The two quads of one lane, of the 64 quads of a warp: number `lane` of the first half and of the second
// half. Neighbouring lanes hold neighbouring quads, so that a warp's access to a plane is dense. A lane
// past the end reads a quad that exists, and writes none.
struct Quads {
  int64_t unit[2];
  uint32_t row[2], column[2];
  bool valid[2];

  CLDFAST_DEVICE Quads(const StageLaunch& launch, int64_t tile, int lane) {
    CLDFAST_UNROLL for (int g = 0; g < 2; ++g) {
      unit[g] = (tile * 2 + g) * LANES + lane;
      valid[g] = unit[g] < launch.units;
      if (!valid[g]) unit[g] = 0;
      const int64_t quotient = launch.by_row.quotient(unit[g]);
      row[g] = static_cast<uint32_t>(quotient);
      column[g] = QUAD * static_cast<uint32_t>(unit[g] - quotient * launch.by_row.value);
    }
  }

  // The same for the quads from `quad` on of one row, whose last one is `end` - 1.
  CLDFAST_DEVICE Quads(int64_t row_index, int64_t quads_of_row, int64_t quad, int64_t end, int lane) {
    CLDFAST_UNROLL for (int g = 0; g < 2; ++g) {
      int64_t in_row = quad + g * LANES + lane;
      valid[g] = in_row < end;
      if (!valid[g]) in_row = 0;
      unit[g] = row_index * quads_of_row + in_row;
      row[g] = static_cast<uint32_t>(row_index);
      column[g] = QUAD * static_cast<uint32_t>(in_row);
    }
  }

  // The noise address of the first pair of a quad.
  CLDFAST_DEVICE uint64_t address(uint64_t first_pair, int g) const {
    return first_pair + static_cast<uint64_t>(QUAD * unit[g]);
  }

  // 32-bit numbers are multiplied. `LaunchShape::take` has checked that they are large enough.
  template <class E>
  CLDFAST_DEVICE E* at(const Plane& plane, int g) const {
    const uint32_t stride = static_cast<uint32_t>(plane.batch_stride);  // in bytes
    char* row_start = static_cast<char*>(plane.data) + static_cast<uint64_t>(row[g]) * stride;
    return reinterpret_cast<E*>(row_start + column[g] * static_cast<uint32_t>(sizeof(E)));
  }
};

// PLAIN: the plane is float32.
template <bool PLAIN>
CLDFAST_DEVICE void load_quads(const Plane& plane, const Quads& quads, const bool wanted[2],
                               float x[2][QUAD]) {
  CLDFAST_UNROLL for (int g = 0; g < 2; ++g) {
    if (PLAIN || plane.dtype == Dtype::float32) {
      Float4 value = {};
      if (wanted[g]) value = *reinterpret_cast<const Float4*>(quads.at<float>(plane, g));
      CLDFAST_UNROLL for (int i = 0; i < QUAD; ++i) x[g][i] = value.value[i];
    } else if (plane.dtype == Dtype::float64) {
      CLDFAST_UNROLL for (int h = 0; h < 2; ++h) {
        Double2 value = {};
        if (wanted[g]) value = reinterpret_cast<const Double2*>(quads.at<double>(plane, g))[h];
        CLDFAST_UNROLL for (int i = 0; i < 2; ++i) {
          x[g][2 * h + i] = static_cast<float>(value.value[i]);
        }
      }
    } else {
      Half4 value = {};
      if (wanted[g]) value = *reinterpret_cast<const Half4*>(quads.at<uint16_t>(plane, g));
      widen(value, plane.dtype, x[g]);
    }
  }
}

// A plane of 16-bit numbers, if `half`, or of float32: what a network under autocast returns, beside a state.
CLDFAST_DEVICE void load_halves(const Plane& plane, const Quads& quads, bool half, float x[2][QUAD]) {
  const bool wanted[2] = {true, true};
  if (!half) return load_quads<true>(plane, quads, wanted, x);
  CLDFAST_UNROLL for (int g = 0; g < 2; ++g) {
    widen(*reinterpret_cast<const Half4*>(quads.at<uint16_t>(plane, g)), plane.dtype, x[g]);
  }
}

template <bool PLAIN>
CLDFAST_DEVICE void store_quads(const Plane& plane, const Quads& quads, const float y[2][QUAD]) {
  CLDFAST_UNROLL for (int g = 0; g < 2; ++g) {
    if (!quads.valid[g]) continue;
    if (PLAIN || plane.dtype == Dtype::float32) {
      Float4 value;
      CLDFAST_UNROLL for (int i = 0; i < QUAD; ++i) value.value[i] = y[g][i];
      *reinterpret_cast<Float4*>(quads.at<float>(plane, g)) = value;
    } else if (plane.dtype == Dtype::float64) {
      CLDFAST_UNROLL for (int h = 0; h < 2; ++h) {
        reinterpret_cast<Double2*>(quads.at<double>(plane, g))[h] = {y[g][2 * h], y[g][2 * h + 1]};
      }
    } else {
      *reinterpret_cast<Half4*>(quads.at<uint16_t>(plane, g)) = narrow(y[g], plane.dtype);
    }
  }
}

// y[k] += weight(g, k) x for every k; g is the number of the quad.
template <int OUTS, class Weight>
CLDFAST_DEVICE void add_plane(float y[OUTS][2][QUAD], const float x[2][QUAD], const Weight& weight) {
  CLDFAST_UNROLL for (int g = 0; g < 2; ++g) {
    CLDFAST_UNROLL for (int k = 0; k < OUTS; ++k) {
      const float w = weight(g, k);
      CLDFAST_UNROLL for (int i = 0; i < QUAD; ++i) {
        y[k][g][i] = multiply_add(w, x[g][i], y[k][g][i]);
      }
    }
  }
}

}  // namespace
}  // namespace cldfast::CLDFAST_LEVEL
