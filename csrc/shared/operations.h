// The operations' arguments, and the functions that each instruction set of the CPU brings.
#pragma once

#include "shared/call.h"

namespace cldfast {

// A stage applies one small matrix at every coordinate,
//     (x', v', h ..., y ...) = W (x, v, o ..., h ..., z_x, z_v);
// y ... is what the network sees, in a dtype of its own.
struct StageArgs : Call {
  int64_t matrices;      // 1, or one for each row
  bool addressed_noise;  // whether the last two columns are for normals that the kernel makes
  NoiseAddress noise;

  CLDFAST_HD int columns() const { return inputs + (addressed_noise ? 2 : 0); }
};

// A row is summed piece by piece, and its pieces are added in order. The width of a row alone decides
// where it is cut, so that neither the batch nor the threads change a sum. A tile is one piece, or
// several complete rows.
struct Tiling {
  int64_t piece;     // pairs of a piece
  int64_t pieces;    // of a row
  int64_t together;  // rows of a tile
  int64_t tiles;
};

// The squared residual of each row, and its gradient. At every coordinate r = W (o ..., e ...) for
// outputs o of a network and offsets e, W (residuals, inputs) a matrix for each row;
//     loss_i = scale_i * factor * sum over the row of |r|^2,      gradient = d loss / d o.
// The results are the gradient's planes, or none where no gradient is wanted.
struct ResidualArgs : Call {
  int residuals;
  int outputs;          // network outputs, the first planes of `input`
  const double* scale;  // (rows), or null: 1
  double factor;

  Tiling tiling;  // on the CPU
  double* sums;   // (rows, pieces): the losses of the pieces
};

// What each instruction set provides.
struct Kernels {
  const char* level;
  // Pairs begin ... end - 1 of the flat range 0 ... B D. past_cache: results bypass the caches.
  void (*stage)(const StageArgs& args, int64_t begin, int64_t end, bool past_cache);
  // Tiles begin ... end - 1 of args.tiling.
  void (*residual)(const ResidualArgs& args, int64_t begin, int64_t end);
  // The matrices at `count` times, all of which the table covers, `entries` numbers each.
  void (*matrices)(const Table& table, const double* t, int64_t count, int64_t entries, double* to);
  // The words of `count` pairs.
  void (*words)(const NoiseAddress& noise, int64_t count, uint32_t* radius, uint32_t* angle);
};

}  // namespace cldfast
