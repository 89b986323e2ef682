"""Ten thousand calls of each operation of the core leave nothing allocated: `make sanitize`.

Runs under the address sanitizer, which counts the bytes that are allocated.
"""

from __future__ import annotations

import ctypes
import gc
import sys

import torch

from cldfast import NoiseAddress, kernels
from cldfast.kernels import get_backend

CALLS = 10_000


def main() -> int:
    allocated = ctypes.CDLL(None).__sanitizer_get_current_allocated_bytes
    allocated.restype = ctypes.c_size_t
    core = get_backend("cpu", "cpu").core  # type: ignore[attr-defined]
    u, w = torch.ones(8, 4), torch.eye(2, 4, dtype=torch.float64)[None]
    bad = w.clone()
    bad[0, 0, 0] = float("nan")
    words = torch.empty(2, 64, dtype=torch.int32)

    def refused() -> None:
        try:
            kernels.stage(u, weights=bad, noise=NoiseAddress(1), backend="cpu")
        except ValueError:
            return
        raise AssertionError("weights that are not finite were taken")

    def residual() -> None:
        output, offset = torch.ones(8, 2, requires_grad=True), torch.ones(8, 2)
        of_rows = torch.ones(8, 1, 2, dtype=torch.float64)
        kernels.residual(output, offset, of_rows, backend="cpu").sum().backward()

    operations = {
        "stage": lambda: kernels.stage(u, weights=w, noise=NoiseAddress(1), backend="cpu"),
        "refused stage": refused,
        "residual": residual,
        "words": lambda: core.philox_words(
            (1, 0, 0, 0), 64, words[0].data_ptr(), words[1].data_ptr()
        ),
    }
    leaked = 0
    for name, call in operations.items():
        for count in (CALLS // 10, CALLS):
            gc.collect()
            before = allocated()
            for _ in range(count):
                call()
            gc.collect()
            grown = allocated() - before
        print(f"{name}: {grown} bytes more after {CALLS} calls")
        # What Python keeps for itself, such as a grown list, is less than a byte for each call.
        leaked += grown > CALLS
    return int(leaked > 0)


if __name__ == "__main__":
    sys.exit(main())
