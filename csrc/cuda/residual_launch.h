// A residual as its CUDA kernels take it. Host code, no CUDA.
#pragma once

#include "cuda/launch.h"
#include "shared/operations.h"

namespace cldfast {

struct ResidualLaunch : LaunchShape {
  int64_t units;           // quads or pairs of a row
  int64_t units_of_piece;  // complete warps of them, but for the last piece
  int team;                // lanes that share a piece, a power of two

  int residuals, outputs, inputs;  // the outputs come first among the inputs
  bool wants_gradient;
  Plane input[MOST_PLANES];
  Plane gradient[MOST_PLANES];
  const double* weights;
  const double* scale;
  double factor;
  void* loss;          // of each row, or of all if `reduce`
  bool reduce;
  double* sums;        // of the pieces of rows, or of blocks
  uint32_t* arrivals;  // of a row's pieces, or of blocks; zeros

  // Blocks of a sum over rows. A number of its own, not the device's: it decides the order of the sum.
  static constexpr int64_t MOST_BLOCKS = 4096;

  static int64_t room_of_sums(int64_t rows, int64_t width, bool reduce) {
    return reduce ? MOST_BLOCKS : width > PIECE ? rows * pieces_of(width) : 0;
  }

  ResidualLaunch(const ResidualArgs& args, void* losses, bool reduces)
      : LaunchShape(args),
        residuals(args.residuals),
        outputs(args.outputs),
        inputs(args.inputs),
        wants_gradient(args.results > 0),
        weights(args.weights),
        scale(args.scale),
        factor(args.factor),
        loss(losses),
        reduce(reduces),
        sums(args.sums),
        arrivals(reinterpret_cast<uint32_t*>(args.sums + room_of_sums(rows, width, reduces))) {
    for (int m = 0; m < inputs; ++m) input[m] = take(args.input[m]);
    for (int j = 0; j < args.results; ++j) gradient[j] = take(args.result[j]);
    // The losses there are: a velocity score or a full one, with an offset of as many planes.
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
