// Tables on a GPU.
#pragma once

#include "cuda/calls.h"
#include "shared/table.h"

namespace cldfast {

// The matrices at `rows` times, `entries` numbers each. The table's arrays, times and result are in
// device memory; times that the table does not cover give numbers without meaning.
void matrices_cuda(const Table& table, const double* times, int64_t rows, int64_t entries, double* to,
                   const Queue& queue);

}  // namespace cldfast
