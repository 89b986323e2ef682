// The CPU's side of tables.
#pragma once

#include "stage_cpu.h"
#include "table.h"

namespace cldfast {

// Evaluates a table at `rows` times on up to `threads` threads of torch's, `entries` numbers a row;
// false, and an unfinished result, where a time lies outside the table.
bool run_matrices(const Table& table, const Kernels& kernels, const double* t, int64_t rows,
                  int64_t entries, double* to, int threads);

}  // namespace cldfast
