"""How far samples on disk are from data, in bounded memory: nothing is held as a whole.

Samples are the folder of `cldfast sample --out DIR`, or an array (n, ...) such as
`numpy.load(path, mmap_mode="r")` gives; rows are read in pieces.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cldfast.extras import extra_module
from cldfast.lab.metrics import bures_w2
from cldfast.sampling.shards import open_shards

Rows = NDArray[np.float64]

# Rows of an array that are read at a time.
_PIECE = 16_384
# Rows whose distances to all others are in memory together.
_ROWS_AT_ONCE = 256


def sliced_w2_of_shards(
    x: Any, y: Any, n_projections: int = 500, seed: int = 0, memory: int = 2**28
) -> float:
    """`cldfast.lab.metrics.sliced_w2` of samples on disk: the same directions, the same number.

    memory: bytes for projected numbers. One-dimensional distances need sorted projections of all
    rows, so directions go through in as many rounds as `memory` asks for, and each reads all rows.

    Raises ValueError for rows that do not fit each other, ImportError without POT.
    """
    (n, d), (m, other) = _size(x), _size(y)
    if d != other:
        raise ValueError(f"x and y: expected the same number of coordinates, got {d} and {other}")
    if n_projections < 1:
        raise ValueError(f"n_projections: expected at least 1, got {n_projections}")
    wasserstein = extra_module("ot", "the sample distances need POT").wasserstein_1d
    directions = np.random.default_rng(seed).standard_normal((d, n_projections))
    directions /= np.linalg.norm(directions, axis=0)
    block = max(1, memory // (8 * (n + m)))
    total = 0.0
    for start in range(0, n_projections, block):
        part = directions[:, start : start + block]
        a, b = (np.concatenate([rows @ part for rows in _pieces(given)]) for given in (x, y))
        total += float(np.sum(wasserstein(a, b, p=2)))
    return math.sqrt(total / n_projections)


def frechet_distance_of_shards(
    x: Any, y: Any, features: Callable[[Tensor], Tensor], batch_size: int = 256
) -> float:
    """Squared Wasserstein-2 distance between Gaussians fitted to features: with Inception's, FID.

    features: of rows (B, ...), float32, in the units of the samples, returns (B, f); its weights
    are the caller's. Means and covariances are float64 sums over batches, unbiased.

    Source: Heusel et al. (2017), "GANs trained by a two time-scale update rule".
    """
    moments = [_moments(given, features, batch_size) for given in (x, y)]
    return bures_w2(*moments[0], *moments[1]) ** 2


def precision_recall_of_shards(
    x: Any,
    y: Any,
    features: Callable[[Tensor], Tensor],
    neighbours: int = 3,
    batch_size: int = 256,
) -> tuple[float, float]:
    """Share of the samples x that lie among the data y, and share of y that lie among x.

    A row lies among others where it is no farther from one of them than that one's nearest
    neighbour of the given number. features: as for `frechet_distance_of_shards`; those of all rows
    are in memory, the rows are not.

    Source: Kynkaanniemi et al. (2019), "Improved precision and recall metric for assessing
    generative models", eq. 1 to 3.
    """
    a, b = (torch.cat(list(_features(given, features, batch_size))) for given in (x, y))
    if not 1 <= neighbours < min(len(a), len(b)):
        raise ValueError(f"neighbours: expected 1 to {min(len(a), len(b)) - 1}, got {neighbours}")
    return _share_among(a, b, neighbours), _share_among(b, a, neighbours)


def _share_among(rows: Tensor, others: Tensor, neighbours: int) -> float:
    # The nearest of all is the row itself.
    radii = torch.cat(
        [
            torch.cdist(part, others).kthvalue(neighbours + 1).values
            for part in others.split(_ROWS_AT_ONCE)
        ]
    )
    among = [(torch.cdist(part, others) <= radii).any(1) for part in rows.split(_ROWS_AT_ONCE)]
    return float(torch.cat(among).double().mean())


@torch.no_grad()
def torchmetrics_of_shards(
    x: Any,
    y: Any,
    metric: Any,
    prepare: Callable[[Tensor], Tensor] = torch.Tensor.float,
    batch_size: int = 256,
) -> Any:
    """What a metric of torchmetrics makes of samples x and data y, which it is fed in batches.

    metric: one whose `update` takes `real=`, such as `FrechetInceptionDistance` of
        `torchmetrics.image.fid` or `KernelInceptionDistance` of `torchmetrics.image.kid`, with its
        own network (which torch-fidelity has) or with `feature=` a module of yours.
    prepare: rows (B, ...) as the metric wants them; for Inception bytes, of samples in [-1, 1]
        `lambda rows: ((rows + 1) * 127.5).clamp(0, 255).byte()`.
    """
    for given, real in ((y, True), (x, False)):
        for rows in _raw_pieces(given):
            for batch in torch.as_tensor(np.asarray(rows), device="cpu").split(batch_size):
                metric.update(prepare(batch).to(metric.device), real=real)
    return metric.compute()


@torch.no_grad()
def _features(given: Any, features: Callable[[Tensor], Tensor], size: int) -> Iterator[Tensor]:
    """Features of all rows, (B, f), float64 on the CPU, a batch at a time."""
    for rows in _raw_pieces(given):
        for batch in torch.as_tensor(np.asarray(rows), device="cpu").float().split(size):
            values = features(batch).double().cpu()
            if values.ndim != 2 or len(values) != len(batch):
                raise ValueError(f"features: expected ({len(batch)}, f), got {tuple(values.shape)}")
            yield values


def _moments(given: Any, features: Callable[[Tensor], Tensor], size: int) -> tuple[Rows, Rows]:
    count, mean, scatter = 0, np.zeros(()), np.zeros(())
    for batch in _features(given, features, size):
        values = batch.numpy()
        own = values.mean(0)
        centred = values - own
        # Chan, Golub and LeVeque (1983): exact, and nothing cancels.
        away = own - mean
        both = count + len(values)
        weight = count * len(values) / both
        scatter = scatter + centred.T @ centred + weight * np.outer(away, away)
        mean = mean + away * (len(values) / both)
        count = both
    if count < 2:
        raise ValueError(f"expected at least 2 samples, got {count}")
    return mean, scatter / (count - 1)


def _size(given: Any) -> tuple[int, int]:
    """Rows, and coordinates of one."""
    if isinstance(given, str | os.PathLike):
        manifest = open_shards(given).manifest
        return manifest.n, math.prod(manifest.shape)
    if len(given.shape) < 2 or 0 in given.shape:
        raise ValueError(f"expected a non-empty (n, d) or images, got shape {tuple(given.shape)}")
    return int(given.shape[0]), math.prod(given.shape[1:])


def _raw_pieces(given: Any) -> Iterator[Any]:
    if isinstance(given, str | os.PathLike):
        shards = open_shards(given)
        for shard in range(shards.manifest.shards):
            yield shards.files.read(shard, *shards.manifest.span(shard)).numpy()
    else:
        for start in range(0, len(given), _PIECE):
            yield given[start : start + _PIECE]


def _pieces(given: Any) -> Iterator[Rows]:
    for rows in _raw_pieces(given):
        values = np.asarray(rows, dtype=np.float64).reshape(len(rows), -1)
        if not np.isfinite(values).all():
            raise ValueError("samples: expected finite numbers")
        yield values
