#include "cpu/run.h"

#include <vector>

#include "cpu/planes.h"

namespace cldfast {

namespace {

// About what the cores of one chiplet share. A virtual machine would report the cache of its whole host.
constexpr int64_t LAST_LEVEL_CACHE = int64_t(32) << 20;

// Results bypass the caches where the planes of a call are too large for the next call to find them
// there. A plane that is read as well is better overwritten in the cache.
bool writes_past_cache(const StageArgs& args) {
  int64_t bytes = 0;
  for (int j = 0; j < args.inputs; ++j) bytes += size_of(args.input[j].dtype);
  for (int k = 0; k < args.results; ++k) bytes += size_of(args.result[k].dtype);
  if (args.pairs() <= LAST_LEVEL_CACHE / bytes) return false;
  for (int j = 0; j < args.inputs; ++j) {
    for (int k = 0; k < args.results; ++k) {
      if (args.input[j].data == args.result[k].data) return false;
    }
  }
  return true;
}

Tiling tiling_of(const ResidualArgs& args) {
  // A piece consists of complete pixels where a row is walked by pixel.
  const int64_t whole = args.by_pixel && args.inner <= scalar::BLOCK ? args.inner : 1;
  const int64_t width = args.width(), most = scalar::BLOCK / whole * whole;
  Tiling tiling;
  tiling.piece = width < most ? width : most;
  tiling.pieces = (width + most - 1) / most;
  tiling.together = tiling.pieces > 1 ? 1 : most / width;
  tiling.tiles = (args.rows + tiling.together - 1) / tiling.together * tiling.pieces;
  return tiling;
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

// The matrix of a row costs about as much time as so many noisy pairs.
constexpr int64_t PAIRS_OF_A_ROW = 8;

}  // namespace

void run_stage(StageArgs& args, const Kernels& kernels, int threads, const Pause& pause) {
  if (args.channels <= scalar::PIXEL_CHANNELS) scalar::walk_by_pixel(args);
  const bool past_cache = writes_past_cache(args);
  // 64 pairs are a multiple of what a Philox counter, a vector and a cache line hold.
  const Part part = [&](int64_t begin, int64_t end) { kernels.stage(args, begin, end, past_cache); };
  run_parts(args.pairs(), 64, args.pairs(), threads, part, pause);
}

void run_residual(ResidualArgs& args, const Kernels& kernels, int threads, void* loss, bool reduce,
                  const Pause& pause) {
  scalar::walk_by_pixel(args);
  args.tiling = tiling_of(args);
  std::vector<double> sums(static_cast<size_t>(args.rows * args.tiling.pieces));
  args.sums = sums.data();
  const Part part = [&](int64_t begin, int64_t end) { kernels.residual(args, begin, end); };
  run_parts(args.tiling.tiles, 1, args.pairs(), threads, part, pause);
  if (args.compute == Dtype::float32) {
    write_losses(args, static_cast<float*>(loss), reduce);
  } else {
    write_losses(args, static_cast<double*>(loss), reduce);
  }
}

bool covers_all(const Table& table, const double* t, int64_t rows) {
  bool all = true;
  for (int64_t i = 0; i < rows; ++i) all &= scalar::covers(table, t[i]);
  return all;
}

void run_matrices(const Table& table, const Kernels& kernels, const double* t, int64_t rows,
                  int64_t entries, double* to, int threads, const Pause& pause) {
  const Part part = [&](int64_t begin, int64_t end) {
    kernels.matrices(table, t + begin, end - begin, entries, to + begin * entries);
  };
  run_parts(rows, 64, rows * PAIRS_OF_A_ROW, threads, part, pause);
}

}  // namespace cldfast
