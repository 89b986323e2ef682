// The largest sizes that kernels take. Both bindings show these numbers to Python.
#pragma once

namespace cldfast {

constexpr int MOST_PLANES = 32;      // read by one call, and as many written
constexpr int STAGE_COLUMNS = MOST_PLANES + 2;  // of a stage's matrix: both normals too
constexpr int MOST_COLUMNS = 64;     // of a table's matrix: the bits of a mask
constexpr int MOST_OCTAVES = 999;    // of a table
constexpr int LAUNCH_OUTPUTS = 4;    // planes that one launch on a GPU writes; a stage of more is launched again
constexpr int MOST_OVERWRITTEN = 2;  // planes of a gradient that may lie over planes that a GPU reads

}  // namespace cldfast
