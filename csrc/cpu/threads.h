// Torch's threads.
#pragma once

#include <cstdint>
#include <functional>

namespace cldfast {

// "gomp" where torch's OpenMP runtime was found, "serial" where not.
const char* threading();

// Fewer pairs than this run on the calling thread.
extern const int64_t SERIAL_PAIRS;

// From now on a child of fork() works on one thread, whatever it is asked for.
void expect_forks();

using Part = std::function<void(int64_t begin, int64_t end)>;
using Pause = std::function<void()>;

// Calls part(begin, end) for parts of `count` things on at most `threads` threads of that runtime, or on
// the calling thread alone where there are few pairs to work on. All parts but the last are multiples of
// `whole`. Long work is interrupted by pauses on the calling thread; one that throws ends it.
void run_parts(int64_t count, int64_t whole, int64_t pairs, int threads, const Part& part,
               const Pause& pause);

}  // namespace cldfast
