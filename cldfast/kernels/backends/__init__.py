"""The ways of running the fused operations, a folder each; `cldfast.kernels` chooses among them."""
