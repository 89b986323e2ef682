"""Normals as a codebase draws them, for the published modes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch

from cldfast.planner.stage import Stage


class Draws:
    """A source of normals: recorded tensors in the order of the codebase's draws, or PyTorch's.

    recorded: tensors to hand out one by one; None draws from PyTorch's default generator in the
        same order, so that a seed gives what it gives in the codebase.
    """

    def __init__(self, recorded: Iterable[torch.Tensor | None] | None = None) -> None:
        self._recorded = None if recorded is None else iter(recorded)
        self._taken = 0

    def normal(
        self, shape: Sequence[int], dtype: torch.dtype, device: torch.device | str
    ) -> torch.Tensor:
        """The next tensor; ValueError when the recorded ones are used up or of another shape."""
        if self._recorded is None:
            return torch.randn(tuple(shape), dtype=dtype, device=device)
        z = next(self._recorded, None)
        if z is None:
            raise ValueError(
                f"noise must hold every draw in the order of the codebase; after {self._taken} "
                f"tensors one of shape {tuple(shape)} is missing"
            )
        if tuple(z.shape) != tuple(shape):
            raise ValueError(
                f"noise[{self._taken}] must have shape {tuple(shape)}, got {tuple(z.shape)}"
            )
        self._taken += 1
        return z.to(device)


class StageNoise(Sequence[torch.Tensor | None]):
    """The normals of the stages of a run, made one by one when `cldfast.run` asks for them.

    make: `make(index)`, the normals of a stage; not called for stages without noise.
    """

    def __init__(self, stages: Sequence[Stage], make: Callable[[int], torch.Tensor]) -> None:
        self._noisy = [bool(np.any(stage.L)) for stage in stages]
        self._make = make

    def __len__(self) -> int:
        return len(self._noisy)

    def __getitem__(self, index: int) -> torch.Tensor | None:  # type: ignore[override]
        return self._make(index) if self._noisy[index] else None


def widened(shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of the states of data (B, d) or (B, C, H, W)."""
    rows, channels, *rest = shape
    return (rows, 2 * channels, *rest)
