"""Data sets: laws by their moments, digits by their content.

A statistic of n draws is compared with its expectation to 5 standard errors, the standard error
being the deviation of one draw over sqrt(n): a false alarm once in about two million comparisons,
and none at all while the seeds stay.
"""

from __future__ import annotations

import math
import sys

import pytest
import torch

from cldfast.lab import data
from cldfast.lab.data import DATASETS, Digits, Funnel, SwissRoll, make_data
from cldfast.lab.mixture import GaussianMixture

torch.set_num_threads(1)
N = 40_000


def assert_mean(values, expected, deviation=None):
    """The mean of values (n, ...) to 5 standard errors; deviation None: that of the values."""
    values = values.double()
    deviation = values.std(dim=0) if deviation is None else deviation
    gap = (values.mean(dim=0) - expected).abs()
    assert (gap <= 5 * deviation / math.sqrt(len(values))).all(), gap


@pytest.mark.parametrize("dim", [2, 7])
def test_funnel(dim):
    x = Funnel(dim).sample(N, seed=0).double()
    assert x.shape == (N, dim)
    assert_mean(x[:, 0], 0.0, 1.0)
    assert_mean(x[:, 0] ** 2, 1.0, math.sqrt(2.0))
    # Given x_1 the rest are N(0, exp(x_1)), so z = x exp(-x_1 / 2) is standard normal ...
    z = x[:, 1:] * torch.exp(-x[:, :1] / 2)
    assert_mean(z, 0.0, 1.0)
    assert_mean(z**2, 1.0, math.sqrt(2.0))
    assert_mean(z**4, 3.0, math.sqrt(96.0))
    # ... and independent of x_1: E[z^2 x_1] = 0, of variance E[z^4] E[x_1^2] = 3.
    assert_mean(z**2 * x[:, :1], 0.0, math.sqrt(3.0))
    # E[x^2] = E[exp(x_1)] = e^(1/2); Var[x^2] = 3 E[exp(2 x_1)] - e = 3 e^2 - e.
    assert_mean(x[:, 1:] ** 2, math.exp(0.5), math.sqrt(3 * math.exp(2) - math.e))


@pytest.mark.parametrize("dim", [2, 5])
def test_gaussians25(dim):
    mix = make_data("gaussians25", dim)
    assert isinstance(mix, GaussianMixture)
    x = mix.sample(N, seed=0).double()
    centre = x[:, :2].round().clamp(-2, 2)
    # A corner holds 1/25 of the mass; deviation of an indicator sqrt(p (1 - p)).
    for corner in ((-2, -2), (-2, 2), (2, -2), (2, 2), (0, 0)):
        inside = (centre == torch.tensor(corner)).all(dim=1)
        assert_mean(inside.double(), 0.04, math.sqrt(0.04 * 0.96))
    within = x[:, :2] - centre
    # Cutting at half the grid spacing, 5 deviations, changes the moments by less than 1e-5.
    assert_mean(within**2, 0.01, 0.01 * math.sqrt(2.0))
    if dim > 2:
        assert_mean(x[:, 2:], 0.0, math.sqrt(0.1))
        assert_mean(x[:, 2:] ** 2, 0.1, 0.1 * math.sqrt(2.0))
    # Var of the grid {-2..2} is 2.
    expected = torch.tensor([2.01, 2.01] + [0.1] * (dim - 2), dtype=torch.float64)
    torch.testing.assert_close(mix.cov(), torch.diag(expected))


def test_diamonds():
    mix = make_data("diamonds")
    assert isinstance(mix, GaussianMixture)
    x = mix.sample(N, seed=0).double()
    # Turned by 45 degrees the outermost centres lie on the axes at 0.5 sqrt 2; the nine cells
    # are the grid in the coordinates (x +- y) / sqrt 2.
    square = torch.stack([x[:, 0] - x[:, 1], x[:, 0] + x[:, 1]], dim=1) / math.sqrt(2.0)
    centre = (2 * square).round() / 2
    assert set(map(tuple, centre.tolist())) == {
        (a, b) for a in (-0.5, 0.0, 0.5) for b in (-0.5, 0.0, 0.5)
    }
    assert_mean((square - centre) ** 2, 0.04**2, 0.04**2 * math.sqrt(2.0))
    assert float(mix.means.abs().max()) == pytest.approx(0.5 * math.sqrt(2.0))


