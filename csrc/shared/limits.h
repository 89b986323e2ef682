// The largest sizes that kernels take. Both bindings show these numbers to Python.
#pragma once

namespace cldfast {

constexpr int MOST_PLANES = 32;                 // that one call reads, and that it writes
constexpr int STAGE_COLUMNS = MOST_PLANES + 2;  // of a stage's matrix: planes that are read, and noise
constexpr int MOST_COLUMNS = 64;                // of a table's matrices: the bits of a mask
constexpr int MOST_OCTAVES = 999;               // of a table
constexpr int LAUNCH_OUTPUTS = 4;               // planes that one launch on a GPU writes
constexpr int MOST_OVERWRITTEN = 2;             // planes of a gradient that a GPU may write over inputs

}  // namespace cldfast
