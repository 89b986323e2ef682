"""The kernels of the compiled core, for the CPU."""