def test_swiss_roll():
    x = SwissRoll().sample(N, seed=0).double()
    sign = torch.where(x.abs() > 0.4, x.sign(), 0.0)
    copies, counts = sign.unique(dim=0, return_counts=True)
    assert sorted(map(tuple, copies.tolist())) == [(-1, -1), (-1, 1), (0, 0), (1, -1), (1, 1)]
    assert (counts / N - 0.2).abs().max() < 5 * math.sqrt(0.2 * 0.8 / N)
    local = (x - 0.8 * sign) / 0.01
    # r^2 + 2 noise^2 on average, with r uniform on [1.5 pi, 4.5 pi] and noise 0.2.
    low, high = 1.5 * math.pi, 4.5 * math.pi
    assert_mean((local**2).sum(1), (high**3 - low**3) / (3 * (high - low)) + 2 * 0.2**2)
    # On the spiral the angle is the radius. Noise of 0.2 moves the radius by 0.2 z and the angle
    # by 0.2 z' / r, and E[1 / r^2] = 1 / (low high); next order 0.2^4 / r^2, far below 5 errors.
    off = local.norm(dim=1) - torch.atan2(local[:, 1], local[:, 0])
    off = torch.remainder(off + math.pi, 2 * math.pi) - math.pi
    assert_mean(off, 0.0, None)
    assert_mean(off**2, 0.2**2 * (1 + 1 / (low * high)))


@pytest.mark.parametrize("dim", [1, 3])
def test_two_points(dim):
    x = make_data("two_points", dim).sample(N, seed=0)
    assert (x == x[:, :1]).all()
    assert (x.abs() == 1).all()
    assert_mean(x[:, 0], 0.0, 1.0)


@pytest.mark.parametrize("name", DATASETS)
def test_every_data_set_is_seeded_float32(name):
    source = make_data(name)
    before = torch.get_rng_state()
    x = source.sample(50, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert x.dtype == torch.float32 and len(x) == 50
    assert math.prod(x.shape[1:]) == source.dim
    assert torch.equal(x, source.sample(50, seed=3))
    assert not torch.equal(x, source.sample(50, seed=4))
    with pytest.raises(ValueError, match="at least 1 sample, got 0"):
        source.sample(0)


@pytest.mark.parametrize(
    ("name", "dim", "message"),
    [
        ("moons", None, "unknown data set 'moons'; expected one of funnel, gaussians25, diamonds"),
        ("funnel", 1, "funnel: expected dim >= 2, got 1"),
        ("gaussians25", 1, "gaussians25: expected dim >= 2, got 1"),
        ("two_points", 0, "two_points: expected dim >= 1, got 0"),
        ("diamonds", 3, "'diamonds' has dimension 2, got dim=3"),
        ("swiss_roll", 3, "'swiss_roll' has dimension 2, got dim=3"),
        ("digits", 784, "'digits' has dimension 64, got dim=784"),
    ],
)
def test_bad_names_and_dimensions(name, dim, message):
    with pytest.raises(ValueError, match=message):
        make_data(name, dim)


def test_digits_are_the_whole_set_split_in_equal_proportions():
    digits = Digits()
    assert len(digits.train_x) + len(digits.test_x) == 1797
    assert digits.train_x.shape[1:] == digits.shape == (1, 8, 8)
    assert digits.train_x.dtype == torch.float32 and digits.train_y.dtype == torch.int64
    assert float(digits.train_x.min()) == -1.0 and float(digits.train_x.max()) == 1.0
    train, test = (torch.bincount(y, minlength=10) for y in (digits.train_y, digits.test_y))
    torch.testing.assert_close(test, ((train + test) / 5).round().long(), rtol=0, atol=1)
    from sklearn.datasets import load_digits

    bunch = load_digits()
    rows = sorted(zip(bunch.data.astype(int).tolist(), bunch.target.tolist(), strict=True))
    ours = torch.cat([digits.train_x, digits.test_x])
    labels = torch.cat([digits.train_y, digits.test_y])
    pixels = Digits.to_pixels(ours).flatten(1).tolist()
    assert sorted(zip(pixels, labels.tolist(), strict=True)) == rows


def test_digits_are_split_alike_every_time():
    first, again = Digits(), Digits()
    assert torch.equal(first.test_x, again.test_x) and torch.equal(first.train_y, again.train_y)
    known = {tuple(row) for row in first.train_x.flatten(1).tolist()}
    assert all(tuple(row) in known for row in first.sample(30).flatten(1).tolist())


def test_digits_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"pip install 'cldfast\[demo\]'"):
        data.Digits()


def test_pixel_maps_are_exact_and_clip():
    levels = torch.arange(17, dtype=torch.float32) / 8 - 1
    assert Digits.to_pixels(levels).tolist() == list(range(17))
    assert Digits.to_pixels(torch.tensor([-3.0, 3.0])).tolist() == [0, 16]
