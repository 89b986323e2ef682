// The stage on a GPU, with normals of the hardware's logarithm, sine and cosine.
#define CLDFAST_LEVEL device_fast
#define CLDFAST_FAST_NORMALS
#include "cuda/stage_kernels.h"

namespace cldfast {

void run_stage_fast(const StageArgs& args, bool on_device, const int64_t* step, const Queue& queue) {
  CLDFAST_LEVEL::launch_stage(args, on_device, step, queue);
}

}  // namespace cldfast
