"""Sampling with part of the data given: known coordinates follow their exact forward law."""

from __future__ import annotations

import numpy as np
import torch

from cldfast import kernels
from cldfast.kernels import Backend, NoiseAddress, Stream
from cldfast.process.path import Path, Process


class Inpainting:
    """Known data and where it is known; `sample(..., inpaint=Inpainting(x, mask))`.

    known: (n, d) or (n, C, H, W), one row per sample. mask: bool, broadcastable to known, True
        where the data are given.

    After every stage the known coordinates are replaced by a draw from `p(u_t | x0 = known)`, with
    addressed noise of a stream of its own; at the end they are the known data exactly.
    Source: Song et al. (2021), appendix I.2, in phase space.

    Raises TypeError or ValueError for a mask that is not boolean or shapes that do not fit.
    """

    def __init__(self, known: torch.Tensor, mask: torch.Tensor) -> None:
        kernels.check_data("known", known)
        if not isinstance(mask, torch.Tensor) or mask.dtype != torch.bool:
            got = mask.dtype if isinstance(mask, torch.Tensor) else type(mask).__name__
            raise TypeError(f"mask must be a bool tensor, True where known, got {got}")
        try:
            self.mask = mask.to(known.device).expand(known.shape)
        except RuntimeError:
            raise ValueError(
                f"mask {tuple(mask.shape)} cannot be broadcast to known {tuple(known.shape)}"
            ) from None
        self.known = known

    def rows(self, start: int, stop: int) -> Inpainting:
        """The part for samples start ... stop - 1."""
        return Inpainting(self.known[start:stop], self.mask[start:stop])

    def check(self, sde: Process, u: torch.Tensor) -> None:
        """ValueError unless the process has a velocity, and each state of u a row of known data."""
        if isinstance(sde, Path):
            raise ValueError(f"inpainting is for processes in phase space, got {sde}")
        expected = (u.shape[0], u.shape[1] // 2, *u.shape[2:])
        if tuple(self.known.shape) != expected or self.known.device != u.device:
            raise ValueError(
                f"known data must be {expected} on {u.device}, got {tuple(self.known.shape)} on "
                f"{self.known.device}"
            )

    def apply(
        self,
        sde: Process,
        u: torch.Tensor,
        t: float,
        last: bool,
        address: NoiseAddress,
        backend: Backend,
    ) -> torch.Tensor:
        """The state at time t, its known coordinates replaced; the data themselves if `last`.

        address: of the run's noise at this stage; the draw has a stream of its own.
        """
        kernel = sde.marginal(t)
        factor = np.array(kernel.factor)
        mean = np.array(kernel.mean)
        if last:
            mean[0], factor[0] = 1.0, 0.0
        weights = torch.from_numpy(np.concatenate([mean[:, None], factor], axis=1))[None]
        known = kernels.stage(
            None, (self.known.to(u.dtype),), (), weights,
            noise=address.in_stream(Stream.INPAINTING), backend=backend,
        ).state  # fmt: skip
        return torch.where(torch.cat([self.mask, self.mask], dim=1), known, u)
