// A stage as its CUDA kernels take it: what StageArgs says, sorted for threads. Host code, no CUDA.
#pragma once

#include "cuda/launch.h"
#include "shared/operations.h"
#include "shared/philox.h"

namespace cldfast {

struct StageLaunch : LaunchShape {
  bool pixels;     // channels fastest: neighbouring threads then meet neighbouring memory
  int64_t units;   // what the threads count: quads, or two pairs that are neighbours by address
  Divisor by_row;  // by the quads of a row, by D, or by the twos of a channel where channels are fastest

  int inputs, outputs;
  Plane input[MOST_PLANES];
  Plane output[LAUNCH_OUTPUTS];

  // Columns of the inputs, then z_x and z_v; rows of the outputs.
  double weights[LAUNCH_OUTPUTS * STAGE_COLUMNS] = {};
  // In device memory instead, if not null: matrices of `table_rows` by `table_columns`, whose rows
  // from `first_row` on are wanted; one for each row of the batch, or the `*step`-th for all.
  const double* table;
  int table_rows, table_columns, first_row;
  int column[STAGE_COLUMNS];  // the table's columns of those above
  bool own_matrix;
  const int64_t* step;  // added to the stage index, in device memory; may be null

  bool noisy;  // whether the noise columns may hold anything
  CLDFAST_LEVEL::RoundKeys keys;
  NoiseAddress noise;

  // The launch of outputs first ... first + LAUNCH_OUTPUTS - 1. Columns of zeros are left out, so that
  // what they would multiply is not read; a matrix for each row is looked at by the kernel.
  StageLaunch(const StageArgs& args, bool on_device, const int64_t* step_counter, int first)
      : LaunchShape(args), inputs(0), outputs(args.results - first) {
    if (outputs > LAUNCH_OUTPUTS) outputs = LAUNCH_OUTPUTS;
    table = on_device ? args.weights : nullptr;
    table_rows = args.results;
    table_columns = args.columns();
    first_row = first;
    own_matrix = on_device && args.matrices > 1;
    step = step_counter;
    keys = CLDFAST_LEVEL::round_keys(args.noise.seed);
    noise = args.noise;

    vector = vector && noise.first_pair % QUAD == 0;
    pixels = channels > 1 && inner > 1;
    for (int k = 0; k < outputs; ++k) {
      output[k] = take(args.result[first + k]);
      pixels = pixels && output[k].channel_stride == 1;
    }
    const auto is_used = [&](int number) { return own_matrix || (args.used >> number & 1) != 0; };
    const auto take_column = [&](int place, int number) {
      column[place] = number;
      for (int k = 0; k < outputs && !on_device; ++k) {
        weights[k * STAGE_COLUMNS + place] = args.weights[(first + k) * table_columns + number];
      }
    };
    for (int m = 0; m < args.inputs; ++m) {
      if (!is_used(m)) continue;
      input[inputs] = take(args.input[m]);
      take_column(inputs++, m);
    }
    noisy = args.addressed_noise && (is_used(args.inputs) || is_used(args.inputs + 1));
    for (int z = 0; noisy && z < 2; ++z) take_column(inputs + z, args.inputs + z);

    const int64_t pairs = args.pairs();
    if (vector) {
      in_bytes(input, inputs);
      in_bytes(output, outputs);
      units = pairs / QUAD;
      by_row = Divisor(width / QUAD, units);
    } else if (pixels) {
      const int64_t twos = (inner + 1) / 2;
      units = rows * twos * channels;
      by_row = Divisor(twos, units);
      by_channel = Divisor(channels, units);
    } else {
      units = (pairs + static_cast<int64_t>(noise.first_pair & 1) + 1) / 2;
      by_row = Divisor(width, pairs);
    }
  }
};
static_assert(sizeof(StageLaunch) <= 4096, "kernel parameters of every CUDA version hold 4 KiB");

}  // namespace cldfast
