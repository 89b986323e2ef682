// The stage operation's binary interface: plain data, strides in elements, no Python and no torch.
//
// A stage applies one small matrix at every coordinate,
//     (x', v', h ...) = W (x, v, o ..., h ..., z_x, z_v);
// cldfast/reference.py specifies it. A plane is one scalar per coordinate.
#pragma once

#include <cstdint>

namespace cldfast {

enum class Dtype : int32_t { float32, float64, bfloat16, float16 };

// Coordinate j = c * inner + s of row b lies at data[b * batch_stride + c * channel_stride + s *
// inner_stride], in elements. Contiguous: channel_stride = inner, inner_stride = 1.
struct Plane {
  void* data;
  int64_t batch_stride;
  int64_t channel_stride;
  int64_t inner_stride;
  Dtype dtype;
};

constexpr int MAX_PLANES = 32;

struct Table;

struct StageArgs {
  int64_t rows;      // B
  int64_t channels;  // C
  int64_t inner;     // S, the product of the spatial sizes; D = C * S
  Dtype compute;     // the state's dtype, float32 or float64

  int inputs;
  int outputs;
  int copies;
  Plane input[MAX_PLANES];
  Plane output[MAX_PLANES];
  Plane copy[MAX_PLANES];     // further copies of output planes, in another dtype
  int copy_of[MAX_PLANES];    // which output each one repeats

  const double* weights;  // (matrices, outputs, inputs + (addressed_noise ? 2 : 0)), or null: by table
  int64_t matrices;       // 1, or one for each row
  const Table* table;     // of such matrices, at each row's time; null: by weights
  const double* times;    // (rows)
  uint64_t used;          // bit j: some matrix has something in column j; what others multiply is not read

  bool addressed_noise;  // the last two columns are normals, made from the fields below
  uint64_t seed;
  uint64_t first_pair;  // flat pair index of the first row's first coordinate
  uint32_t stage_index;
  uint32_t stream;
};

struct ResidualArgs;

// What each instruction set provides.
struct Kernels {
  const char* level;
  // Pairs begin ... end - 1 of the flat range 0 ... B D; `past_cache` writes around the caches.
  void (*stage)(const StageArgs& args, int64_t begin, int64_t end, bool past_cache);
  void (*words)(uint64_t seed, uint64_t first_pair, int64_t count, uint32_t stage_index,
                uint32_t stream, uint32_t* radius, uint32_t* angle);
  void (*normals)(uint64_t seed, uint64_t first_pair, int64_t count, uint32_t stage_index,
                  uint32_t stream, Dtype dtype, void* z_x, void* z_v);
  // Tiles begin ... end - 1 of args.tiling.
  void (*residual)(const ResidualArgs& args, int64_t begin, int64_t end);
  // The matrices at `count` times, all of which the table covers, `entries` numbers each.
  void (*matrices)(const Table& table, const double* t, int64_t count, int64_t entries, double* to);
};

}  // namespace cldfast
