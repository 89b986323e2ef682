// The CPU's side of the stage: which instruction set, and torch's threads.
#pragma once

#include <string>
#include <vector>

#include "stage.h"

namespace cldfast {

// Names of the instruction sets that this machine runs, slowest first.
std::vector<std::string> levels();

// The kernels of the named instruction set, the best one if the name is empty; throws
// std::invalid_argument for a level that this machine or build has not.
const Kernels& kernels_for(const std::string& level);

// "gomp" where torch's OpenMP runtime was found, "serial" where not.
const char* threading();

// Fewer pairs than this run on the calling thread.
extern const int64_t SERIAL_PAIRS;

// Runs a stage on up to `threads` threads of that runtime.
void run_stage(const StageArgs& args, const Kernels& kernels, int threads);

}  // namespace cldfast
