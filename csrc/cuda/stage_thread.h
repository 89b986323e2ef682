// What one CUDA thread does of a stage.
#pragma once

#include "cuda/fast_normals.h"
#include "cuda/quads.h"

namespace cldfast::CLDFAST_LEVEL {
namespace {

// Planes of any strides and dtypes: two pairs that are neighbours by address.
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
  CLDFAST_DEVICE uint64_t address(const StageLaunch& launch, uint64_t first_pair, int i) const {
    return first_pair + static_cast<uint64_t>(row[i] * launch.width + channel[i] * launch.inner +
                                              position[i]);
  }
};

// Where the normals of a launch are addressed. What a recorded step finds in device memory is the same for
// all threads; any other launch has it among its parameters.
template <bool IN_MEMORY>
struct Source {
  const StageLaunch& launch;

  CLDFAST_DEVICE explicit Source(const StageLaunch& of) : launch(of) {}
  CLDFAST_DEVICE uint64_t first_pair() const { return launch.noise.first_pair; }
  CLDFAST_DEVICE uint32_t stage_index() const { return launch.noise.stage_index; }
  CLDFAST_DEVICE const RoundKeys& keys() const { return launch.keys; }
};

template <>
struct Source<true> {
  const StageLaunch& launch;
  uint64_t before;
  uint32_t number;
  SeedKeys seed;

