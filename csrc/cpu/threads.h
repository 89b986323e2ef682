// Torch's threads.
#pragma once

#include <cstdint>
#include <functional>

namespace cldfast {

// "gomp" where torch's OpenMP runtime was found, "serial" where not.
const char* threading();

// Fewer pairs than this run on the calling thread.
extern const int64_t SERIAL_PAIRS;

using Part = std::function<void(int64_t begin, int64_t end)>;

// Calls part(begin, end) for parts of `count` things, each but the last a multiple of `whole`: on up to
// `threads` threads of that runtime, or on the calling thread alone where there are few pairs to work on.
void run_parts(int64_t count, int64_t whole, int64_t pairs, int threads, const Part& part);

}  // namespace cldfast
