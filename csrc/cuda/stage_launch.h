// A stage as its CUDA kernels take it. Host code, no CUDA.
#pragma once

#include "cuda/launch.h"
#include "shared/operations.h"
#include "shared/philox.h"

namespace cldfast::CLDFAST_LEVEL {
namespace {

// Whose matrix: of all rows, of each row, or of all rows in a step that is recorded.
constexpr int SHARED = 0, OWN = 1, RECORDED = 2;

struct StageLaunch : LaunchShape {
  bool pixels;     // the channel changes fastest, so that neighbouring threads meet neighbouring memory
  int64_t units;   // quads, or twos: two pairs that are neighbours by address
  Divisor by_row;  // by the quads of a row, by D, or, if `pixels`, by the twos of a channel

  int inputs, outputs;
  Plane input[MOST_PLANES];
  Plane output[LAUNCH_OUTPUTS];

  // A column for each input, then those of z_x and z_v; a row for each output.
  double weights[LAUNCH_OUTPUTS * STAGE_COLUMNS] = {};
  // If not null, the matrices are in device memory instead, of `table_rows` by `table_columns`. The rows
  // from `first_row` on are wanted. There is one matrix for each row of the batch, or number `*step`
  // serves all rows.
  const double* table;
  int table_rows, table_columns, first_row;
  int column[STAGE_COLUMNS];  // which column of the table stands for a column of `weights`
  int matrix;  // SHARED, OWN or RECORDED
  // Of a recorded step, in device memory: a number that is added to the stage index, the seed, and how many
  // samples come before those of `noise`, a multiple of QUAD.
  const int64_t* step;
  bool half;  // a sampler's usual step, whose network output has 16 bits

  bool noisy;  // whether normals are made
  RoundKeys keys;
  NoiseAddress noise;

  // The launch of the outputs from `first` on, at most LAUNCH_OUTPUTS. Columns of zeros are left out, so
  // that their planes are not read. Where each row has a matrix, the kernel looks for zeros.
  StageLaunch(const StageArgs& args, bool on_device, const int64_t* step_counter, int first)
      : LaunchShape(args), inputs(0), outputs(args.results - first) {
    if (outputs > LAUNCH_OUTPUTS) outputs = LAUNCH_OUTPUTS;
    table = on_device ? args.weights : nullptr;
    table_rows = args.results;
    table_columns = args.columns();
    first_row = first;
    matrix = step_counter ? RECORDED : on_device && args.matrices > 1 ? OWN : SHARED;
    step = step_counter;
    keys = round_keys(args.noise.seed);
    noise = args.noise;

    vector = vector && noise.first_pair % QUAD == 0;
    pixels = channels > 1 && inner > 1;
    for (int k = 0; k < outputs; ++k) {
      output[k] = take(args.result[first + k]);
      pixels = pixels && output[k].channel_stride == 1;
    }
    const auto is_used = [&](int number) { return matrix == OWN || (args.used >> number & 1) != 0; };
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

    half = vector && inputs == 3 && outputs == 2 && size_of(input[2].dtype) == 2;
    for (int i = 0; i < 2 && half; ++i) {
      half = input[i].dtype == Dtype::float32 && output[i].dtype == Dtype::float32;
    }

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

}  // namespace
}  // namespace cldfast::CLDFAST_LEVEL
