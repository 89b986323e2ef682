// Compiled once for each instruction set, with its flags and CLDFAST_LEVEL set to its name.
#include "stage_kernel.h"
