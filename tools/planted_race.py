"""Two threads write one tensor, which `make sanitize-threads` must see."""

import threading

import torch

from cldfast import NoiseAddress, kernels

u = torch.ones(30_000, 2)
w = torch.eye(2, 4, dtype=torch.float64)[None]


# One call can be over before the other thread begins; of many that begin together some overlap.
together = threading.Barrier(2)


def overwrite() -> None:
    together.wait()
    for _ in range(100):
        kernels.stage(u, weights=w, noise=NoiseAddress(1), backend="cpu", out=u)


threads = [threading.Thread(target=overwrite) for _ in range(2)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
