// A stage as its CUDA kernels take it: what StageArgs says, sorted for threads. Host code, no CUDA.
#pragma once

#include <cstddef>
#include <cstdint>

#include "shared/philox.h"
#include "shared/stage.h"

namespace cldfast {

// Outputs of one launch; a stage with more is launched again, its first planes last.
constexpr int LAUNCH_OUTPUTS = 4;
constexpr int LAUNCH_COLUMNS = MAX_PLANES + 2;
// What a thread of the vector kernel takes at a time: neighbouring pairs, two Philox calls.
constexpr int QUAD = 4;
// Pairs of a row to a warp, where that is how rows are cut: at these multiples, whatever the batch.
constexpr int64_t PIECE = 1024;
// Rows of fewer pairs have not a quad for every lane.
constexpr int64_t QUADS_FROM = 256;

// Division by a constant: a product and a shift for dividends below 2^31 (Granlund, Montgomery 1994,
// "Division by invariant integers using multiplication"), the machine's division beyond.
struct Divisor {
  int64_t value;
  uint32_t factor;
  int32_t shift;  // -1: too large for the product

  Divisor() = default;
  Divisor(int64_t divisor, int64_t largest_dividend) : value(divisor), factor(0), shift(-1) {
    if (largest_dividend >= int64_t(1) << 31) return;
    shift = 0;
    while ((int64_t(1) << shift) < divisor) ++shift;
    factor = static_cast<uint32_t>(
        (((uint64_t(1) << shift) - static_cast<uint64_t>(divisor)) << 32) / divisor + 1);
  }

  CLDFAST_HD int64_t quotient(int64_t dividend) const {
    if (shift < 0) return dividend / value;
    const uint32_t n = static_cast<uint32_t>(dividend);
    const uint32_t high = static_cast<uint32_t>(static_cast<uint64_t>(n) * factor >> 32);
    return (high + n) >> shift;
  }
};

enum class Way : int32_t {
  vector,   // quads of dense planes, in float32
  flat,     // two neighbouring pairs, in the order of their addresses
  pixels,   // the same, channels fastest: neighbouring threads then meet neighbouring memory
};

struct Launch {
  Way way;
  Dtype compute;
  int64_t rows, channels, inner;
  int64_t width;  // D
  int64_t units;  // quads or twos, what the threads count
  Divisor by_row;      // vector: quads of a row; flat: D; pixels: twos of a channel
  Divisor by_channel;  // flat: S; pixels: C
  Divisor by_piece;    // vector: pieces of a row

  int inputs, outputs;
  bool plain;  // all planes are float32, and there are no copies
  Plane input[MAX_PLANES];  // vector: the batch strides are in bytes
  Plane output[LAUNCH_OUTPUTS];
  Plane copy[LAUNCH_OUTPUTS];       // data is null where an output has no copy
  bool wide_input[MAX_PLANES];      // 16-bit planes: whether 8 neighbours are one aligned access
  bool wide_copy[LAUNCH_OUTPUTS];

  // Columns of the inputs, then z_x and z_v; rows of the outputs.
  double weights[LAUNCH_OUTPUTS * LAUNCH_COLUMNS];
  // In device memory instead, if not null: matrices of `table_rows` by `table_columns`, whose rows
  // from `first_row` on are wanted; one for each row of the batch, or the `*step`-th for all.
  const double* table;
  int table_rows, table_columns, first_row;
  int column[LAUNCH_COLUMNS];  // the table's columns of those above
  bool own_matrix;
  const int64_t* step;  // added to stage_index, in device memory; may be null

