#include "stage_cpu.h"

#include <dlfcn.h>

#include <stdexcept>

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

// torch loads one OpenMP runtime for the whole process. Its entry points are looked up by name, so
// that this library neither links nor loads a second one.
struct OpenMP {
  void (*parallel)(void (*body)(void*), void* data, unsigned threads, unsigned flags);
  int (*thread_number)();
  int (*team_size)();
  int (*in_parallel)();

  bool found() const { return parallel && thread_number && team_size && in_parallel; }
};

template <class Function>
void look_up(Function& function, const char* name) {
  function = reinterpret_cast<Function>(dlsym(RTLD_DEFAULT, name));
}

const OpenMP& openmp() {
  static const OpenMP runtime = [] {
    OpenMP found = {};
    look_up(found.parallel, "GOMP_parallel");
    look_up(found.thread_number, "omp_get_thread_num");
    look_up(found.team_size, "omp_get_num_threads");
    look_up(found.in_parallel, "omp_in_parallel");
    return found;
  }();
  return runtime;
}

struct Work {
  const StageArgs& args;
  const Kernels& kernels;
  int64_t pairs;
  bool past_cache;

  // Shares begin at multiples of 64 pairs: whole Philox counters, vectors and cache lines.
  int64_t boundary(int64_t part, int64_t parts) const {
    const int64_t lines = (pairs + 63) / 64;
    const int64_t whole = lines / parts * part + lines % parts * part / parts;
    return part == parts ? pairs : whole * 64;
  }

  void share(int64_t part, int64_t parts) const {
    const int64_t begin = boundary(part, parts), end = boundary(part + 1, parts);
    if (begin < end) kernels.stage(args, begin, end, past_cache);
  }
};

// What every call on torch's pool runs.
void team_share(void* data) {
  static_cast<const Work*>(data)->share(openmp().thread_number(), openmp().team_size());
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

const char* threading() { return openmp().found() ? "gomp" : "serial"; }

// Waking torch's pool costs a few microseconds, in which one thread does some 4,000 noisy pairs; two
// threads gain half of the work, so four times that is where sharing begins to pay clearly.
const int64_t SERIAL_PAIRS = 16384;

void run_stage(const StageArgs& args, const Kernels& kernels, int threads) {
  const int64_t pairs = args.rows * args.channels * args.inner;
  if (pairs == 0) return;
  Work work = {args, kernels, pairs, writes_past_cache(args, pairs)};
  if (threads <= 1 || pairs < SERIAL_PAIRS || !openmp().found() || openmp().in_parallel()) {
    work.share(0, 1);
  } else {
    openmp().parallel(team_share, &work, static_cast<unsigned>(threads), 0);
  }
}

}  // namespace cldfast
