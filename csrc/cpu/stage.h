// The CPU's side of the stage: which instruction set, and torch's threads.
#pragma once

#include <string>
#include <vector>

#include "shared/stage.h"

namespace cldfast {

// Names of the instruction sets that this machine runs, slowest first.
std::vector<std::string> levels();

// The kernels of the named instruction set, the best one if the name is empty; throws
// std::invalid_argument for a level that this machine or build has not.
const Kernels& kernels_for(const std::string& level);

// Runs a stage on up to `threads` threads of torch's.
void run_stage(const StageArgs& args, const Kernels& kernels, int threads);

}  // namespace cldfast
