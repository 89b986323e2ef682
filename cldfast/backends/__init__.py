"""One module for each way of running the fused operations; `cldfast.ops` chooses among them."""
