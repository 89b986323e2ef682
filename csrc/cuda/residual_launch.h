// A residual as its CUDA kernels take it. Host code, no CUDA.
#pragma once

#include "cuda/launch.h"
#include "shared/residual.h"

namespace cldfast {

struct ResidualLaunch {
  Way way;
  Dtype compute;
  int64_t rows, channels, inner, width;
  int64_t units;           // quads or twos of a row
  int64_t units_of_piece;  // whole warps of them, but for the last piece
  int64_t pieces;          // of a row
  Divisor by_channel;      // flat: S; pixels: C
  Divisor by_piece;
  int team;                // lanes that share a piece, a power of two

  int residuals, outputs, others, inputs, columns;  // inputs: outputs, others, and given noise
  bool plain, addressed_noise, noisy, wants_gradient;  // noisy: its columns may hold anything
  Plane input[MAX_PLANES];  // vector: the batch strides are in bytes
  Plane gradient[MAX_PLANES];
  bool wide_input[MAX_PLANES], wide_gradient[MAX_PLANES];
  const double* weights;
  const double* scale;
  double factor;
  void* loss;          // of each row, or of all if `reduce`
  bool reduce;
  double* sums;        // of the pieces of rows, or of blocks
  uint32_t* arrivals;  // of a row's pieces, or of blocks; zeros

  CLDFAST_LEVEL::RoundKeys keys;
  uint64_t first_pair;
  uint32_t stage_index, stream;
};
static_assert(sizeof(ResidualLaunch) <= 4096, "kernel parameters of every CUDA version hold 4 KiB");

namespace launch {

// Of a sum over rows. A number of its own, not the device's: it decides the order of the sum.
constexpr int64_t MOST_BLOCKS = 4096;

// Numbers of sums and of arrivals that any layout of the rows is content with.
struct Room {
  int64_t sums, arrivals;
};

inline Room room(int64_t rows, int64_t channels, int64_t inner, bool reduce) {
  if (reduce) return {MOST_BLOCKS, 1};
  const int64_t flat = channels * inner / 2 + 1, pixels = (inner + 1) / 2 * channels;
  const int64_t pieces = ((flat > pixels ? flat : pixels) + PIECE / 2 - 1) / (PIECE / 2);
  return pieces > 1 ? Room{rows * pieces, rows} : Room{0, 0};
}

inline ResidualLaunch prepare(const ResidualArgs& args, void* loss, bool reduce) {
  StageArgs shape = {};
  shape.rows = args.rows;
  shape.channels = args.channels;
  shape.inner = args.inner;

  const int others = args.inputs - args.outputs - (args.addressed_noise ? 0 : 2);
  ResidualLaunch launch = {};
  launch.compute = args.compute;
  launch.rows = args.rows;
  launch.channels = args.channels;
  launch.inner = args.inner;
  launch.width = args.channels * args.inner;
  launch.residuals = args.residuals;
  launch.outputs = args.outputs;
  launch.inputs = args.inputs;
  launch.others = others;
  launch.columns = args.inputs + (args.addressed_noise ? 2 : 0);
  launch.addressed_noise = args.addressed_noise;
  launch.noisy = !args.addressed_noise || args.used >> args.inputs != 0;
  launch.wants_gradient = args.wants_gradient;
  launch.weights = args.weights;
  launch.scale = args.scale;
  launch.factor = args.factor;
  launch.loss = loss;
  launch.reduce = reduce;
  launch.sums = args.sums;
  launch.arrivals = reinterpret_cast<uint32_t*>(
      args.sums + room(args.rows, args.channels, args.inner, reduce).sums);
  launch.keys = CLDFAST_LEVEL::round_keys(args.seed);
  launch.first_pair = args.first_pair;
  launch.stage_index = args.stage_index;
  launch.stream = args.stream;

  constexpr int64_t LIMIT = int64_t(1) << 29;
  // What the losses there are ask for: a velocity score, or a full one, and beside it the state or as
  // many other planes.
  bool quads = args.compute == Dtype::float32 && args.first_pair % QUAD == 0 &&
               args.rows < LIMIT && launch.width < LIMIT && launch.width >= QUADS_FROM &&
               args.residuals == args.outputs && args.outputs <= 2 &&
               (others == 2 || others == args.outputs);
  bool pixels = args.channels > 1 && args.inner > 1 && args.input[0].channel_stride == 1;
  launch.plain = true;
  const auto take = [&](const Plane& from, Plane& to, bool& wide) {
    to = from;
    wide = half(from) && aligned(from, shape, 8);
    quads = quads && takes_quads(from, shape);
    launch.plain = launch.plain && from.dtype == Dtype::float32;
  };
  for (int m = 0; m < args.inputs; ++m) take(args.input[m], launch.input[m], launch.wide_input[m]);
  for (int j = 0; args.wants_gradient && j < args.outputs; ++j) {
    take(args.gradient[j], launch.gradient[j], launch.wide_gradient[j]);
  }
  if (quads) {
    launch.way = Way::vector;
    launch.units = launch.width / QUAD;
    launch.units_of_piece = PIECE / QUAD;
    in_bytes(launch.input, args.inputs);
    if (args.wants_gradient) in_bytes(launch.gradient, args.outputs);
  } else {
    launch.way = pixels ? Way::pixels : Way::flat;
    launch.units = pixels ? (args.inner + 1) / 2 * args.channels : launch.width / 2 + 1;
    launch.units_of_piece = PIECE / 2;
  }
  launch.pieces = (launch.units + launch.units_of_piece - 1) / launch.units_of_piece;
  launch.by_channel = Divisor(pixels ? args.channels : args.inner, launch.units * 2);
  launch.by_piece = Divisor(launch.pieces, launch.rows * launch.pieces);
  launch.team = 1;
  while (launch.team < 32 && launch.team < launch.units) launch.team *= 2;
  return launch;
}

}  // namespace launch
}  // namespace cldfast