  bool noisy;  // whether the noise columns may hold anything
  CLDFAST_LEVEL::RoundKeys keys;
  uint64_t first_pair;
  uint32_t stage_index, stream;
};
static_assert(sizeof(Launch) <= 4096, "kernel parameters of every CUDA version hold 4 KiB");

namespace launch {

inline int64_t size_of(Dtype dtype) {
  return dtype == Dtype::float32 ? 4 : dtype == Dtype::float64 ? 8 : 2;
}

// Whether `count` neighbours of a row that starts at a multiple of `count` are one aligned access.
inline bool aligned(const Plane& plane, const StageArgs& args, int64_t count) {
  const int64_t bytes = count * size_of(plane.dtype) < 16 ? count * size_of(plane.dtype) : 16;
  const bool rows = args.rows == 1 || plane.batch_stride * size_of(plane.dtype) % bytes == 0;
  return rows && args.channels * args.inner % count == 0 &&
         reinterpret_cast<uintptr_t>(plane.data) % static_cast<uintptr_t>(bytes) == 0;
}

inline bool dense_rows(const Plane& plane, const StageArgs& args) {
  return (args.inner == 1 || plane.inner_stride == 1) &&
         (args.channels == 1 || plane.channel_stride == args.inner);
}

inline bool takes_quads(const Plane& plane, const StageArgs& args) {
  constexpr int64_t LIMIT = int64_t(1) << 32;
  return dense_rows(plane, args) && aligned(plane, args, QUAD) &&
         (args.rows == 1 || plane.batch_stride * size_of(plane.dtype) < LIMIT);
}

inline bool half(const Plane& plane) {
  return plane.dtype == Dtype::bfloat16 || plane.dtype == Dtype::float16;
}

inline void in_bytes(Plane* planes, int count) {
  for (int i = 0; i < count; ++i) planes[i].batch_stride *= size_of(planes[i].dtype);
}

// The launch of outputs first ... first + LAUNCH_OUTPUTS - 1. Columns of zeros are left out, so that
// what they would multiply is not read: the host's matrix shows them, `used` has a bit for each column
// of a table that is not all zeros. A matrix for each row is looked at by the kernel.
inline Launch prepare(const StageArgs& args, const double* table, const int64_t* step, uint64_t used,
                      int first) {
  Launch launch = {};
  launch.compute = args.compute;
  launch.rows = args.rows;
  launch.channels = args.channels;
  launch.inner = args.inner;
  launch.width = args.channels * args.inner;
  launch.outputs = args.outputs - first < LAUNCH_OUTPUTS ? args.outputs - first : LAUNCH_OUTPUTS;
  launch.table = table;
  launch.table_rows = args.outputs;
  launch.table_columns = args.inputs + (args.addressed_noise ? 2 : 0);
  launch.first_row = first;
  launch.own_matrix = table != nullptr && args.matrices > 1;
  launch.step = step;
  launch.keys = CLDFAST_LEVEL::round_keys(args.seed);
  launch.first_pair = args.first_pair;
  launch.stage_index = args.stage_index;
  launch.stream = args.stream;

  launch.plain = args.copies == 0;
  constexpr int64_t LIMIT = int64_t(1) << 29;  // in elements of at most 8 bytes
  bool quads = args.compute == Dtype::float32 && args.first_pair % QUAD == 0 &&
               args.rows < LIMIT && launch.width < LIMIT;
  bool pixels = args.channels > 1 && args.inner > 1;
  for (int k = 0; k < launch.outputs; ++k) {
    const Plane& plane = args.output[first + k];
    launch.output[k] = plane;
    launch.plain = launch.plain && plane.dtype == Dtype::float32;
    quads = quads && takes_quads(plane, args);
    pixels = pixels && plane.channel_stride == 1;
  }
  for (int i = 0; i < args.copies; ++i) {
    const int k = args.copy_of[i] - first;
    if (k < 0 || k >= launch.outputs) continue;
    launch.copy[k] = args.copy[i];
    launch.wide_copy[k] = half(args.copy[i]) && aligned(args.copy[i], args, 8);
    quads = quads && takes_quads(args.copy[i], args);
  }

  int columns = 0;
  const auto is_used = [&](int column) {
    if (table != nullptr) return launch.own_matrix || (used >> column & 1) != 0;
    for (int k = 0; k < launch.outputs; ++k) {
      if (args.weights[(first + k) * launch.table_columns + column] != 0.0) return true;
    }
    return false;
  };
  const auto take = [&](int column) {
    launch.column[columns] = column;
    for (int k = 0; k < launch.outputs && table == nullptr; ++k) {
      launch.weights[k * LAUNCH_COLUMNS + columns] =
          args.weights[(first + k) * launch.table_columns + column];
    }
    ++columns;
  };
  for (int m = 0; m < args.inputs; ++m) {
    if (!is_used(m)) continue;
    launch.input[columns] = args.input[m];
    launch.plain = launch.plain && args.input[m].dtype == Dtype::float32;
    launch.wide_input[columns] = half(args.input[m]) && aligned(args.input[m], args, 8);
    quads = quads && takes_quads(args.input[m], args);
    take(m);
  }
  launch.inputs = columns;
  if (args.addressed_noise) {
    launch.noisy = is_used(args.inputs) || is_used(args.inputs + 1);
    take(args.inputs);
    take(args.inputs + 1);
  }

  const int64_t pairs = args.rows * launch.width;
  if (quads) {
    launch.way = Way::vector;
    in_bytes(launch.input, launch.inputs);
    in_bytes(launch.output, launch.outputs);
    in_bytes(launch.copy, launch.outputs);
    launch.units = pairs / QUAD;
    launch.by_row = Divisor(launch.width / QUAD, launch.units);
    const int64_t pieces = (launch.width + PIECE - 1) / PIECE;
    launch.by_piece = Divisor(pieces, launch.rows * pieces);
  } else if (pixels) {
    const int64_t twos = (args.inner + 1) / 2;
    launch.way = Way::pixels;
    launch.units = args.rows * twos * args.channels;
    launch.by_row = Divisor(twos, launch.units);
    launch.by_channel = Divisor(args.channels, launch.units);
  } else {
    launch.way = Way::flat;
    launch.units = (pairs + static_cast<int64_t>(args.first_pair & 1) + 1) / 2;
    launch.by_row = Divisor(launch.width, pairs);
    launch.by_channel = Divisor(args.inner, launch.width);
  }
  return launch;
}

}  // namespace launch
}  // namespace cldfast
