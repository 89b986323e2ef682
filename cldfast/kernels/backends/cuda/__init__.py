"""The compiled CUDA kernels, for NVIDIA GPUs."""
