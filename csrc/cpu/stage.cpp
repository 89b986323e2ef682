#include "cpu/stage.h"

#include <stdexcept>

#include "cpu/threads.h"

namespace cldfast {

#if defined(CLDFAST_X86)
namespace avx512 {
extern const Kernels kernels;
}
namespace avx2 {
extern const Kernels kernels;
}
#endif
namespace portable {
extern const Kernels kernels;
}

namespace {

std::vector<const Kernels*> find_kernels() {
  std::vector<const Kernels*> found = {&portable::kernels};
#if defined(CLDFAST_X86)
  // These ask for the operating system's support of the registers as well.
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found.push_back(&avx2::kernels);
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    found.push_back(&avx512::kernels);
  }
#endif
  return found;
}

const std::vector<const Kernels*>& machine_kernels() {
  static const std::vector<const Kernels*> found = find_kernels();
  return found;
}

struct Work {
  const StageArgs& args;
  const Kernels& kernels;
  int64_t pairs;
  bool past_cache;
};

// Parts begin at multiples of 64 pairs: whole Philox counters, vectors and cache lines.
void run_part(const void* data, int64_t part, int64_t parts) {
  const Work& work = *static_cast<const Work*>(data);
  const int64_t begin = part_begin(work.pairs, 64, part, parts);
  const int64_t end = part_begin(work.pairs, 64, part + 1, parts);
  if (begin < end) work.kernels.stage(work.args, begin, end, work.past_cache);
}

int64_t size_of(Dtype dtype) {
  switch (dtype) {
    case Dtype::float32: return 4;
    case Dtype::float64: return 8;
    default: return 2;
  }
}

// About what the cores of one chiplet share; virtual machines report the whole host's.
constexpr int64_t LAST_LEVEL_CACHE = int64_t(32) << 20;

// Outputs go past the caches when they are not read here (a line in the cache is then better
// overwritten there) and the call's planes are too many for the next call to find them cached.
bool writes_past_cache(const StageArgs& args, int64_t pairs) {
  int64_t bytes = 0;
  for (int i = 0; i < args.inputs; ++i) bytes += size_of(args.input[i].dtype);
  for (int i = 0; i < args.outputs; ++i) bytes += size_of(args.output[i].dtype);
  if (pairs <= LAST_LEVEL_CACHE / bytes) return false;
  for (int i = 0; i < args.inputs; ++i) {
    for (int k = 0; k < args.outputs; ++k) {
      if (args.input[i].data == args.output[k].data) return false;
    }
  }
  return true;
}

}  // namespace

std::vector<std::string> levels() {
  std::vector<std::string> names;
  for (const Kernels* kernels : machine_kernels()) names.push_back(kernels->level);
  return names;
}

const Kernels& kernels_for(const std::string& level) {
  if (level.empty()) return *machine_kernels().back();
  std::string known;
  for (const Kernels* kernels : machine_kernels()) {
    if (level == kernels->level) return *kernels;
    known += std::string(known.empty() ? "" : ", ") + kernels->level;
  }
  throw std::invalid_argument("level must be one of " + known + ", got " + level);
}

void run_stage(const StageArgs& args, const Kernels& kernels, int threads) {
  const int64_t pairs = args.rows * args.channels * args.inner;
  if (pairs == 0) return;
  const Work work = {args, kernels, pairs, writes_past_cache(args, pairs)};
  run_parts(run_part, &work, pairs, threads);
}

}  // namespace cldfast
