"""The ways of running the operations; each registers itself here when it is imported.

The order is that of preference.
"""

from cldfast.kernels.backends import cpu, cuda, triton  # isort: skip
from cldfast.kernels.backends import reference  # isort: skip

__all__ = ["cpu", "cuda", "reference", "triton"]
