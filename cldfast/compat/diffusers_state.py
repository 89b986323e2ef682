"""The state (x, v) behind the one plane of it that a network sees.

A network of y sees the plane `k u`, k a row and u = (x, v) the state at each coordinate. Given the
plane, a state of the law N(0, S) is

    u | k u = p  ~  N(gain p, rest rest^T),
    gain = S k^T / (k S k^T),      rest = (det S / k S k^T)^(1/2) (-k_v, k_x).

For S the covariance at a time t for data of unit variance, `gain` is the mean row m over the scale
of y. What is left of u is noise that is independent of the data, so this law is that of u given y
for any data.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from cldfast import kernels
from cldfast.compat.diffusers_noise import Seeds, seeded_normals
from cldfast.kernels import NoiseAddress, Stream
from cldfast.sampling.steps import look


@dataclass(frozen=True)
class SeenPlane:
    """The law of a state given the plane that a network sees; row, gain, rest: (2,), see above.

    std: standard deviation of the plane.
    """

    row: np.ndarray
    gain: np.ndarray
    rest: np.ndarray
    std: float

    @classmethod
    def of(cls, row: np.ndarray, cov: np.ndarray) -> SeenPlane:
        """The plane `row u` (2,) of states N(0, cov), (2, 2)."""
        pull = cov @ row
        variance = float(row @ pull)
        rest = math.sqrt(np.linalg.det(cov) / variance) * np.array([-row[1], row[0]])
        return cls(row, pull / variance, rest, math.sqrt(variance))

    def draw(self, plane: torch.Tensor, normals: torch.Tensor) -> torch.Tensor:
        """States (B, 2C, ...) whose plane (B, C, ...) is this one, of unit normals (B, C, ...)."""
        halves = [
            float(gain) * plane + float(rest) * normals
            for gain, rest in zip(self.gain, self.rest, strict=True)
        ]
        return torch.cat(halves, dim=1)

    def move(self, state: torch.Tensor, plane: torch.Tensor) -> torch.Tensor:
        """The state (B, 2C, ...), moved so that its plane is this one (B, C, ...).

        The state stays the same, bit for bit, where the plane is what the state shows in the
        plane's dtype: the difference is 0 there. So nobody has to compare, which would make the
        host wait for the device.
        """
        shown = look(self.row[None], state, plane.dtype)
        change = plane.to(state.dtype) - shown.to(state.dtype)
        return state + torch.cat([float(gain) * change for gain in self.gain], dim=1)


class HiddenState:
    """The states (B, 2C, ...) of a run whose samples are planes (B, C, ...) of them."""

    def __init__(self) -> None:
        self._state: torch.Tensor | None = None  # after the first step

    def behind(
        self, sample: torch.Tensor, plane: SeenPlane, seeds: Seeds, first_index: int
    ) -> torch.Tensor:
        """The state of which the network sees the sample; drawn in the first step of a run."""
        if self._state is not None:
            return plane.move(self._state, sample)
        dtype = torch.float64 if sample.dtype == torch.float64 else torch.float32
        address = NoiseAddress(0, first_index, stream=Stream.INITIAL_STATE)
        pairs = seeded_normals(sample.shape, seeds, address, dtype, sample.device)
        # The x half may be the sample itself: `CLDScheduler.initial_noise`.
        return plane.draw(sample.to(dtype), pairs.chunk(2, dim=1)[1])

    def keep(self, state: torch.Tensor, row: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
        """The sample `row u` (B, C, ...) of the state, which is kept for the next step."""
        self._state = state
        return look(row[None], state, dtype)

    def check(self, sample: object) -> None:
        """ValueError or TypeError for what is no plane of this run's state."""
        if not isinstance(sample, torch.Tensor) or sample.dtype not in kernels.OUTPUT_DTYPES:
            got = str(sample.dtype) if isinstance(sample, torch.Tensor) else type(sample).__name__
            raise TypeError(f"sample must be a float tensor (B, C, H, W), got {got}")
        if sample.dim() < 2 or sample.numel() == 0:
            raise ValueError(f"sample must be (B, C, H, W), not empty, got {tuple(sample.shape)}")
        if self._state is not None:
            rows, channels, *rest = self._state.shape
            wanted = (rows, channels // 2, *rest)
            if sample.shape != wanted:
                raise ValueError(
                    f"sample must be {wanted} as in the first step, got {tuple(sample.shape)}"
                )
