// What one CUDA thread does to its pairs. Compiles as host code too, where a lane works out what its
// neighbour would have sent it; so the tests run these very lines without a GPU.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "cuda_launch.h"
#include "cuda_residual_launch.h"

// Arrays of registers are indexed by constants only.
#if defined(__CUDACC__)
#define CLDFAST_UNROLL _Pragma("unroll")
#else
#define CLDFAST_UNROLL
#endif

namespace cldfast {
namespace CLDFAST_LEVEL {
namespace {

constexpr int LANES = 32;

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

CLDFAST_HD float widened(uint16_t bits, Dtype dtype) {
  if (dtype == Dtype::bfloat16) return bit_cast<float>(static_cast<uint32_t>(bits) << 16);
  return __half2float(bit_cast<__half>(bits));
}

CLDFAST_HD uint16_t narrowed(float value, Dtype dtype) {
  if (dtype == Dtype::bfloat16) return bit_cast<uint16_t>(__float2bfloat16_rn(value));
  return bit_cast<uint16_t>(__float2half_rn(value));
}

CLDFAST_HD void widen(Half4 from, Dtype dtype, float* to) {
  CLDFAST_UNROLL for (int i = 0; i < QUAD; ++i) {
    to[i] = widened(static_cast<uint16_t>(from.pair[i / 2] >> (16 * (i & 1))), dtype);
  }
}

CLDFAST_HD Half4 narrow(const float* from, Dtype dtype) {
  Half4 to;
  CLDFAST_UNROLL for (int i = 0; i < 2; ++i) {
    to.pair[i] = narrowed(from[2 * i], dtype) |
                 static_cast<uint32_t>(narrowed(from[2 * i + 1], dtype)) << 16;
  }
  return to;
}

// The quads of one lane: quad `lane` of the first and of the second half of a warp's 64. Neighbouring
// lanes hold neighbouring quads, so accesses to float planes are dense over the warp. Past the end a
// lane reads a quad that exists, and writes none.
struct Quads {
  int64_t unit[2];
  uint32_t row[2], column[2];
  bool valid[2];
  bool odd;  // the lane

