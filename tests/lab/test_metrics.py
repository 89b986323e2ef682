"""Distances against closed forms."""

from __future__ import annotations

import itertools
import math
import sys

import mpmath as mp
import numpy as np
import pytest
import torch

from cldfast.lab import metrics
from cldfast.lab.data import Digits
from cldfast.lab.metrics import bures_w2, class_fractions, exact_w2, sliced_w2

torch.set_num_threads(1)


def cloud(n, d, seed=0):
    return np.random.default_rng(seed).standard_normal((n, d))


def test_sliced_w2_of_a_shift_is_its_mean_projection():
    """W2 along e of x and x + s is |s e|, of mean square |s|^2 / d over the directions e."""
    x, shift = cloud(200, 5), np.array([3.0, 0.0, -1.0, 2.0, 0.5])
    n = 4000
    expected = shift @ shift / 5
    # Var[(s e)^2] = 2 (d - 1) / (d^2 (d + 2)) |s|^4, from E[e_1^4] = 3 / (d (d + 2)).
    deviation = math.sqrt(2 * 4 / (25 * 7)) * (shift @ shift)
    got = sliced_w2(x, x + shift, n_projections=n) ** 2
    assert abs(got - expected) < 5 * deviation / math.sqrt(n)


def test_sliced_w2_in_one_dimension_is_exact():
    x, y = cloud(500, 1), 2 * cloud(500, 1, seed=1) + 3
    expected = math.sqrt(np.square(np.sort(x, axis=0) - np.sort(y, axis=0)).mean())
    assert sliced_w2(x, y, n_projections=3) == pytest.approx(expected, rel=1e-12)


def test_sliced_w2_takes_unequal_sizes():
    # Every point of y stands for two of x, so repeating y changes nothing.
    x, y = cloud(600, 4), cloud(300, 4, seed=1)
    assert sliced_w2(x, y) == pytest.approx(sliced_w2(x, np.repeat(y, 2, axis=0)), rel=1e-10)


def test_sliced_w2_basics(monkeypatch):
    x, y = cloud(100, 3), cloud(80, 3, seed=1)
    assert sliced_w2(x, x.copy()) == 0.0
    assert sliced_w2(x, y, seed=1) == sliced_w2(x, y, seed=1) != sliced_w2(x, y, seed=2)
    assert sliced_w2(10 * x, 10 * y) == pytest.approx(10 * sliced_w2(x, y), rel=1e-12)
    whole = sliced_w2(x, y)
    state = np.random.get_state()[1].copy()
    monkeypatch.setattr(metrics, "_BLOCK_ENTRIES", 700)
    assert sliced_w2(x, y) == pytest.approx(whole, rel=1e-12)
    assert np.array_equal(np.random.get_state()[1], state)


def test_sliced_w2_agrees_with_pot_on_the_same_directions():
    import ot

    x, y = cloud(70, 6), 1.5 * cloud(90, 6, seed=1)
    directions = np.random.default_rng(4).standard_normal((6, 50))
    directions /= np.linalg.norm(directions, axis=0)
    expected = ot.sliced_wasserstein_distance(x, y, projections=directions)
    assert sliced_w2(x, y, n_projections=50, seed=4) == pytest.approx(float(expected), rel=1e-12)


def test_exact_w2_is_the_best_matching():
    x, y = cloud(6, 3), cloud(6, 3, seed=1)
    expected = min(
        np.square(x - y[list(order)]).sum(axis=1).mean()
        for order in itertools.permutations(range(6))
    )
    assert exact_w2(x, y) == pytest.approx(math.sqrt(expected), rel=1e-12)


def test_exact_w2_of_a_shift_is_its_length():
    x = cloud(300, 4)
    for length in (1e-7, 2.0):
        shift = length * np.array([0.5, 0.5, -0.5, 0.5])
        assert exact_w2(x, x + shift) == pytest.approx(length, rel=1e-8)
    assert exact_w2(x, x[::-1].copy()) == 0.0


