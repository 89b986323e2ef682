// The CPU's side of tables.
#pragma once

#include "cpu/stage.h"
#include "shared/table.h"

namespace cldfast {

// Whether a table covers every one of `rows` times.
bool covers_all(const Table& table, const double* t, int64_t rows);

// Evaluates a table at `rows` times that it covers, on up to `threads` threads of torch's, `entries`
// numbers a row.
void run_matrices(const Table& table, const Kernels& kernels, const double* t, int64_t rows,
                  int64_t entries, double* to, int threads);

}  // namespace cldfast