  CLDFAST_DEVICE explicit Source(const StageLaunch& of)
      : launch(of),
        before(static_cast<uint64_t>(of.step[2] * of.width)),
        number(static_cast<uint32_t>(of.step[0])),
        seed{static_cast<uint32_t>(of.step[1]), static_cast<uint32_t>(of.step[1] >> 32)} {}
  CLDFAST_DEVICE uint64_t first_pair() const { return launch.noise.first_pair + before; }
  CLDFAST_DEVICE uint32_t stage_index() const { return launch.noise.stage_index + number; }
  CLDFAST_DEVICE SeedKeys keys() const { return seed; }
};

// The normals of two pairs from the even address `pair` on, from the four words of one call.
template <class T, class Source>
CLDFAST_DEVICE void make_normals(const Source& source, uint64_t pair, T z_x[2], T z_v[2]) {
  using Word = Bits<T>;
  const Words<uint64_t> w = philox4x32(
      pair_counter<uint64_t>(pair >> 1, source.stage_index(), source.launch.noise.stream), source.keys());
  const auto word = [](uint64_t wide) { return Word(static_cast<uint32_t>(wide)); };
#if defined(CLDFAST_FAST_NORMALS)
  if constexpr (sizeof(T) == 4) {
    fast_box_muller(word(w.w0), word(w.w1), z_x[0], z_v[0]);
    fast_box_muller(word(w.w2), word(w.w3), z_x[1], z_v[1]);
    return;
  }
#endif
  box_muller<T>(word(w.w0), word(w.w1), z_x[0], z_v[0]);
  box_muller<T>(word(w.w2), word(w.w3), z_x[1], z_v[1]);
}

// The normals of any two pairs. Only where a channel begins at an odd pair are two calls needed.
template <class T, class Source>
CLDFAST_DEVICE void make_normals(const Source& source, const Twos& twos, T z_x[2], T z_v[2]) {
  const uint64_t first = twos.address(source.launch, source.first_pair(), 0);
  const uint64_t last = twos.valid[1] ? twos.address(source.launch, source.first_pair(), 1) : first;
  T x[2], v[2];
  make_normals(source, last & ~uint64_t(1), x, v);
  z_x[1] = last & 1 ? x[1] : x[0];
  z_v[1] = last & 1 ? v[1] : v[0];
  if ((first ^ last) > 1) make_normals(source, first & ~uint64_t(1), x, v);
  z_x[0] = first & 1 ? x[1] : x[0];
  z_v[0] = first & 1 ? v[1] : v[0];
}

// Entry `i` of the matrix of all rows, stored as LAUNCH_OUTPUTS rows of STAGE_COLUMNS.
template <class T>
CLDFAST_DEVICE T matrix_entry(const StageLaunch& launch, int64_t step, int i) {
  if (!launch.table) return static_cast<T>(launch.weights[i]);
  const int k = i / STAGE_COLUMNS, column = i % STAGE_COLUMNS;
  if (k >= launch.outputs || column >= launch.inputs + (launch.noisy ? 2 : 0)) return T(0);
  const int64_t row = step * launch.table_rows + launch.first_row + k;
  return static_cast<T>(launch.table[row * launch.table_columns + launch.column[column]]);
}

// Entry (k, column) of the matrix of a row; `shared` holds the matrix of all rows.
template <class T, int MATRIX>
CLDFAST_DEVICE T weight(const StageLaunch& launch, const T* shared, int64_t row, int k, int column) {
  if (MATRIX != OWN) return shared[k * STAGE_COLUMNS + column];
  const int64_t matrix = row * launch.table_rows + launch.first_row + k;
  return static_cast<T>(launch.table[matrix * launch.table_columns + column]);
}

// y[k] = weight(g, k, 0) z_x + weight(g, k, 1) z_v for every output k; g is the number of the quad.
template <int OUTS, class Source, class Weight>
CLDFAST_DEVICE void begin_with_noise(const Source& source, const Quads& quads, float y[OUTS][2][QUAD],
                                     const Weight& weight) {
  CLDFAST_UNROLL for (int g = 0; g < 2; ++g) {
    const uint64_t pair = quads.address(source.first_pair(), g);
    CLDFAST_UNROLL for (int i = 0; i < QUAD; i += 2) {
      float z_x[2], z_v[2];
      make_normals(source, pair + i, z_x, z_v);
      CLDFAST_UNROLL for (int k = 0; k < OUTS; ++k) {
        const float w_x = weight(g, k, 0), w_v = weight(g, k, 1);
        CLDFAST_UNROLL for (int j = 0; j < 2; ++j) {
          y[k][g][i + j] = multiply_add(w_v, z_v[j], w_x * z_x[j]);
        }
      }
    }
  }
}

// One lane's part of a warp's tile of 2 x 32 quads. The first inputs, all that most stages have, are
// loaded while the noise is made. PLAIN: all planes are float32, but for a network's output of 16 bits
// where there are INS inputs. There are INS inputs and OUTS outputs, or, where INS is 0, any number of
// inputs and at most OUTS outputs.
template <int OUTS, int INS, int MATRIX, bool PLAIN>
CLDFAST_DEVICE void stage_quads(const StageLaunch& launch, const float* shared,
                                const Source<MATRIX == RECORDED>& source, int64_t tile, int lane) {
  constexpr bool OF_EACH = MATRIX == OWN;
  const int inputs = INS ? INS : launch.inputs, outputs = INS ? OUTS : launch.outputs;
  const Quads quads(launch, tile, lane);
  float y[OUTS][2][QUAD] = {};
  const auto entry = [&](int g, int k, int column) {
    if (OF_EACH && k >= outputs) return 0.0f;
    return weight<float, MATRIX>(launch, shared, quads.row[g], k, column);
  };
  const auto load = [&](int m, float x[2][QUAD]) {
    bool wanted[2] = {!OF_EACH, !OF_EACH};
    CLDFAST_UNROLL for (int g = 0; OF_EACH && g < 2; ++g) {
      CLDFAST_UNROLL for (int k = 0; k < OUTS; ++k) wanted[g] = wanted[g] || entry(g, k, m) != 0.0f;
    }
    if (INS && !PLAIN) {
      load_halves(launch.input[m], quads, m == INS - 1, x);
    } else {
      load_quads<PLAIN>(launch.input[m], quads, wanted, x);
    }
  };
  const auto add = [&](int m, const float x[2][QUAD]) {
    add_plane<OUTS>(y, x, [&](int g, int k) { return entry(g, k, m); });
  };

  constexpr int AHEAD = INS ? INS : OUTS <= 2 ? 3 : 4;
  float x[AHEAD][2][QUAD];
  CLDFAST_UNROLL for (int m = 0; m < AHEAD; ++m) {
    if (m < inputs) load(m, x[m]);
  }
  if (launch.noisy) {
    begin_with_noise<OUTS>(source, quads, y,
                           [&](int g, int k, int z) { return entry(g, k, inputs + z); });
  }
  CLDFAST_UNROLL for (int m = 0; m < AHEAD; ++m) {
    if (m < inputs) add(m, x[m]);
  }
  for (int m = AHEAD; m < inputs; ++m) {
    load(m, x[0]);
    add(m, x[0]);
  }
  CLDFAST_UNROLL for (int k = 0; k < OUTS; ++k) {
    if (k < outputs) store_quads<(PLAIN || INS > 0)>(launch.output[k], quads, y[k]);
  }
}

// One lane's share of a piece of a row that has a matrix of its own, which the lane keeps: the perturbation
// of data makes OUTS planes of one plane and noise, all float32.
template <int OUTS>
CLDFAST_DEVICE void stage_piece(const StageLaunch& launch, int64_t row, int64_t piece, int lane) {
  const Source<false> source(launch);
  float w[OUTS][3];
  bool used = false;
  CLDFAST_UNROLL for (int k = 0; k < OUTS; ++k) {
    CLDFAST_UNROLL for (int m = 0; m < 3; ++m) w[k][m] = weight<float, OWN>(launch, nullptr, row, k, m);
    used = used || w[k][0] != 0.0f;
  }
  const bool wanted[2] = {used, used};
  const int64_t quads_of_row = launch.width / QUAD;
  const PieceUnits units(piece, PIECE / QUAD, quads_of_row);
  for (int64_t quad = units.begin; quad < units.end; quad += 2 * LANES) {
    const Quads quads(row, quads_of_row, quad, units.end, lane);
    float x[2][QUAD], y[OUTS][2][QUAD];
    load_quads<true>(launch.input[0], quads, wanted, x);
    begin_with_noise<OUTS>(source, quads, y, [&](int, int k, int z) { return w[k][1 + z]; });
    add_plane<OUTS>(y, x, [&](int, int k) { return w[k][0]; });
    CLDFAST_UNROLL for (int k = 0; k < OUTS; ++k) store_quads<true>(launch.output[k], quads, y[k]);
  }
}

template <class T, int MATRIX>
CLDFAST_DEVICE void stage_twos(const StageLaunch& launch, const T* shared,
                               const Source<MATRIX == RECORDED>& source, int64_t unit) {
  constexpr bool OF_EACH = MATRIX == OWN;
  const Twos twos(launch, unit);
  T y[LAUNCH_OUTPUTS][2] = {};
  const auto entry = [&](int i, int k, int column) {
    return k < launch.outputs ? weight<T, MATRIX>(launch, shared, twos.row[i], k, column) : T(0);
  };
  const auto load = [&](int m, T x[2]) {
    CLDFAST_UNROLL for (int i = 0; i < 2; ++i) {
      bool used = !OF_EACH;
      CLDFAST_UNROLL for (int k = 0; OF_EACH && k < LAUNCH_OUTPUTS; ++k) {
        used = used || entry(i, k, m) != T(0);
      }
      const Plane& plane = launch.input[m];
      x[i] = twos.valid[i] && used ? load_one<T>(plane, twos.at(plane, i)) : T(0);
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
    make_normals(source, twos, z_x, z_v);
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
    if (!twos.valid[i]) continue;
    CLDFAST_UNROLL for (int k = 0; k < LAUNCH_OUTPUTS; ++k) {
      if (k < launch.outputs) store_one(launch.output[k], twos.at(launch.output[k], i), y[k][i]);
    }
  }
}

}  // namespace
}  // namespace cldfast::CLDFAST_LEVEL
