"""Data sets with known laws, Gaussian mixtures with their exact score, and real handwritten digits.

Every data set has `dim` and `sample(n, seed)`. The grid of 25 Gaussians, the diamonds and the
two points are `GaussianMixture` objects, so their exact phase-space score is known at every time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from cldfast.extras import extra_module
from cldfast.lab.mixture import GaussianMixture, sample_generator

# Generators of a seed live on the CPU, so data are made there, whatever PyTorch's default device.
_HOST: dict[str, Any] = {"dtype": torch.float64, "device": "cpu"}
DATASETS = ("funnel", "gaussians25", "diamonds", "swiss_roll", "two_points", "digits")


class Dataset(Protocol):
    """What every data set offers: its dimension, and seeded samples `(n, ...)` in float32."""

    @property
    def dim(self) -> int: ...

    def sample(self, n: int, seed: int = 0) -> Tensor: ...


Maker = Callable[..., Dataset]


def make_data(name: str, dim: int | None = None) -> Dataset:
    """Build a data set by name.

    name: one of `DATASETS`. dim: number of coordinates, any from 2 on for "funnel" and
    "gaussians25" (2 if None), any from 1 on for "two_points" (1); the others have one fixed
    dimension, 2, and 64 for "digits".

    Raises ValueError for an unknown name or a dimension that the data set does not come in,
    ImportError for "digits" without scikit-learn.
    """
    free: dict[str, Maker] = {
        "funnel": Funnel, "gaussians25": gaussians25, "two_points": two_points
    }  # fmt: skip
    fixed: dict[str, Maker] = {"diamonds": diamonds, "swiss_roll": SwissRoll, "digits": Digits}
    if name in free:
        return free[name]() if dim is None else free[name](dim)
    if name not in fixed:
        raise ValueError(f"unknown data set {name!r}; expected one of {', '.join(DATASETS)}")
    made = fixed[name]()
    if dim not in (None, made.dim):
        raise ValueError(f"data set {name!r} has dimension {made.dim}, got dim={dim}")
    return made


@dataclass(frozen=True)
class Funnel:
    """Neal's funnel: x_1 ~ N(0, 1), and given x_1 the rest are independent N(0, exp(x_1)).

    exp(x_1) is the variance, so the standard deviation is exp(x_1 / 2). dim: number of coordinates;
    ValueError below 2.

    Source: Neal (2003), "Slice sampling", section 8, there with x_1 ~ N(0, 9); variance 1 as in
    Strasman, Surendran et al. (2025).
    """

    dim: int = 2

    def __post_init__(self) -> None:
        _check_dim(self.dim, 2, "funnel")

    def sample(self, n: int, seed: int = 0) -> Tensor:
        """Draw (n, dim) float32; same seed, same data."""
        x = torch.randn(n, self.dim, generator=sample_generator(n, seed), **_HOST)
        x[:, 1:] *= torch.exp(x[:, :1] / 2)
        return x.float()


class SwissRoll:
    """Five equally likely copies of a planar swiss roll: one at 0, four at (+-0.8, +-0.8).

    A roll is 0.01 (r cos r, r sin r) with r uniform on [1.5 pi, 4.5 pi], plus N(0, 0.002^2).

    Source: the toy data of Dockhorn, Vahdat and Kreis (2022), also in Strasman, Surendran et al.
    (2025).
    """

    dim = 2

    OFFSET = 0.8
    SCALE = 0.01
    NOISE = 0.002

    def sample(self, n: int, seed: int = 0) -> Tensor:
        """Draw (n, 2) float32; same seed, same data."""
        generator = sample_generator(n, seed)
        radius = torch.rand(n, generator=generator, **_HOST)
        radius = math.pi * (1.5 + 3.0 * radius)
        roll = radius[:, None] * torch.stack([radius.cos(), radius.sin()], dim=1)
        noise = torch.randn(n, 2, generator=generator, **_HOST)
        corners = torch.tensor([[0, 0], [1, 1], [1, -1], [-1, -1], [-1, 1]], **_HOST)
        copy = torch.randint(len(corners), (n,), generator=generator, device="cpu")
        return (self.SCALE * roll + self.NOISE * noise + self.OFFSET * corners[copy]).float()


def gaussians25(dim: int = 2) -> GaussianMixture:
    """25 equal Gaussians on the grid {-2, ..., 2}^2, covariance diag(0.01, 0.01, 0.1, ..., 0.1).

    dim: number of coordinates; the means are 0 from the third one on. ValueError below 2.

    Source: Strasman, Surendran et al. (2025).
    """
    _check_dim(dim, 2, "gaussians25")
    means = torch.zeros(25, dim, **_HOST)
    axis = torch.arange(-2, 3, **_HOST)
    means[:, :2] = torch.cartesian_prod(axis, axis)
    variances = torch.full((25, dim), 0.1, **_HOST)
    variances[:, :2] = 0.01
    return GaussianMixture(torch.ones(25, device="cpu"), means, variances)


def diamonds() -> GaussianMixture:
    """Nine equal Gaussians, deviation 0.04, on {-0.5, 0, 0.5}^2 turned by 45 degrees; d = 2.

    Source: the toy data of Dockhorn, Vahdat and Kreis (2022).
    """
    axis = torch.tensor([-0.5, 0.0, 0.5], **_HOST)
    turn = torch.tensor([[1.0, -1.0], [1.0, 1.0]], **_HOST) / math.sqrt(2.0)
    means = torch.cartesian_prod(axis, axis) @ turn
    return GaussianMixture(
        torch.ones(9, device="cpu"), means, torch.full((9, 2), 0.04**2, device="cpu")
    )


def two_points(dim: int = 1) -> GaussianMixture:
    """Half of the mass on (1, ..., 1), half on (-1, ..., -1), in dim coordinates.

    ValueError for a dim below 1.
    """
    _check_dim(dim, 1, "two_points")
    means = torch.ones(2, dim, **_HOST)
    means[1] = -1.0
    return GaussianMixture(torch.ones(2, device="cpu"), means, torch.zeros(2, dim, device="cpu"))


class Digits:
    """Scikit-learn's 1,797 handwritten digits of 8x8 pixels, split into train and test.

    The pixels p = 0, ..., 16 are mapped to p / 8 - 1 in [-1, 1], exactly in float32; `to_pixels`
    is the inverse. The split is stratified: of every digit the same fraction is held out.

    Images `train_x` and `test_x` are (n, 1, 8, 8) in float32, labels `train_y` and `test_y` (n,) in
    int64. A fifth is held out. Raises ImportError without scikit-learn.

    Source: Alpaydin and Kaynak (1998), the UCI optical digits.
    """

    LEVELS = 16
    TEST_FRACTION = 0.2
    dim, shape = 64, (1, 8, 8)

    def __init__(self) -> None:
        bunch = extra_module("sklearn.datasets", "the digits need scikit-learn").load_digits()
        images = torch.from_numpy(bunch.images).float()[:, None] * (2.0 / self.LEVELS) - 1.0
        labels = torch.from_numpy(bunch.target).long()
        generator = torch.Generator().manual_seed(0)
        train, test = [], []
        for digit in labels.unique():
            rows = torch.nonzero(labels == digit)[:, 0]
            rows = rows[torch.randperm(len(rows), generator=generator, device="cpu")]
            held_out = round(self.TEST_FRACTION * len(rows))
            test.append(rows[:held_out])
            train.append(rows[held_out:])
        # Sorting mixes the labels, which the loop has put in order.
        train_rows, test_rows = torch.cat(train).sort().values, torch.cat(test).sort().values
        self.train_x, self.train_y = images[train_rows], labels[train_rows]
        self.test_x, self.test_y = images[test_rows], labels[test_rows]

    def sample(self, n: int, seed: int = 0) -> Tensor:
        """Draw (n, 1, 8, 8) training images with replacement; same seed, same data."""
        generator = sample_generator(n, seed)
        rows = torch.randint(len(self.train_x), (n,), generator=generator, device="cpu")
        return self.train_x[rows]

    @classmethod
    def to_pixels(cls, images: Tensor) -> Tensor:
        """Images in [-1, 1], any shape, to the pixels 0, ..., 16 (uint8), rounded and clipped."""
        pixels = (images.double() + 1.0) * (cls.LEVELS / 2.0)
        return pixels.round().clamp(0, cls.LEVELS).to(torch.uint8)


def _check_dim(dim: int, least: int, name: str) -> None:
    if dim < least:
        raise ValueError(f"{name}: expected dim >= {least}, got {dim}")