def test_exact_w2_takes_unequal_sizes_and_images():
    x = torch.randn(30, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    # From one point, everything has to move there.
    expected = math.sqrt(float((x - x[:1]).square().flatten(1).sum(1).mean()))
    assert exact_w2(x, x[:1]) == pytest.approx(expected, rel=1e-6)
    assert exact_w2(x.bfloat16(), x.bfloat16()) == 0.0


def exact_bures(mean0, cov0, mean1, cov1):
    """The trace formula in 80 digits."""
    with mp.workdps(80):
        a, b = mp.matrix(np.asarray(cov0).tolist()), mp.matrix(np.asarray(cov1).tolist())
        values, vectors = mp.eigsy(a)
        roots = mp.diag([mp.sqrt(max(v, mp.mpf(0))) for v in values])
        root = vectors * roots * vectors.T
        cross = sum(
            mp.sqrt(max(v, mp.mpf(0))) for v in mp.eigsy(root * b * root, eigvals_only=True)
        )
        shift = sum((mp.mpf(p) - mp.mpf(q)) ** 2 for p, q in zip(mean0, mean1, strict=True))
        trace = sum(a[i, i] + b[i, i] for i in range(a.rows))
        return float(mp.sqrt(shift + trace - 2 * cross))


ROOT = cloud(3, 3, seed=5)
BURES_PAIRS = {
    "well conditioned": (ROOT @ ROOT.T, np.diag([1.0, 2.0, 3.0])),
    "very close": (np.array([[1.0, 0.5], [0.5, 1.0]]), np.array([[1.0, 0.5], [0.5, 1 + 1e-12]])),
    "graded": (np.diag([1.0, 1e-14]), np.diag([1.0, 2e-14])),
    "start of a diffusion": (
        np.array([[1.6e-21, 3e-12], [3e-12, 0.01]]),
        np.array([[1.7e-21, 3e-12], [3e-12, 0.0100001]]),
    ),
    "nearly singular": (
        np.array([[1.0, 1 - 1e-9], [1 - 1e-9, 1.0]]),
        np.array([[2.0, -2 + 1e-9], [-2 + 1e-9, 2.0]]),
    ),
    "singular, apart": (np.diag([1.0, 0.0]), np.diag([0.0, 1.0])),
    "singular, same line": (np.full((2, 2), 1.0), np.full((2, 2), 4.0)),
    "point": (np.zeros((2, 2)), np.diag([3.0, 1.0])),
}


@pytest.mark.parametrize("name", BURES_PAIRS)
@pytest.mark.parametrize("shift", [0.0, 1e-3])
def test_bures_w2_to_sixteen_digits_of_the_scale(name, shift):
    cov0, cov1 = BURES_PAIRS[name]
    mean0 = np.zeros(len(cov0))
    mean1 = mean0 + shift
    got = bures_w2(mean0, cov0, mean1, cov1)
    scale = math.sqrt(max(np.trace(cov0), np.trace(cov1)))
    # Cholesky's backward error, a few roundings of the variances, over the smallest relative
    # singular value: 1e-9 and up only in "nearly singular", where it costs sqrt(1e9) roundings.
    tolerance = 1e-11 if name == "nearly singular" else 5e-15
    assert got == pytest.approx(exact_bures(mean0, cov0, mean1, cov1), rel=0, abs=tolerance * scale)
    assert got == pytest.approx(bures_w2(mean1, cov1, mean0, cov0), rel=0, abs=tolerance * scale)


def test_bures_w2_closed_forms():
    m, c = torch.tensor([1.0, 2.0]), torch.tensor([[2.0, 0.3], [0.3, 1.0]])
    assert bures_w2(m, c, m, c) == pytest.approx(0.0, abs=1e-14)
    assert bures_w2(m, c, m + 3, c) == pytest.approx(3 * math.sqrt(2), rel=1e-7)
    # Commuting covariances: the distance of their roots. Scaling by s moves by (s - 1) root.
    got = bures_w2(m, c, m, 4 * c)
    assert got == pytest.approx(math.sqrt(3.0), rel=1e-7)


def test_bures_w2_is_the_limit_of_exact_w2():
    """Two Gaussian samples through the same normals: the map between them is optimal."""
    z = cloud(1500, 2)
    z = (z - z.mean(axis=0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(z.T, bias=True))).T
    scale = np.array([[2.0, 0.5], [0.5, 1.0]])
    moved = z @ scale + np.array([1.0, -1.0])
    expected = bures_w2(np.zeros(2), np.eye(2), np.array([1.0, -1.0]), scale @ scale)
    assert exact_w2(z, moved) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    "cov",
    [
        np.array([[1.0, 2.0], [2.0, 1.0]]),
        np.diag([1.0, -1.0]),
        np.array([[1.0, 0.5], [0.0, 1.0]]),
        np.array([[0.0, 0.5], [0.5, 1.0]]),
    ],
)
def test_bures_w2_refuses_what_is_no_covariance(cov):
    with pytest.raises(ValueError, match="cov1: expected"):
        bures_w2(np.zeros(2), np.eye(2), np.zeros(2), cov)


