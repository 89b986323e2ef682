"""The kernels in Triton, for GPUs without compiled CUDA kernels."""
