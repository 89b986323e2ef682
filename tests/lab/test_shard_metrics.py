"""Distances of samples on disk are those of the same samples in memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from cldfast.lab.metrics import sliced_w2
from cldfast.lab.shard_metrics import (
    frechet_distance_of_shards,
    precision_recall_of_shards,
    sliced_w2_of_shards,
    torchmetrics_of_shards,
)
from cldfast.sampling.shards import Manifest, Shards

pytest.importorskip("ot")
pytest.importorskip("safetensors")


@pytest.fixture
def samples(tmp_path):
    x = torch.randn(500, 3, generator=torch.Generator().manual_seed(0))
    Shards(tmp_path, Manifest(500, (3,), 128)).fill(lambda first, n: (x[first : first + n], None))
    return tmp_path, x.numpy()


def test_sliced_w2(samples):
    folder, x = samples
    y = np.random.default_rng(1).standard_normal((300, 3)) + 0.2
    whole = sliced_w2(x, y, 40, seed=2)
    for memory in (1, 8 * 800 * 7, 2**28):  # one direction a round, seven, all
        assert sliced_w2_of_shards(folder, y, 40, 2, memory) == pytest.approx(whole, rel=1e-12)
    with pytest.raises(ValueError, match="same number of coordinates, got 3 and 2"):
        sliced_w2_of_shards(folder, y[:, :2])


def test_frechet_distance(samples):
    """Against the formula with a matrix root, which these moments are far enough apart for."""
    folder, x = samples
    y = np.random.default_rng(1).standard_normal((300, 3)) * [1.0, 2.0, 0.5] + 0.3

    def features(rows):
        return torch.cat([rows, rows.square()], 1)[:, :5]

    a, b = (features(torch.tensor(v).float()).double().numpy() for v in (x, y))
    root = sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    wanted = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root)
    assert frechet_distance_of_shards(folder, y, features, 64) == pytest.approx(wanted, rel=1e-8)
    with pytest.raises(ValueError, match=r"features: expected \(64, f\)"):
        frechet_distance_of_shards(folder, y, lambda rows: rows[:, 0], 64)


def test_precision_and_recall(samples):
    """Against the definition, row by row; and where they are known."""
    folder, x = samples
    y = np.random.default_rng(1).standard_normal((300, 3)) * [0.5, 1.0, 2.0]

    def share(rows, others):
        radii = [np.sort(np.linalg.norm(others - o, axis=1))[3] for o in others]
        return np.mean([np.any(np.linalg.norm(others - r, axis=1) <= radii) for r in rows])

    wanted = share(x, y), share(y, x)
    assert precision_recall_of_shards(folder, y, torch.nn.Identity()) == pytest.approx(wanted)
    assert 0.1 < wanted[0] < wanted[1] < 1.0
    # Samples of a half of the data: all are data, and half of the data are covered.
    both = np.concatenate([x, x + 100.0])
    assert precision_recall_of_shards(folder, both, torch.nn.Identity(), 1) == (1.0, 0.5)
    with pytest.raises(ValueError, match="neighbours: expected 1 to 299, got 300"):
        precision_recall_of_shards(folder, y, torch.nn.Identity(), 300)


def test_metrics_of_torchmetrics(samples):
    """Its FID is ours, in its precision; its KID is the unbiased estimate with a cubic kernel."""
    reason = "needs torchmetrics: cldfast[metrics]"
    fids = pytest.importorskip("torchmetrics.image.fid", reason=reason)
    kids = pytest.importorskip("torchmetrics.image.kid", reason=reason)
    folder, x = samples
    y = np.random.default_rng(1).standard_normal((300, 3)) * [1.0, 2.0, 0.5] + 0.3
    features = torch.nn.Identity()
    features.num_features = 3
    fid = torchmetrics_of_shards(folder, y, fids.FrechetInceptionDistance(features))
    assert float(fid) == pytest.approx(frechet_distance_of_shards(folder, y, features), rel=1e-5)
    kernel = kids.KernelInceptionDistance(features, subsets=1, subset_size=300)
    few = x[:300]

    def mean(a, b, same):
        values = (a @ b.T / 3 + 1) ** 3
        return (values.sum() - np.trace(values)) / (300 * 299) if same else values.mean()

    wanted = mean(few, few, True) + mean(y, y, True) - 2 * mean(few, y, False)
    made = torchmetrics_of_shards(few, y, kernel)[0]
    assert float(made) == pytest.approx(wanted, rel=1e-4)