def test_class_fractions_find_the_digits():
    digits = Digits()
    got = class_fractions(digits.test_x, digits.train_x, digits.train_y)
    true = torch.bincount(digits.test_y, minlength=10).numpy() / len(digits.test_y)
    assert got.shape == (10,) and got.sum() == pytest.approx(1.0)
    # About 1 % of 359 images are put in the wrong class.
    assert np.abs(got - true).max() < 0.015
    eights = digits.test_x[digits.test_y == 8]
    assert class_fractions(eights, digits.train_x, digits.train_y)[8] > 0.9


@pytest.mark.parametrize("distance", [sliced_w2, exact_w2])
@pytest.mark.parametrize(
    ("x", "y", "error", "message"),
    [
        (np.zeros((3, 2)), np.zeros((3, 4)), ValueError, "same number of coordinates, got 2 and 4"),
        (np.zeros(3), np.zeros((3, 1)), ValueError, r"x: expected a non-empty .* shape \(3,\)"),
        (np.zeros((3, 1)), np.zeros((0, 1)), ValueError, "y: expected a non-empty"),
        (np.full((3, 1), np.nan), np.zeros((3, 1)), ValueError, "x: expected finite"),
        (np.zeros((3, 1), dtype=int), np.zeros((3, 1)), TypeError, "x: expected floating point"),
        ([[1.0]], np.zeros((3, 1)), TypeError, "x: expected a tensor or an array, got list"),
    ],
)
def test_bad_samples_are_refused(distance, x, y, error, message):
    with pytest.raises(error, match=message):
        distance(x, y)


def test_bad_arguments_are_refused():
    x = np.zeros((3, 2))
    with pytest.raises(ValueError, match="n_projections: expected at least 1, got 0"):
        sliced_w2(x, x, n_projections=0)
    with pytest.raises(ValueError, match="at most 5000 points a side, got 5001 and 3"):
        exact_w2(np.zeros((5001, 2)), x)
    with pytest.raises(ValueError, match=r"two of shape \(d,\), got \(2,\) and \(3,\)"):
        bures_w2(np.zeros(2), np.eye(2), np.zeros(3), np.eye(3))
    with pytest.raises(ValueError, match=r"cov0: expected shape \(2, 2\), got \(3, 3\)"):
        bures_w2(np.zeros(2), np.eye(3), np.zeros(2), np.eye(2))
    with pytest.raises(ValueError, match=r"train_y: expected shape \(3,\)"):
        class_fractions(x, x, np.zeros(2, dtype=int))
    with pytest.raises(TypeError, match="train_y: expected whole numbers"):
        class_fractions(x, x, np.zeros(3))


def test_missing_packages_name_the_extra(monkeypatch):
    x = np.zeros((3, 2))
    monkeypatch.setitem(sys.modules, "ot", None)
    monkeypatch.setitem(sys.modules, "sklearn.svm", None)
    for call in (
        lambda: sliced_w2(x, x),
        lambda: exact_w2(x, x),
        lambda: class_fractions(x, x, np.zeros(3, dtype=int)),
    ):
        with pytest.raises(ImportError, match=r"pip install 'cldfast\[demo\]'"):
            call()
    assert bures_w2(np.zeros(2), np.eye(2), np.ones(2), np.eye(2)) == pytest.approx(math.sqrt(2))
