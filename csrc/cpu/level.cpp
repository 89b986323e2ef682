// Compiled once for each instruction set, with its flags and CLDFAST_LEVEL set to its name.
#include "cpu/residual_kernel.h"
#include "cpu/stage_kernel.h"
#include "cpu/table_kernel.h"

#define CLDFAST_QUOTE(name) #name
#define CLDFAST_NAME(name) CLDFAST_QUOTE(name)

namespace cldfast::CLDFAST_LEVEL {

extern const Kernels kernels;
const Kernels kernels = {CLDFAST_NAME(CLDFAST_LEVEL), stage, residual, matrices, words};

}  // namespace cldfast::CLDFAST_LEVEL
