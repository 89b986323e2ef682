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

struct Call {
  void (*body)(const void* work, int64_t part, int64_t parts);
  const void* work;
};

// What every call on torch's pool runs.
void team_part(void* data) {
  const Call& call = *static_cast<const Call*>(data);
  call.body(call.work, openmp().thread_number(), openmp().team_size());
}

}  // namespace

const char* threading() { return openmp().found() ? "gomp" : "serial"; }

// Waking torch's pool costs a few microseconds, in which one thread does some 4,000 noisy pairs; two
// threads gain half of the work, so four times that is where sharing begins to pay clearly.
const int64_t SERIAL_PAIRS = 16384;

void run_parts(void (*body)(const void* work, int64_t part, int64_t parts), const void* work,
               int64_t pairs, int threads) {
  if (threads <= 1 || pairs < SERIAL_PAIRS || !openmp().found() || openmp().in_parallel()) {
    body(work, 0, 1);
  } else {
    Call call = {body, work};
    openmp().parallel(team_part, &call, static_cast<unsigned>(threads), 0);
  }
}

int64_t part_begin(int64_t count, int64_t whole, int64_t part, int64_t parts) {
  const int64_t units = (count + whole - 1) / whole;
  const int64_t begin = units / parts * part + units % parts * part / parts;
  return part == parts ? count : begin * whole;
}

}  // namespace cldfast
