// What one CUDA thread does of a stage.
#pragma once

#include "cuda/quads.h"
#include "cuda/twos.h"

namespace cldfast::CLDFAST_LEVEL {
namespace {

// The normals of two pairs from the even address `pair` on: all four words of one call.
template <class T>
CLDFAST_DEVICE void make_normals(const StageLaunch& launch, uint32_t stage_index, uint64_t pair, T z_x[2],
                                 T z_v[2]) {
  using Word = Bits<T>;
  const Words<uint64_t> w =
      philox4x32(pair_counter<uint64_t>(pair >> 1, stage_index, launch.noise.stream), launch.keys);
  const auto word = [](uint64_t wide) { return Word(static_cast<uint32_t>(wide)); };
  box_muller<T>(word(w.w0), word(w.w1), z_x[0], z_v[0]);
  box_muller<T>(word(w.w2), word(w.w3), z_x[1], z_v[1]);
}

// Two calls of the generator only where a channel begins at an odd pair.
template <class T>
CLDFAST_DEVICE void make_normals(const StageLaunch& launch, uint32_t stage_index, const Twos& twos,
                                 T z_x[2], T z_v[2]) {
  const uint64_t first = twos.address(launch, 0);
  const uint64_t last = twos.valid[1] ? twos.address(launch, 1) : first;
  T x[2], v[2];
  make_normals(launch, stage_index, last & ~uint64_t(1), x, v);
  z_x[1] = last & 1 ? x[1] : x[0];
  z_v[1] = last & 1 ? v[1] : v[0];
  if ((first ^ last) > 1) make_normals(launch, stage_index, first & ~uint64_t(1), x, v);
  z_x[0] = first & 1 ? x[1] : x[0];
  z_v[0] = first & 1 ? v[1] : v[0];
}

// Entry `i` of the matrix of all rows as kernels keep it: LAUNCH_OUTPUTS rows, STAGE_COLUMNS apart.
template <class T>
CLDFAST_DEVICE T matrix_entry(const StageLaunch& launch, int64_t step, int i) {
  if (!launch.table) return static_cast<T>(launch.weights[i]);
  const int k = i / STAGE_COLUMNS, column = i % STAGE_COLUMNS;
  if (k >= launch.outputs || column >= launch.inputs + (launch.noisy ? 2 : 0)) return T(0);
  const int64_t row = step * launch.table_rows + launch.first_row + k;
  return static_cast<T>(launch.table[row * launch.table_columns + launch.column[column]]);
}

CLDFAST_DEVICE uint32_t stage_index_of(const StageLaunch& launch) {
  return launch.noise.stage_index + (launch.step ? static_cast<uint32_t>(*launch.step) : 0u);
}

// Entry (k, column) of the matrix of a row: `shared` holds the one of all rows, STAGE_COLUMNS apart.
template <class T, bool OWN>
CLDFAST_DEVICE T weight(const StageLaunch& launch, const T* shared, int64_t row, int k, int column) {
  if (!OWN) return shared[k * STAGE_COLUMNS + column];
  const int64_t matrix = row * launch.table_rows + launch.first_row + k;
  return static_cast<T>(launch.table[matrix * launch.table_columns + column]);
}

// y[k] = weight(g, k, 0) z_x + weight(g, k, 1) z_v for every output k, g the quad's number.
template <int OUTS, class Weight>
CLDFAST_DEVICE void begin_with_noise(const StageLaunch& launch, uint32_t stage_index, const Quads& quads,
                                     float y[OUTS][2][QUAD], const Weight& weight) {
  CLDFAST_UNROLL for (int g = 0; g < 2; ++g) {
    const uint64_t pair = quads.address(launch.noise.first_pair, g);
    CLDFAST_UNROLL for (int i = 0; i < QUAD; i += 2) {
      float z_x[2], z_v[2];
      make_normals(launch, stage_index, pair + i, z_x, z_v);
      CLDFAST_UNROLL for (int k = 0; k < OUTS; ++k) {
        const float w_x = weight(g, k, 0), w_v = weight(g, k, 1);
        CLDFAST_UNROLL for (int j = 0; j < 2; ++j) {
          y[k][g][i + j] = multiply_add(w_v, z_v[j], w_x * z_x[j]);
        }
      }
    }
  }
}

// One lane's part of a warp's tile of 2 x 32 quads. The noise is made while the first inputs, all that
// most stages have, are on their way. PLAIN: all planes are float32. INS: the number of inputs, and OUTS
// exactly that of outputs; 0 for any numbers, outputs up to OUTS.
template <int OUTS, int INS, bool OWN, bool PLAIN>
CLDFAST_DEVICE void stage_quads(const StageLaunch& launch, const float* shared, uint32_t stage_index,
                                int64_t tile, int lane) {
  const int inputs = INS ? INS : launch.inputs, outputs = INS ? OUTS : launch.outputs;
  const Quads quads(launch, tile, lane);
  float y[OUTS][2][QUAD] = {};
  const auto entry = [&](int g, int k, int column) {
    if (OWN && k >= outputs) return 0.0f;
    return weight<float, OWN>(launch, shared, quads.row[g], k, column);
  };
  const auto load = [&](int m, float x[2][QUAD]) {
    bool wanted[2] = {!OWN, !OWN};
    CLDFAST_UNROLL for (int g = 0; OWN && g < 2; ++g) {
      CLDFAST_UNROLL for (int k = 0; k < OUTS; ++k) wanted[g] = wanted[g] || entry(g, k, m) != 0.0f;
    }
    load_quads<PLAIN>(launch.input[m], quads, wanted, x);
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
    begin_with_noise<OUTS>(launch, stage_index, quads, y,
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
    if (k < outputs) store_quads<PLAIN>(launch.output[k], quads, y[k]);
  }
}

// One lane's share of a piece of a row with a matrix of its own, which it keeps: as data are perturbed,
// INS planes and noise to OUTS planes, all float32.
template <int OUTS, int INS>
CLDFAST_DEVICE void stage_piece(const StageLaunch& launch, uint32_t stage_index, int64_t row,
                                int64_t piece, int lane) {
  float w[OUTS][INS + 2];
  bool used[INS] = {};
  CLDFAST_UNROLL for (int k = 0; k < OUTS; ++k) {
    CLDFAST_UNROLL for (int m = 0; m < INS + 2; ++m) {
      w[k][m] = weight<float, true>(launch, nullptr, row, k, m);
      if (m < INS) used[m] = used[m] || w[k][m] != 0.0f;
    }
  }
  const int64_t quads_of_row = launch.width / QUAD;
  const PieceUnits units(piece, PIECE / QUAD, quads_of_row);
  for (int64_t quad = units.begin; quad < units.end; quad += 2 * LANES) {
    const Quads quads(row, quads_of_row, quad, units.end, lane);
    float x[INS][2][QUAD], y[OUTS][2][QUAD];
    CLDFAST_UNROLL for (int m = 0; m < INS; ++m) {
      const bool wanted[2] = {used[m], used[m]};
      load_quads<true>(launch.input[m], quads, wanted, x[m]);
    }
    begin_with_noise<OUTS>(launch, stage_index, quads, y,
                           [&](int, int k, int z) { return w[k][INS + z]; });
    CLDFAST_UNROLL for (int m = 0; m < INS; ++m) {
      add_plane<OUTS>(y, x[m], [&](int, int k) { return w[k][m]; });
    }
    CLDFAST_UNROLL for (int k = 0; k < OUTS; ++k) store_quads<true>(launch.output[k], quads, y[k]);
  }
}

template <class T, bool OWN>
CLDFAST_DEVICE void stage_twos(const StageLaunch& launch, const T* shared, uint32_t stage_index,
                          int64_t unit) {
  const Twos twos(launch, unit);
  T y[LAUNCH_OUTPUTS][2] = {};
  const auto entry = [&](int i, int k, int column) {
    return k < launch.outputs ? weight<T, OWN>(launch, shared, twos.row[i], k, column) : T(0);
  };
  const auto load = [&](int m, T x[2]) {
    CLDFAST_UNROLL for (int i = 0; i < 2; ++i) {
      bool used = !OWN;
      CLDFAST_UNROLL for (int k = 0; OWN && k < LAUNCH_OUTPUTS; ++k) {
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
    make_normals(launch, stage_index, twos, z_x, z_v);
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
