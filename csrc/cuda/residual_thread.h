// What one CUDA thread does of a residual.
#pragma once

#include <cmath>

#include "cuda/quads.h"
#include "cuda/residual_launch.h"

namespace cldfast::CLDFAST_LEVEL {
namespace {

// What the matrix of a row is multiplied by.
CLDFAST_DEVICE double amplitude(const ResidualLaunch& launch, int64_t row) {
  const double square = launch.scale ? launch.scale[row] * launch.factor : launch.factor;
  return std::sqrt(square);
}

// One lane's share of a piece of a row: its sum of squares. PLANES: of outputs, of offsets and of
// residuals.
template <int PLANES, bool PLAIN>
CLDFAST_DEVICE double residual_quads(const ResidualLaunch& launch, int64_t row, int64_t piece, int lane) {
  constexpr int INPUTS = 2 * PLANES;
  const double scale = amplitude(launch, row);
  const double* matrix = launch.weights + row * PLANES * INPUTS;
  float w[PLANES][INPUTS];
  bool used[INPUTS];
  CLDFAST_UNROLL for (int m = 0; m < INPUTS; ++m) {
    used[m] = m < PLANES;
    CLDFAST_UNROLL for (int k = 0; k < PLANES; ++k) {
      w[k][m] = static_cast<float>(scale * matrix[k * INPUTS + m]);
      used[m] = used[m] || w[k][m] != 0.0f;
    }
  }
  const PieceUnits units(piece, launch.units_of_piece, launch.units);
  double sum = 0.0;
  for (int64_t quad = units.begin; quad < units.end; quad += 2 * LANES) {
    const Quads quads(row, launch.units, quad, units.end, lane);
    float r[PLANES][2][QUAD] = {}, x[INPUTS][2][QUAD];
    CLDFAST_UNROLL for (int m = 0; m < INPUTS; ++m) {
      const bool wanted[2] = {used[m], used[m]};
      load_quads<PLAIN>(launch.input[m], quads, wanted, x[m]);
    }
    CLDFAST_UNROLL for (int m = 0; m < INPUTS; ++m) {
      add_plane<PLANES>(r, x[m], [&](int, int k) { return w[k][m]; });
    }
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
      float gradient[1][2][QUAD] = {};
      CLDFAST_UNROLL for (int k = 0; k < PLANES; ++k) {
        add_plane<1>(gradient, r[k], [&](int, int) { return w[k][j]; });
      }
      store_quads<PLAIN>(launch.gradient[j], quads, gradient[0]);
    }
  }
  return sum;
}

// The same for any strides, dtypes and numbers of planes, one pair at a time.
template <class T>
CLDFAST_DEVICE double residual_pairs(const ResidualLaunch& launch, int64_t row, int64_t piece, int lane) {
  const double scale = amplitude(launch, row);
  const double* matrix = launch.weights + row * launch.residuals * launch.inputs;
  const auto weight = [&](int k, int m) {
    return static_cast<T>(scale * matrix[k * launch.inputs + m]);
  };
  const PieceUnits units(piece, launch.units_of_piece, launch.units);
  double sum = 0.0;
  for (int64_t pair = units.begin + lane; pair < units.end; pair += launch.team) {
    const int64_t channel = launch.by_channel.quotient(pair), position = pair - channel * launch.inner;
    const auto at = [&](const Plane& plane) {
      return row * plane.batch_stride + channel * plane.channel_stride + position * plane.inner_stride;
    };
    const auto residual = [&](int k) {
      T r = T(0);
      for (int m = 0; m < launch.inputs; ++m) {
        const T w = weight(k, m);
        if (m >= launch.outputs && w == T(0)) continue;
        r = multiply_add(w, load_one<T>(launch.input[m], at(launch.input[m])), r);
      }
      return r;
    };
    T last = T(0);
    for (int k = 0; k < launch.residuals; ++k) {
      last = residual(k);
      sum += static_cast<double>(last) * static_cast<double>(last);
    }
    // MOST_OVERWRITTEN planes are made before any is stored: they may lie where the residual is made
    // again from.
    for (int first = 0; launch.wants_gradient && first < launch.outputs; first += MOST_OVERWRITTEN) {
      T gradient[MOST_OVERWRITTEN] = {};
      for (int k = 0; k < launch.residuals; ++k) {
        // Made again rather than kept: arrays are indexed by constants only.
        const T r = launch.residuals == 1 ? last : residual(k);
        CLDFAST_UNROLL for (int j = 0; j < MOST_OVERWRITTEN; ++j) {
          if (first + j < launch.outputs) gradient[j] = multiply_add(weight(k, first + j), r + r, gradient[j]);
        }
      }
      CLDFAST_UNROLL for (int j = 0; j < MOST_OVERWRITTEN; ++j) {
        if (first + j >= launch.outputs) continue;
        const Plane& plane = launch.gradient[first + j];
        store_one(plane, at(plane), gradient[j]);
      }
    }
  }
  return sum;
}

}  // namespace
}  // namespace cldfast::CLDFAST_LEVEL
