// The CUDA launchers with loops in place of threads: what a thread does, run by the host compiler on
// host memory. Linked with csrc/bind_cuda.cpp it makes a module with the interface of `_cuda`.
#define CLDFAST_LEVEL device
#include "cuda_residual_thread.h"
#include "cuda_stage_thread.h"
#include "residual_cuda.h"

namespace cldfast {
namespace {

using namespace CLDFAST_LEVEL;

template <class T, bool OWN>
void matrix_of(const Launch& launch, T* shared) {
  const int64_t step = launch.step ? *launch.step : 0;
  for (int i = 0; i < LAUNCH_OUTPUTS * LAUNCH_COLUMNS; ++i) {
    if (!OWN) shared[i] = matrix_entry<T>(launch, step, i);
  }
}

template <int OUTS, bool OWN, bool PLAIN>
void vector(const Launch& launch) {
  float shared[LAUNCH_OUTPUTS * LAUNCH_COLUMNS];
  matrix_of<float, OWN>(launch, shared);
  for (int64_t tile = 0; tile * 2 * LANES < launch.units; ++tile) {
    for (int lane = 0; lane < LANES; ++lane) {
      stage_quads<OUTS, OWN, PLAIN>(launch, shared, stage_index_of(launch), tile, lane);
    }
  }
}

template <class T, bool OWN>
void scalar(const Launch& launch) {
  T shared[LAUNCH_OUTPUTS * LAUNCH_COLUMNS];
  matrix_of<T, OWN>(launch, shared);
  for (int64_t unit = 0; unit < launch.units; ++unit) {
    stage_two<T, OWN>(launch, shared, stage_index_of(launch), unit);
  }
}

template <bool OWN>
void run(const Launch& launch) {
  if (launch.way != Way::vector) {
    return launch.compute == Dtype::float32 ? scalar<float, OWN>(launch) : scalar<double, OWN>(launch);
  }
  if (!launch.plain) {
    return launch.outputs <= 2 ? vector<2, OWN, false>(launch) : vector<4, OWN, false>(launch);
  }
  if (launch.outputs <= 2) return vector<2, OWN, true>(launch);
  return launch.outputs == 3 ? vector<3, OWN, true>(launch) : vector<4, OWN, true>(launch);
}

}  // namespace

void run_stage_cuda(const StageArgs& args, const double* table, const int64_t* step, uint64_t used,
                    const Queue&) {
  for (int first = (args.outputs - 1) / LAUNCH_OUTPUTS * LAUNCH_OUTPUTS; first >= 0;
       first -= LAUNCH_OUTPUTS) {
    const Launch launch = launch::prepare(args, table, step, used, first);
    launch.own_matrix ? run<true>(launch) : run<false>(launch);
  }
}

void advance_cuda(int64_t* step, const void* times, void* time, int64_t count, bool wide,
                  const Queue&) {
  if (++*step >= count) return;
  if (wide) {
    *static_cast<double*>(time) = static_cast<const double*>(times)[*step];
  } else {
    *static_cast<float*>(time) = static_cast<const float*>(times)[*step];
  }
}

void philox_words_cuda(uint64_t seed, uint64_t first_pair, int64_t count, uint32_t stage_index,
                       uint32_t stream, uint32_t* radius, uint32_t* angle, const Queue&) {
  for (int64_t i = 0; i < count; ++i) {
    const uint64_t pair = first_pair + static_cast<uint64_t>(i);
    const Words<uint64_t> w =
        philox4x32(pair_counter<uint64_t>(pair >> 1, stage_index, stream), round_keys(seed));
    radius[i] = static_cast<uint32_t>(pair & 1 ? w.w2 : w.w0);
    angle[i] = static_cast<uint32_t>(pair & 1 ? w.w3 : w.w1);
  }
}

int64_t residual_sums(int64_t rows, int64_t channels, int64_t inner) {
  return rows * launch::most_pieces(channels, inner);
}

void run_residual_cuda(const ResidualArgs& args, void* loss, bool reduce, const Queue&) {
  const ResidualLaunch launch = launch::prepare(args);
  const bool vector = launch.way == Way::vector;
  double total = 0.0;
  for (int64_t row = 0; row < launch.rows; ++row) {
    double sum = 0.0;
    for (int64_t piece = 0; piece < launch.pieces; ++piece) {
      for (int lane = 0; lane < (vector ? LANES : launch.team); ++lane) {
        if (!vector) {
          sum += args.compute == Dtype::float32 ? residual_twos<float>(launch, row, piece, lane)
                                                : residual_twos<double>(launch, row, piece, lane);
        } else if (launch.outputs == 2) {
          sum += launch.plain ? residual_quads<2, 2, true>(launch, row, piece, lane)
                              : residual_quads<2, 2, false>(launch, row, piece, lane);
        } else if (launch.others == 2) {
          sum += launch.plain ? residual_quads<1, 2, true>(launch, row, piece, lane)
                              : residual_quads<1, 2, false>(launch, row, piece, lane);
        } else {
          sum += launch.plain ? residual_quads<1, 1, true>(launch, row, piece, lane)
                              : residual_quads<1, 1, false>(launch, row, piece, lane);
        }
      }
    }
    total += sum;
    if (reduce) continue;
    if (args.compute == Dtype::float32) {
      static_cast<float*>(loss)[row] = static_cast<float>(sum);
    } else {
      static_cast<double*>(loss)[row] = sum;
    }
  }
  if (!reduce) return;
  if (args.compute == Dtype::float32) {
    *static_cast<float*>(loss) = static_cast<float>(total);
  } else {
    *static_cast<double*>(loss) = total;
  }
}

int device_count() { return 1; }
int check_device(int) { return 0; }

}  // namespace cldfast
