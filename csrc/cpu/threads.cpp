#include "cpu/threads.h"

#include <dlfcn.h>
#include <pthread.h>

#include <algorithm>

#if defined(__SANITIZE_THREAD__)
extern "C" void __tsan_acquire(void* address);
extern "C" void __tsan_release(void* address);
#endif

namespace cldfast {

namespace {

// The thread sanitizer does not see how the OpenMP runtime starts and joins threads, so it is told.
void happens_before([[maybe_unused]] void* work) {
#if defined(__SANITIZE_THREAD__)
  __tsan_release(work);
#endif
}

void happens_after([[maybe_unused]] void* work) {
#if defined(__SANITIZE_THREAD__)
  __tsan_acquire(work);
#endif
}

// Whether this process is a child of fork(). It has the memory of its parent's pool and none of the
// threads, for which the runtime would wait forever.
bool forked = false;

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
  int64_t first, count, whole;
  const Part& part;

  // Where part `number` of so many begins.
  int64_t begin(int64_t number, int64_t parts) const {
    const int64_t units = (count + whole - 1) / whole;
    const int64_t unit = units / parts * number + units % parts * number / parts;
    return first + (number == parts ? count : unit * whole);
  }

  void run(int64_t number, int64_t parts) const {
    const int64_t from = begin(number, parts), to = begin(number + 1, parts);
    if (from < to) part(from, to);
  }
};

// What every thread of torch's pool runs.
void run_part(void* work) {
  happens_after(work);
  static_cast<const Work*>(work)->run(openmp().thread_number(), openmp().team_size());
  happens_before(work);
}

// Work without a pause. The slowest kernels make 5 million pairs a second on one thread, so that this many
// take less than a second.
constexpr int64_t SPAN_PAIRS = int64_t(1) << 22;

}  // namespace

const char* threading() { return openmp().found() ? "gomp" : "serial"; }

// Torch's pool takes a few microseconds to wake up, in which one thread does some 4,000 noisy pairs. Two
// threads save half of the time, so that sharing clearly pays from four times as many pairs on.
const int64_t SERIAL_PAIRS = 16384;

void expect_forks() {
  pthread_atfork(nullptr, nullptr, [] { forked = true; });
}

void run_parts(int64_t count, int64_t whole, int64_t pairs, int threads, const Part& part,
               const Pause& pause) {
  const bool alone = threads <= 1 || pairs < SERIAL_PAIRS || forked || !openmp().found() ||
                     openmp().in_parallel();
  const Work all = {0, count, whole, part};
  const int64_t spans = std::max(pairs / SPAN_PAIRS, int64_t(1));
  for (int64_t span = 0; span < spans; ++span) {
    if (span > 0) pause();
    const int64_t from = all.begin(span, spans);
    Work work = {from, all.begin(span + 1, spans) - from, whole, part};
    if (alone) {
      work.run(0, 1);
    } else {
      happens_before(&work);
      openmp().parallel(run_part, &work, static_cast<unsigned>(threads), 0);
      happens_after(&work);
    }
  }
}

}  // namespace cldfast
