#include <stdexcept>

#include "cpu/run.h"

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

const std::vector<const Kernels*>& machine_kernels() {
  static const std::vector<const Kernels*> known = [] {
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
  }();
  return known;
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

}  // namespace cldfast
