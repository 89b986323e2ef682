// What one CUDA thread does of a stage.
#pragma once

#include "cuda/quads.h"
#include "cuda/twos.h"

namespace cldfast {
namespace CLDFAST_LEVEL {
namespace {

// Entry `i` of the matrix of all rows as kernels keep it: LAUNCH_OUTPUTS rows, LAUNCH_COLUMNS apart.
template <class T>
CLDFAST_DEVICE T matrix_entry(const Launch& launch, int64_t step, int i) {
  if (!launch.table) return static_cast<T>(launch.weights[i]);
  const int k = i / LAUNCH_COLUMNS, column = i % LAUNCH_COLUMNS;
  if (k >= launch.outputs || column >= launch.inputs + (launch.noisy ? 2 : 0)) return T(0);
  const int64_t row = step * launch.table_rows + launch.first_row + k;
  return static_cast<T>(launch.table[row * launch.table_columns + launch.column[column]]);
}

CLDFAST_DEVICE uint32_t stage_index_of(const Launch& launch) {
  return launch.stage_index + (launch.step ? static_cast<uint32_t>(*launch.step) : 0u);
}

// Entry (k, column) of the matrix of a row: `shared` holds the one of all rows, LAUNCH_COLUMNS apart.
template <class T, bool OWN>
CLDFAST_DEVICE T weight(const Launch& launch, const T* shared, int64_t row, int k, int column) {
  if (!OWN) return shared[k * LAUNCH_COLUMNS + column];
  const int64_t matrix = row * launch.table_rows + launch.first_row + k;
  return static_cast<T>(launch.table[matrix * launch.table_columns + column]);
}

// One lane's part of a warp's tile of 2 x 32 quads. The noise is made while the first inputs, all that
// most stages have, are on their way. PLAIN: all planes are float32, and there are no copies. INS: the
// number of inputs, and OUTS exactly that of outputs; 0 for any numbers, outputs up to OUTS.
template <int OUTS, int INS, bool OWN, bool PLAIN>
CLDFAST_DEVICE void stage_quads(const Launch& launch, const float* shared, uint32_t stage_index,
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
          const float w_x = entry(g, k, inputs), w_v = entry(g, k, inputs + 1);
          CLDFAST_UNROLL for (int j = 0; j < 2; ++j) {
            y[k][g][i + j] = multiply_add(w_v, z_v[j], w_x * z_x[j]);
          }
        }
      }
    }
  };

  constexpr int AHEAD = INS ? INS : OUTS <= 2 ? 3 : 4;
  float x[AHEAD][2][QUAD];
  CLDFAST_UNROLL for (int m = 0; m < AHEAD; ++m) {
    if (m < inputs) load(m, x[m]);
  }
  if (launch.noisy) add_noise();
  CLDFAST_UNROLL for (int m = 0; m < AHEAD; ++m) {
    if (m < inputs) add(m, x[m]);
  }
  for (int m = AHEAD; m < inputs; ++m) {
    load(m, x[0]);
    add(m, x[0]);
  }
  CLDFAST_UNROLL for (int k = 0; k < OUTS; ++k) {
    if (k >= outputs) continue;
    store_quads<PLAIN>(launch.output[k], false, quads, y[k]);
    if (!PLAIN && launch.copy[k].data) {
      store_quads<PLAIN>(launch.copy[k], launch.wide_copy[k], quads, y[k]);
    }
  }
}

// One lane's share of a piece of a row with a matrix of its own, which it keeps: as data are perturbed,
// INS planes and noise to OUTS planes, all float32.
template <int OUTS, int INS>
CLDFAST_DEVICE void stage_piece(const Launch& launch, uint32_t stage_index, int64_t row, int64_t piece,
                                int lane) {
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
    float x[INS][2][QUAD];
    CLDFAST_UNROLL for (int m = 0; m < INS; ++m) {
      const bool wanted[2] = {used[m], used[m]};
      load_quads<true>(launch.input[m], false, quads, wanted, x[m]);
    }
    float y[OUTS][2][QUAD];
    CLDFAST_UNROLL for (int g = 0; g < 2; ++g) {
      const uint64_t pair = quads.address(launch.first_pair, g);
      CLDFAST_UNROLL for (int i = 0; i < QUAD; i += 2) {
        float z_x[2], z_v[2];
        make_normals(launch, stage_index, pair + i, z_x, z_v);
        CLDFAST_UNROLL for (int k = 0; k < OUTS; ++k) {
          CLDFAST_UNROLL for (int j = 0; j < 2; ++j) {
            float sum = multiply_add(w[k][INS + 1], z_v[j], w[k][INS] * z_x[j]);
            CLDFAST_UNROLL for (int m = 0; m < INS; ++m) {
              sum = multiply_add(w[k][m], x[m][g][i + j], sum);
            }
            y[k][g][i + j] = sum;
          }
        }
      }
    }
    CLDFAST_UNROLL for (int k = 0; k < OUTS; ++k) {
      store_quads<true>(launch.output[k], false, quads, y[k]);
    }
  }
}

template <class T, bool OWN>
CLDFAST_DEVICE void stage_two(const Launch& launch, const T* shared, uint32_t stage_index,
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
