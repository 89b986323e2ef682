"""Distances against closed forms."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import torch

from cldfast.lab import metrics
from cldfast.lab.data import Digits
from cldfast.lab.metrics import class_fractions, sliced_w2

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


def test_class_fractions_find_the_digits():
    digits = Digits()
    got = class_fractions(digits.test_x, digits.train_x, digits.train_y)
    true = torch.bincount(digits.test_y, minlength=10).numpy() / len(digits.test_y)
    assert got.shape == (10,) and got.sum() == pytest.approx(1.0)
    # About 1 % of 359 images are put in the wrong class.
    assert np.abs(got - true).max() < 0.015
    eights = digits.test_x[digits.test_y == 8]
    assert class_fractions(eights, digits.train_x, digits.train_y)[8] > 0.9


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
def test_bad_samples_are_refused(x, y, error, message):
    with pytest.raises(error, match=message):
        sliced_w2(x, y)


def test_bad_arguments_are_refused():
    x = np.zeros((3, 2))
    with pytest.raises(ValueError, match="n_projections: expected at least 1, got 0"):
        sliced_w2(x, x, n_projections=0)
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
        lambda: class_fractions(x, x, np.zeros(3, dtype=int)),
    ):
        with pytest.raises(ImportError, match=r"pip install 'cldfast\[demo\]'"):
            call()
