#include "cpu/residual.h"

#include <vector>

#include "cpu/planes.h"
#include "cpu/threads.h"

namespace cldfast {

namespace {

Tiling tiling_of(const ResidualArgs& args) {
  const int64_t width = args.channels * args.inner;
  Tiling tiling;
  tiling.by_pixel = scalar::pixel_rows(args.input, args.inputs, args) &&
                    (!args.wants_gradient || scalar::pixel_rows(args.gradient, args.outputs, args));
  const int64_t whole = tiling.by_pixel ? args.channels : 1;
  const int64_t most = scalar::BLOCK / whole * whole;
  tiling.piece = width < most ? width : most;
  tiling.pieces = (width + most - 1) / most;
  tiling.together = tiling.by_pixel || tiling.pieces > 1 ? 1 : most / width;
  tiling.tiles = (args.rows + tiling.together - 1) / tiling.together * tiling.pieces;
  return tiling;
}

struct Work {
  const ResidualArgs& args;
  const Kernels& kernels;
};

void run_part(const void* data, int64_t part, int64_t parts) {
  const Work& work = *static_cast<const Work*>(data);
  const int64_t tiles = work.args.tiling.tiles;
  const int64_t begin = part_begin(tiles, 1, part, parts), end = part_begin(tiles, 1, part + 1, parts);
  if (begin < end) work.kernels.residual(work.args, begin, end);
}

template <class T>
void write_losses(const ResidualArgs& args, T* loss, bool reduce) {
  double total = 0.0;
  for (int64_t i = 0; i < args.rows; ++i) {
    double sum = 0.0;
    for (int64_t p = 0; p < args.tiling.pieces; ++p) sum += args.sums[i * args.tiling.pieces + p];
    total += sum;
    if (!reduce) loss[i] = static_cast<T>(sum);
  }
  if (reduce) *loss = static_cast<T>(total);
}

}  // namespace

void run_residual(ResidualArgs& args, const Kernels& kernels, int threads, void* loss, bool reduce) {
  args.tiling = tiling_of(args);
  std::vector<double> sums(static_cast<size_t>(args.rows * args.tiling.pieces));
  args.sums = sums.data();
  const Work work = {args, kernels};
  run_parts(run_part, &work, args.rows * args.channels * args.inner, threads);
  if (args.compute == Dtype::float32) {
    write_losses(args, static_cast<float*>(loss), reduce);
  } else {
    write_losses(args, static_cast<double*>(loss), reduce);
  }
}

}  // namespace cldfast
