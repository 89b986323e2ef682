// What one CUDA thread does of a residual.
#pragma once

#include <cmath>

#include "cuda/quads.h"
#include "cuda/twos.h"

namespace cldfast {
namespace CLDFAST_LEVEL {
namespace {

// What the matrix of a row is multiplied by.
CLDFAST_DEVICE double amplitude(const ResidualLaunch& launch, int64_t row) {
  const double square = launch.scale ? launch.scale[row] * launch.factor : launch.factor;
  return std::sqrt(square);
}

// One lane's share of a piece of a row: its sum of squares. PLANES: of outputs and of residuals; OTHERS:
// beside them, as the state's two. NOISY: there may be noise.
template <int PLANES, int OTHERS, bool PLAIN, bool NOISY>
CLDFAST_DEVICE double residual_quads(const ResidualLaunch& launch, int64_t row, int64_t piece, int lane) {
  constexpr int MOST = PLANES + OTHERS + 2;  // and noise
  const double scale = amplitude(launch, row);
  const double* matrix = launch.weights + row * PLANES * launch.columns;
  float w[PLANES][MOST];
  bool used[MOST];
  CLDFAST_UNROLL for (int m = 0; m < MOST; ++m) {
    used[m] = m < PLANES;
    CLDFAST_UNROLL for (int k = 0; k < PLANES; ++k) {
      w[k][m] = static_cast<float>(scale * matrix[k * launch.columns + m]);
      used[m] = used[m] || w[k][m] != 0.0f;
    }
  }
  const PieceUnits units(piece, launch.units_of_piece, launch.units);
  double sum = 0.0;
  for (int64_t quad = units.begin; quad < units.end; quad += 2 * LANES) {
    const Quads quads(row, launch.units, quad, units.end, lane);
    float r[PLANES][2][QUAD] = {};
    const auto add = [&](int m, const float x[2][QUAD]) {
      CLDFAST_UNROLL for (int k = 0; k < PLANES; ++k) {
        CLDFAST_UNROLL for (int g = 0; g < 2; ++g) {
          CLDFAST_UNROLL for (int i = 0; i < QUAD; ++i) {
            r[k][g][i] = multiply_add(w[k][m], x[g][i], r[k][g][i]);
          }
        }
      }
    };
    const auto load = [&](int m, float x[2][QUAD]) {
      const bool wanted[2] = {used[m], used[m]};
      load_quads<PLAIN>(launch.input[m], launch.wide_input[m], quads, wanted, x);
    };
    float x[PLANES + OTHERS][2][QUAD];
    CLDFAST_UNROLL for (int m = 0; m < PLANES + OTHERS; ++m) load(m, x[m]);
    if (NOISY && launch.addressed_noise) {
      if (used[MOST - 2] || used[MOST - 1]) {
        CLDFAST_UNROLL for (int g = 0; g < 2; ++g) {
          const uint64_t pair = quads.address(launch.first_pair, g);
          CLDFAST_UNROLL for (int i = 0; i < QUAD; i += 2) {
            float z_x[2], z_v[2];
            make_normals(launch, launch.stage_index, pair + i, z_x, z_v);
            CLDFAST_UNROLL for (int k = 0; k < PLANES; ++k) {
              CLDFAST_UNROLL for (int j = 0; j < 2; ++j) {
                r[k][g][i + j] = multiply_add(w[k][MOST - 1], z_v[j], w[k][MOST - 2] * z_x[j]);
              }
            }
          }
        }
      }
    } else if (NOISY) {
      CLDFAST_UNROLL for (int m = PLANES + OTHERS; m < MOST; ++m) {
        float z[2][QUAD];
        load(m, z);
        add(m, z);
      }
    }
    CLDFAST_UNROLL for (int m = 0; m < PLANES + OTHERS; ++m) add(m, x[m]);
    // Eight squares in float32, the sums of those in float64.
    float squares = 0.0f;
    CLDFAST_UNROLL for (int k = 0; k < PLANES; ++k) {
      CLDFAST_UNROLL for (int g = 0; g < 2; ++g) {
        CLDFAST_UNROLL for (int i = 0; i < QUAD; ++i) {
          if (quads.valid[g]) squares = multiply_add(r[k][g][i], r[k][g][i], squares);
          r[k][g][i] += r[k][g][i];
        }
      }
    }
    sum += static_cast<double>(squares);
    if (!launch.wants_gradient) continue;
    CLDFAST_UNROLL for (int j = 0; j < PLANES; ++j) {
      float gradient[2][QUAD];
      CLDFAST_UNROLL for (int g = 0; g < 2; ++g) {
        CLDFAST_UNROLL for (int i = 0; i < QUAD; ++i) {
          gradient[g][i] = w[0][j] * r[0][g][i];
          CLDFAST_UNROLL for (int k = 1; k < PLANES; ++k) {
            gradient[g][i] = multiply_add(w[k][j], r[k][g][i], gradient[g][i]);
          }
        }
      }
      store_quads<PLAIN>(launch.gradient[j], launch.wide_gradient[j], quads, gradient);
    }
  }
  return sum;
}

// The same for any strides, dtypes and numbers of planes, two pairs at a time.
template <class T>
CLDFAST_DEVICE double residual_twos(const ResidualLaunch& launch, int64_t row, int64_t piece, int lane) {
  const double scale = amplitude(launch, row);
  const double* matrix = launch.weights + row * launch.residuals * launch.columns;
  const auto weight = [&](int k, int m) {
    return static_cast<T>(scale * matrix[k * launch.columns + m]);
  };
  bool noisy = false;
  for (int k = 0; launch.addressed_noise && k < launch.residuals; ++k) {
    noisy = noisy || weight(k, launch.inputs) != T(0) || weight(k, launch.inputs + 1) != T(0);
  }
  const PieceUnits units(piece, launch.units_of_piece, launch.units);
  double sum = 0.0;
  for (int64_t unit = units.begin + lane; unit < units.end; unit += launch.team) {
    const Two two(launch, row, unit);
    T z_x[2] = {}, z_v[2] = {};
    if (noisy) two_normals(launch, launch.stage_index, two, z_x, z_v);
    const auto residual = [&](int k, int i) {
      T r = T(0);
      for (int m = 0; m < launch.inputs; ++m) {
        const T w = weight(k, m);
        if (m >= launch.outputs && w == T(0)) continue;
        r = multiply_add(w, load_one<T>(launch.input[m], two.at(launch.input[m], i)), r);
      }
      if (noisy) {
        r = multiply_add(weight(k, launch.inputs), z_x[i], r);
        r = multiply_add(weight(k, launch.inputs + 1), z_v[i], r);
      }
      return r;
    };
    CLDFAST_UNROLL for (int i = 0; i < 2; ++i) {
      if (!two.valid[i]) continue;
      T last = T(0);
      for (int k = 0; k < launch.residuals; ++k) {
        last = residual(k, i);
        sum += static_cast<double>(last) * static_cast<double>(last);
      }
      // Two at a time before any is stored: they may lie where the residual is made again from.
      for (int j = 0; launch.wants_gradient && j < launch.outputs; j += 2) {
        T gradient[2] = {};
        for (int k = 0; k < launch.residuals; ++k) {
          // Made again rather than kept: arrays are indexed by constants only.
          const T r = launch.residuals == 1 ? last : residual(k, i);
          gradient[0] = multiply_add(weight(k, j), r + r, gradient[0]);
          if (j + 1 < launch.outputs) gradient[1] = multiply_add(weight(k, j + 1), r + r, gradient[1]);
        }
        store_one(launch.gradient[j], two.at(launch.gradient[j], i), gradient[0]);
        if (j + 1 < launch.outputs) {
          store_one(launch.gradient[j + 1], two.at(launch.gradient[j + 1], i), gradient[1]);
        }
      }
    }
  }
  return sum;
}

}  // namespace
}  // namespace CLDFAST_LEVEL
}  // namespace cldfast
