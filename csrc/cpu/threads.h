// Torch's threads.
#pragma once

#include <cstdint>

namespace cldfast {

// "gomp" where torch's OpenMP runtime was found, "serial" where not.
const char* threading();

// Fewer pairs than this run on the calling thread.
extern const int64_t SERIAL_PAIRS;

// Calls body(work, part, parts) for every part, on up to `threads` threads of that runtime; on the
// calling thread alone where there are few pairs to work on.
void run_parts(void (*body)(const void* work, int64_t part, int64_t parts), const void* work,
               int64_t pairs, int threads);

// Where part `part` of `count` things begins, in whole multiples of `whole` but for the end.
int64_t part_begin(int64_t count, int64_t whole, int64_t part, int64_t parts);

}  // namespace cldfast
