// The residual operation's binary interface: the squared residual of each row, and its gradient.
//
// At every coordinate r = W (o ..., u ..., z_x, z_v), W (q, n) a matrix for each row;
//     loss_i = sum over the row of |r|^2,      gradient = 2 W_o^T r,
// W_o being W's first columns. cldfast/reference.py specifies it.
#pragma once

#include "shared/stage.h"

namespace cldfast {

// A row is summed by pieces, and the pieces in order: fixed by its own width and layout, whatever the
// batch, the threads, or who sums which piece. A tile is one piece, or whole rows together.
struct Tiling {
  bool by_pixel;     // channels-last images of few channels, walked in memory order
  int64_t piece;     // pairs of a piece, whole pixels if by_pixel
  int64_t pieces;    // of a row
  int64_t together;  // rows to a tile
  int64_t tiles;
};

struct ResidualArgs {
  int64_t rows;      // B
  int64_t channels;  // C
  int64_t inner;     // S; D = C * S
  Dtype compute;     // the state's dtype, float32 or float64

  int residuals;  // q
  int outputs;    // network outputs, the first planes of `input`
  int inputs;
  Plane input[MAX_PLANES];     // outputs, the state or other planes, and the noise where it is given
  Plane gradient[MAX_PLANES];  // one for each output
  bool wants_gradient;

  const double* weights;  // (rows, residuals, inputs + (addressed_noise ? 2 : 0)), or null: by table
  const Table* table;     // of such matrices, at each row's time; null: by weights
  const double* times;    // (rows)
  uint64_t used;          // bit j: some matrix has something in column j; what others multiply is not read
  const double* scale;    // (rows), a further factor of each row's loss, or null: 1
  double factor;          // of every row's loss

  bool addressed_noise;  // the last two columns are normals, made from the fields below
  uint64_t seed;
  uint64_t first_pair;  // flat pair index of the first row's first coordinate
  uint32_t stage_index;
  uint32_t stream;

  Tiling tiling;
  double* sums;  // room for partial sums; on the CPU (rows, pieces), the losses of the pieces
};

}  // namespace cldfast