  CLDFAST_HD Quads(const Launch& launch, int64_t tile, int lane) : odd(lane & 1) {
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
  CLDFAST_HD Quads(int64_t row_index, int64_t quads_of_row, int64_t quad, int64_t end, int lane)
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
  CLDFAST_HD uint64_t address(uint64_t first_pair, int g) const {
    return first_pair + static_cast<uint64_t>(QUAD * unit[g]);
  }

  // Products of 32-bit numbers, which `launch::takes_quads` has seen to be enough.
  template <class E>
  CLDFAST_HD E* at(const Plane& plane, int g) const {
    const uint32_t stride = static_cast<uint32_t>(plane.batch_stride);  // see `launch::prepare`
    char* row_start = static_cast<char*>(plane.data) + static_cast<uint64_t>(row[g]) * stride;
    return reinterpret_cast<E*>(row_start + column[g] * static_cast<uint32_t>(sizeof(E)));
  }

  // The first quads of this lane and its neighbour, or their second ones: the even lane's comes first.
  CLDFAST_HD Half8* eight(const Plane& plane, bool second) const {
    uint16_t* quad = second ? at<uint16_t>(plane, 1) : at<uint16_t>(plane, 0);
    return reinterpret_cast<Half8*>(quad - (odd ? QUAD : 0));
  }
};

#if defined(__CUDA_ARCH__)
CLDFAST_HD uint32_t from_neighbour(uint32_t value) {
  return __shfl_xor_sync(0xFFFFFFFFu, value, 1);
}
CLDFAST_HD Half4 from_neighbour(Half4 mine) {
  return {{from_neighbour(mine.pair[0]), from_neighbour(mine.pair[1])}};
}
#endif

// Eight 16-bit numbers in one access: the even lane of two reads the first quads of both, the odd lane
// the second ones, and they swap what the other needs. All lanes of a warp call this together.
CLDFAST_HD void load_wide(const Plane& plane, const Quads& quads, const bool wanted[2], Half4 quad[2]) {
  const bool odd = quads.odd;
  Half8 own = {};
  if (odd ? wanted[1] : wanted[0]) own = *quads.eight(plane, odd);
#if defined(__CUDA_ARCH__)
  const Half4 swapped = from_neighbour(odd ? own.half[0] : own.half[1]);
#else
  Half8 other = {};
  if (odd ? wanted[0] : wanted[1]) other = *quads.eight(plane, !odd);
  const Half4 swapped = odd ? other.half[1] : other.half[0];
#endif
  quad[0] = odd ? swapped : own.half[0];
  quad[1] = odd ? own.half[1] : swapped;
}

CLDFAST_HD void store_wide(const Plane& plane, const Quads& quads, const Half4 quad[2]) {
#if defined(__CUDA_ARCH__)
  const bool odd = quads.odd;
  const Half4 swapped = from_neighbour(odd ? quad[0] : quad[1]);
  if (odd ? quads.valid[1] : quads.valid[0]) {
    *quads.eight(plane, odd) = {{odd ? swapped : quad[0], odd ? quad[1] : swapped}};
  }
#else
  CLDFAST_UNROLL for (int g = 0; g < 2; ++g) {
    if (quads.valid[g]) *reinterpret_cast<Half4*>(quads.at<uint16_t>(plane, g)) = quad[g];
  }
#endif
}

// `PLAIN` planes are float32.
template <bool PLAIN>
CLDFAST_HD void load_quads(const Plane& plane, bool wide, const Quads& quads, const bool wanted[2],
                           float x[2][QUAD]) {
  if (!PLAIN && wide) {
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
CLDFAST_HD void store_quads(const Plane& plane, bool wide, const Quads& quads,
                            const float y[2][QUAD]) {
  if (!PLAIN && wide) {
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

// Entry `i` of the matrix of all rows as kernels keep it: LAUNCH_OUTPUTS rows, LAUNCH_COLUMNS apart.
template <class T>
CLDFAST_HD T matrix_entry(const Launch& launch, int64_t step, int i) {
  if (!launch.table) return static_cast<T>(launch.weights[i]);
  const int k = i / LAUNCH_COLUMNS, column = i % LAUNCH_COLUMNS;
  if (k >= launch.outputs || column >= launch.inputs + (launch.noisy ? 2 : 0)) return T(0);
  const int64_t row = step * launch.table_rows + launch.first_row + k;
  return static_cast<T>(launch.table[row * launch.table_columns + launch.column[column]]);
}

CLDFAST_HD uint32_t stage_index_of(const Launch& launch) {
  return launch.stage_index + (launch.step ? static_cast<uint32_t>(*launch.step) : 0u);
}

// Entry (k, column) of the matrix of a row: `shared` holds the one of all rows, LAUNCH_COLUMNS apart.
template <class T, bool OWN>
CLDFAST_HD T weight(const Launch& launch, const T* shared, int64_t row, int k, int column) {
  if (!OWN) return shared[k * LAUNCH_COLUMNS + column];
  const int64_t matrix = row * launch.table_rows + launch.first_row + k;
  return static_cast<T>(launch.table[matrix * launch.table_columns + column]);
}

// The normals of two pairs from the even address `pair` on: all four words of one call.
template <class T, class Call>
CLDFAST_HD void make_normals(const Call& launch, uint32_t stage_index, uint64_t pair, T z_x[2],
                             T z_v[2]) {
  using Word = typename Lane<T>::Unsigned;
  const Words<uint64_t> w =
      philox4x32(pair_counter<uint64_t>(pair >> 1, stage_index, launch.stream), launch.keys);
  const auto word = [](uint64_t wide) { return Word(static_cast<uint32_t>(wide)); };
  box_muller<T>(word(w.w0), word(w.w1), z_x[0], z_v[0]);
  box_muller<T>(word(w.w2), word(w.w3), z_x[1], z_v[1]);
}

// One lane's part of a warp's tile of 2 x 32 quads. The noise is made while the first inputs, all that
// most stages have, are on their way. PLAIN: all planes are float32, and there are no copies.
template <int OUTS, bool OWN, bool PLAIN>
CLDFAST_HD void stage_quads(const Launch& launch, const float* shared, uint32_t stage_index,
                            int64_t tile, int lane) {
  const Quads quads(launch, tile, lane);
  float y[OUTS][2][QUAD] = {};
  const auto entry = [&](int g, int k, int column) {
    if (OWN && k >= launch.outputs) return 0.0f;
    return weight<float, OWN>(launch, shared, quads.row[g], k, column);
  };
  const auto load = [&](int m, float x[2][QUAD]) {
    bool wanted[2] = {!OWN, !OWN};
    if (OWN) {
      CLDFAST_UNROLL for (int g = 0; g < 2; ++g) {
        CLDFAST_UNROLL for (int k = 0; k < OUTS; ++k) {
          wanted[g] = wanted[g] || entry(g, k, m) != 0.0f;
        }
      }
    }
    load_quads<PLAIN>(launch.input[m], launch.wide_input[m], quads, wanted, x);
  };
  const auto add = [&](int m, const float x[2][QUAD]) {
    CLDFAST_UNROLL for (int g = 0; g < 2; ++g) {
      CLDFAST_UNROLL for (int k = 0; k < OUTS; ++k) {
        const float w = entry(g, k, m);
        CLDFAST_UNROLL for (int i = 0; i < QUAD; ++i) {
          y[k][g][i] = multiply_add(w, x[g][i], y[k][g][i]);
        }
      }
    }
  };
  const auto add_noise = [&] {
    CLDFAST_UNROLL for (int g = 0; g < 2; ++g) {
      const uint64_t pair = quads.address(launch.first_pair, g);
      CLDFAST_UNROLL for (int i = 0; i < QUAD; i += 2) {
        float z_x[2], z_v[2];
        make_normals(launch, stage_index, pair + i, z_x, z_v);
        CLDFAST_UNROLL for (int k = 0; k < OUTS; ++k) {
          const float w_x = entry(g, k, launch.inputs), w_v = entry(g, k, launch.inputs + 1);
          CLDFAST_UNROLL for (int j = 0; j < 2; ++j) {
            y[k][g][i + j] = multiply_add(w_v, z_v[j], w_x * z_x[j]);
          }
        }
      }
    }
  };

  constexpr int AHEAD = OUTS <= 2 ? 3 : 4;
  float x[AHEAD][2][QUAD];
  CLDFAST_UNROLL for (int m = 0; m < AHEAD; ++m) {
    if (m < launch.inputs) load(m, x[m]);
  }
  if (launch.noisy) add_noise();
  CLDFAST_UNROLL for (int m = 0; m < AHEAD; ++m) {
    if (m < launch.inputs) add(m, x[m]);
  }
  for (int m = AHEAD; m < launch.inputs; ++m) {
    load(m, x[0]);
    add(m, x[0]);
  }
  CLDFAST_UNROLL for (int k = 0; k < OUTS; ++k) {
    if (k >= launch.outputs) continue;
    store_quads<PLAIN>(launch.output[k], false, quads, y[k]);
    if (!PLAIN && launch.copy[k].data) {
      store_quads<PLAIN>(launch.copy[k], launch.wide_copy[k], quads, y[k]);
    }
  }
}

template <class T>
CLDFAST_HD T load_one(const Plane& plane, int64_t at) {
  switch (plane.dtype) {
    case Dtype::float32: return static_cast<T>(static_cast<const float*>(plane.data)[at]);
    case Dtype::float64: return static_cast<T>(static_cast<const double*>(plane.data)[at]);
    default: return static_cast<T>(widened(static_cast<const uint16_t*>(plane.data)[at], plane.dtype));
  }
}

template <class T>
CLDFAST_HD void store_one(const Plane& plane, int64_t at, T value) {
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

  CLDFAST_HD Two(const Launch& launch, int64_t unit) {
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
  CLDFAST_HD Two(const ResidualLaunch& launch, int64_t row_index, int64_t unit) {
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

  CLDFAST_HD int64_t at(const Plane& plane, int i) const {
    return row[i] * plane.batch_stride + channel[i] * plane.channel_stride +
           position[i] * plane.inner_stride;
  }

  // The noise address of a pair.
  template <class Call>
  CLDFAST_HD uint64_t address(const Call& launch, int i) const {
    return launch.first_pair + static_cast<uint64_t>(row[i] * launch.width +
                                                     channel[i] * launch.inner + position[i]);
  }
};

// Two calls of the generator only where a channel begins at an odd pair.
template <class T, class Call>
CLDFAST_HD void two_normals(const Call& launch, uint32_t stage_index, const Two& two, T z_x[2],
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

template <class T, bool OWN>
CLDFAST_HD void stage_two(const Launch& launch, const T* shared, uint32_t stage_index,
                          int64_t unit) {
  const Two two(launch, unit);
  T y[LAUNCH_OUTPUTS][2] = {};
  const auto entry = [&](int i, int k, int column) {
    return k < launch.outputs ? weight<T, OWN>(launch, shared, two.row[i], k, column) : T(0);
  };
  const auto load = [&](int m, T x[2]) {
    CLDFAST_UNROLL for (int i = 0; i < 2; ++i) {
      bool used = !OWN;
      if (OWN) {
        CLDFAST_UNROLL for (int k = 0; k < LAUNCH_OUTPUTS; ++k) {
          used = used || entry(i, k, m) != T(0);
        }
      }
      const Plane& plane = launch.input[m];
      x[i] = two.valid[i] && used ? load_one<T>(plane, two.at(plane, i)) : T(0);
    }
  };
  const auto add = [&](int m, const T x[2]) {
    CLDFAST_UNROLL for (int i = 0; i < 2; ++i) {
      CLDFAST_UNROLL for (int k = 0; k < LAUNCH_OUTPUTS; ++k) {
        y[k][i] = multiply_add(entry(i, k, m), x[i], y[k][i]);
      }
    }
  };

  if (launch.noisy) {
    T z_x[2], z_v[2];
    two_normals(launch, stage_index, two, z_x, z_v);
    add(launch.inputs, z_x);
    add(launch.inputs + 1, z_v);
  }
  constexpr int AHEAD = 4;
  for (int first = 0; first < launch.inputs; first += AHEAD) {
    T x[AHEAD][2];
    CLDFAST_UNROLL for (int m = 0; m < AHEAD; ++m) {
      if (first + m < launch.inputs) load(first + m, x[m]);
    }
    CLDFAST_UNROLL for (int m = 0; m < AHEAD; ++m) {
      if (first + m < launch.inputs) add(first + m, x[m]);
    }
  }
  CLDFAST_UNROLL for (int i = 0; i < 2; ++i) {
    if (!two.valid[i]) continue;
    CLDFAST_UNROLL for (int k = 0; k < LAUNCH_OUTPUTS; ++k) {
      if (k >= launch.outputs) continue;
      store_one(launch.output[k], two.at(launch.output[k], i), y[k][i]);
      if (launch.copy[k].data) store_one(launch.copy[k], two.at(launch.copy[k], i), y[k][i]);
    }
  }
}

}  // namespace
}  // namespace CLDFAST_LEVEL
}  // namespace cldfast
