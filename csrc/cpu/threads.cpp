#include "cpu/threads.h"

#include <dlfcn.h>

namespace cldfast {

namespace {

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
  int64_t count, whole;
  const Part& part;

  int64_t begin(int64_t number, int64_t parts) const {
    const int64_t units = (count + whole - 1) / whole;
    const int64_t unit = units / parts * number + units % parts * number / parts;
    return number == parts ? count : unit * whole;
  }

  void run(int64_t number, int64_t parts) const {
    const int64_t first = begin(number, parts), end = begin(number + 1, parts);
    if (first < end) part(first, end);
  }
};

// What every thread of torch's pool runs.
void run_part(void* work) {
  static_cast<const Work*>(work)->run(openmp().thread_number(), openmp().team_size());
}

}  // namespace

const char* threading() { return openmp().found() ? "gomp" : "serial"; }

// Waking torch's pool costs a few microseconds, in which one thread does some 4,000 noisy pairs; two
// threads gain half of the work, so four times that is where sharing begins to pay clearly.
const int64_t SERIAL_PAIRS = 16384;

void run_parts(int64_t count, int64_t whole, int64_t pairs, int threads, const Part& part) {
  Work work = {count, whole, part};
  if (threads <= 1 || pairs < SERIAL_PAIRS || !openmp().found() || openmp().in_parallel()) {
    work.run(0, 1);
  } else {
    openmp().parallel(run_part, &work, static_cast<unsigned>(threads), 0);
  }
}

}  // namespace cldfast
