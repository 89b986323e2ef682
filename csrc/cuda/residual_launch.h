// A residual as its CUDA kernels take it. Host code, no CUDA.
#pragma once

#include "cuda/launch.h"
#include "shared/operations.h"

namespace cldfast {

struct ResidualLaunch : LaunchShape {
  int64_t units;           // quads or pairs of a row
  int64_t units_of_piece;  // a multiple of a warp's; the last piece may be shorter
  int team;                // lanes that share a piece, a power of two

  int residuals, outputs, inputs;  // the outputs come first among the inputs
  bool wants_gradient;
  Plane input[MOST_PLANES];
  Plane gradient[MOST_PLANES];
  const double* weights;
  const double* scale;
  double factor;
  double* sums;  // (rows, pieces)

  explicit ResidualLaunch(const ResidualArgs& args)
      : LaunchShape(args),
        residuals(args.residuals),
        outputs(args.outputs),
        inputs(args.inputs),
        wants_gradient(args.results > 0),
        weights(args.weights),
        scale(args.scale),
        factor(args.factor),
        sums(args.sums) {
    for (int m = 0; m < inputs; ++m) input[m] = take(args.input[m]);
    for (int j = 0; j < args.results; ++j) gradient[j] = take(args.result[j]);
    // Score matching: a score of the velocity, or of state and velocity, and as many offsets.
    vector = vector && width >= QUADS_FROM && residuals == outputs && outputs <= 2 &&
             inputs == 2 * outputs;
    in_bytes(input, inputs);
    in_bytes(gradient, args.results);
    const int64_t pairs_of_unit = vector ? QUAD : 1;
    units = width / pairs_of_unit;
    units_of_piece = PIECE / pairs_of_unit;
    team = 1;
    while (team < 32 && team < units) team *= 2;
  }
};
static_assert(sizeof(ResidualLaunch) <= 4096, "kernel parameters of every CUDA version hold 4 KiB");

}  // namespace cldfast
