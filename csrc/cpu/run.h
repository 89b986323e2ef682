// The kernels of the instruction sets, and operations by them on at most `threads` of torch's threads.
#pragma once

#include <string>
#include <vector>

#include "cpu/threads.h"
#include "shared/operations.h"
#include "shared/table.h"

namespace cldfast {

// Names of the instruction sets that this machine runs, slowest first.
std::vector<std::string> levels();

// The kernels of the named instruction set, the best one if the name is empty; throws
// std::invalid_argument for a level that this machine or build has not.
const Kernels& kernels_for(const std::string& level);

// run_stage and run_residual may change the order in which `args` walks through planes.
void run_stage(StageArgs& args, const Kernels& kernels, int threads, const Pause& pause);

// `loss` receives numbers of the compute dtype: one for each row, or the sum over rows alone if
// `reduce`.
void run_residual(ResidualArgs& args, const Kernels& kernels, int threads, void* loss, bool reduce,
                  const Pause& pause);

// Whether a table covers every one of `rows` times.
bool covers_all(const Table& table, const double* t, int64_t rows);

// Evaluates a table at `rows` times that it covers, `entries` numbers a row.
void run_matrices(const Table& table, const Kernels& kernels, const double* t, int64_t rows,
                  int64_t entries, double* to, int threads, const Pause& pause);

}  // namespace cldfast
