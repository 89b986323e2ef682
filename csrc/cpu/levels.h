// The instruction sets that the kernels are compiled for.
#pragma once

#include <string>
#include <vector>

#include "shared/operations.h"

namespace cldfast {

// Names of the instruction sets that this machine runs, slowest first.
std::vector<std::string> levels();

// The kernels of the named instruction set, the best one if the name is empty; throws
// std::invalid_argument for a level that this machine or build has not.
const Kernels& kernels_for(const std::string& level);

}  // namespace cldfast
