// Dense planes, by warps: a lane holds quads of neighbouring pairs.
#pragma once

#include "cuda/lanes.h"
#include "cuda/stage_launch.h"

namespace cldfast::CLDFAST_LEVEL {
namespace {

// The quads of one lane: quad `lane` of the first and of the second half of a warp's 64. Neighbouring
// lanes hold neighbouring quads, so accesses to float planes are dense over the warp. Past the end a
// lane reads a quad that exists, and writes none.
struct Quads {
  int64_t unit[2];
  uint32_t row[2], column[2];
  bool valid[2];
  bool odd;  // the lane

  CLDFAST_DEVICE Quads(const StageLaunch& launch, int64_t tile, int lane) : odd(lane & 1) {
    CLDFAST_UNROLL for (int g = 0; g < 2; ++g) {
      unit[g] = (tile * 2 + g) * LANES + lane;
      valid[g] = unit[g] < launch.units;
      // A lane of the same parity, so that wide accesses stay aligned.
      if (!valid[g]) unit[g] = odd && launch.units > 1 ? 1 : 0;
      const int64_t quotient = launch.by_row.quotient(unit[g]);
      row[g] = static_cast<uint32_t>(quotient);
      column[g] = QUAD * static_cast<uint32_t>(unit[g] - quotient * launch.by_row.value);
    }
  }

  // The same of quads `quad` and `quad + LANES` of one row, which ends before `end`.
  CLDFAST_DEVICE Quads(int64_t row_index, int64_t quads_of_row, int64_t quad, int64_t end, int lane)
      : odd(lane & 1) {
    CLDFAST_UNROLL for (int g = 0; g < 2; ++g) {
      int64_t in_row = quad + g * LANES + lane;
      valid[g] = in_row < end;
      if (!valid[g]) in_row = odd && quads_of_row > 1 ? 1 : 0;
      unit[g] = row_index * quads_of_row + in_row;
      row[g] = static_cast<uint32_t>(row_index);
      column[g] = QUAD * static_cast<uint32_t>(in_row);
    }
  }

  // The noise address of the first pair of a quad.
  CLDFAST_DEVICE uint64_t address(uint64_t first_pair, int g) const {
    return first_pair + static_cast<uint64_t>(QUAD * unit[g]);
  }

  // Products of 32-bit numbers, which `LaunchShape::take` has seen to be enough.
  template <class E>
  CLDFAST_DEVICE E* at(const Plane& plane, int g) const {
    const uint32_t stride = static_cast<uint32_t>(plane.batch_stride);  // in bytes
    char* row_start = static_cast<char*>(plane.data) + static_cast<uint64_t>(row[g]) * stride;
    return reinterpret_cast<E*>(row_start + column[g] * static_cast<uint32_t>(sizeof(E)));
  }

  // The first quads of this lane and its neighbour, or their second ones: the even lane's comes first.
  CLDFAST_DEVICE Half8* eight(const Plane& plane, bool second) const {
    uint16_t* quad = second ? at<uint16_t>(plane, 1) : at<uint16_t>(plane, 0);
    return reinterpret_cast<Half8*>(quad - (odd ? QUAD : 0));
  }
};

CLDFAST_DEVICE Half4 from_neighbour(Half4 mine) {
  return {{__shfl_xor_sync(WARP, mine.pair[0], 1), __shfl_xor_sync(WARP, mine.pair[1], 1)}};
}

// Eight 16-bit numbers in one access: the even lane of two reads the first quads of both, the odd lane
// the second ones, and they swap what the other needs. All lanes of a warp call this together.
CLDFAST_DEVICE void load_wide(const Plane& plane, const Quads& quads, const bool wanted[2], Half4 quad[2]) {
  const bool odd = quads.odd;
  Half8 own = {};
  if (odd ? wanted[1] : wanted[0]) own = *quads.eight(plane, odd);
  const Half4 swapped = from_neighbour(odd ? own.half[0] : own.half[1]);
  quad[0] = odd ? swapped : own.half[0];
  quad[1] = odd ? own.half[1] : swapped;
}

CLDFAST_DEVICE void store_wide(const Plane& plane, const Quads& quads, const Half4 quad[2]) {
  const bool odd = quads.odd;
  const Half4 swapped = from_neighbour(odd ? quad[0] : quad[1]);
  if (odd ? quads.valid[1] : quads.valid[0]) {
    *quads.eight(plane, odd) = {{odd ? swapped : quad[0], odd ? quad[1] : swapped}};
  }
}

// `PLAIN` planes are float32.
template <bool PLAIN>
CLDFAST_DEVICE void load_quads(const Plane& plane, const Quads& quads, const bool wanted[2],
                               float x[2][QUAD]) {
  if (!PLAIN && plane.wide) {
    Half4 quad[2];
    load_wide(plane, quads, wanted, quad);
    CLDFAST_UNROLL for (int g = 0; g < 2; ++g) widen(quad[g], plane.dtype, x[g]);
    return;
  }
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

template <bool PLAIN>
CLDFAST_DEVICE void store_quads(const Plane& plane, const Quads& quads, const float y[2][QUAD]) {
  if (!PLAIN && plane.wide) {
    Half4 quad[2];
    CLDFAST_UNROLL for (int g = 0; g < 2; ++g) quad[g] = narrow(y[g], plane.dtype);
    store_wide(plane, quads, quad);
    return;
  }
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

// y[k] += weight(g, k) x for every k, g the quad's number.
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
