"""Standardised data: what was subtracted and divided by before training, undone in samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor


@dataclass(frozen=True)
class DataScale:
    """Mean and standard deviation of each coordinate (vectors) or channel (images).

    mean, std: one number for each entry of dimension 1 of the data, std > 0. The standardised data
    have the standard deviation 1, which is then the `sigma_data` of `cldfast.Preconditioned`.

    Raises ValueError for numbers that are not finite, or a std that is not > 0.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        for name, least in (("mean", -math.inf), ("std", 0.0)):
            values = getattr(self, name)
            numbers = isinstance(values, Sequence) and all(
                isinstance(v, int | float) and not isinstance(v, bool) for v in values
            )
            if not numbers or not all(least < v < math.inf for v in values):
                above = " > 0" if name == "std" else ""
                raise ValueError(f"{name}: expected finite numbers{above}, got {values!r}")
            object.__setattr__(self, name, tuple(float(v) for v in values))
        if len(self.mean) != len(self.std) or not self.mean:
            raise ValueError(
                f"expected one mean and one std each, got {len(self.mean)} and {len(self.std)}"
            )

    @classmethod
    def fit(cls, rows: Tensor) -> DataScale:
        """The scale of rows (n, d) or (n, C, H, W), n >= 2; a constant entry keeps its unit.

        Raises ValueError for other shapes, or values that are not finite.
        """
        if rows.dim() not in (2, 4) or len(rows) < 2:
            raise ValueError(
                f"rows: expected (n, d) or (n, C, H, W) with n >= 2, got {tuple(rows.shape)}"
            )
        values = rows.double().transpose(0, 1).flatten(1)
        std, mean = torch.std_mean(values, dim=1)
        return cls(tuple(mean.tolist()), tuple(torch.where(std > 0.0, std, 1.0).tolist()))

    def standardise(self, rows: Tensor) -> Tensor:
        """`(rows - mean) / std`, in the dtype of the rows."""
        mean, std = self._like(rows)
        return (rows - mean) / std

    def restore(self, rows: Tensor) -> Tensor:
        """The inverse: rows in the units of the data."""
        mean, std = self._like(rows)
        return rows * std + mean

    def stretch(self, rows: Tensor) -> Tensor:
        """`rows * std`: velocities and differences of rows in the units of the data."""
        return rows * self._like(rows)[1]

    def log_volume(self, shape: Sequence[int]) -> float:
        """The log of the volume of one unit of standardised data of a shape, (d,) or (C, H, W)."""
        return math.prod(shape[1:]) * math.fsum(math.log(std) for std in self.std)

    def _like(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        if rows.dim() < 2 or rows.shape[1] != len(self.mean):
            raise ValueError(
                f"rows: expected {len(self.mean)} entries along dimension 1, "
                f"got {tuple(rows.shape)}"
            )
        return _tensors(self, rows.dtype, rows.device, rows.dim())


@lru_cache(maxsize=32)
def _tensors(
    scale: DataScale, dtype: torch.dtype, device: torch.device, dim: int
) -> tuple[Tensor, Tensor]:
    """Mean and std on a device, kept: a copy to it would be waited for in each step."""
    shape = (1, -1, *[1] * (dim - 2))
    with torch.inference_mode(False):
        mean, std = (
            torch.tensor(values, dtype=dtype, device=device).reshape(shape)
            for values in (scale.mean, scale.std)
        )
    return mean, std
