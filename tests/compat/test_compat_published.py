"""What the modes of the served codebases share: folding outputs in, joining stages, schedules."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cldfast.compat.published import check_mode, fold, merge
from cldfast.compat.schedule import FunctionBeta
from cldfast.planner.stage import Stage
from cldfast.process.schedules import LinearBeta

RNG = np.random.default_rng(5)


def stage(t: float | None) -> Stage:
    E = (RNG.normal(size=(2, 2)),) if t is not None else ()
    L = np.tril(RNG.normal(size=(2, 2)))
    return Stage(t=t, t_next=0.5, P=RNG.normal(size=(2, 2)), E=E, L=L)


def apply(row: Stage, u: np.ndarray, o: np.ndarray, z: np.ndarray) -> np.ndarray:
    return row.P @ u + sum(E @ o for E in row.E) + row.L @ z


def test_folding_is_substitution() -> None:
    rows = (stage(0.7), stage(None), stage(0.3))

    def output_map(t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        assert t.tolist() == [0.7, 0.3]
        return t[:, None, None] * np.array([[2.0], [3.0]]), t[:, None, None] * np.eye(2)

    u, o, z = RNG.normal(size=(2, 1)), RNG.normal(size=(1, 1)), RNG.normal(size=(2, 1))
    for row, folded in zip(rows, fold(rows, output_map), strict=True):
        t = row.t or 0.0
        score = t * np.array([[2.0], [3.0]]) @ o + t * u
        np.testing.assert_allclose(apply(folded, u, o, z), apply(row, u, score, z), rtol=1e-13)


def test_merging_keeps_the_law() -> None:
    first, second, third = stage(0.9), stage(None), stage(None)
    (joined,) = merge((first, second, third))
    assert (joined.t, joined.t_next) == (0.9, 0.5)
    P = third.P @ second.P
    cov = first.L @ first.L.T
    for row in (second, third):
        cov = row.P @ cov @ row.P.T + row.L @ row.L.T
    np.testing.assert_allclose(joined.P, P @ first.P, rtol=1e-13)
    np.testing.assert_allclose(joined.E[0], P @ first.E[0], rtol=1e-13)
    np.testing.assert_allclose(joined.L @ joined.L.T, cov, rtol=1e-12)
    assert joined.L[0, 1] == 0.0


def test_merging_keeps_a_leading_stage_and_takes_singular_noise() -> None:
    lead, kick = stage(None), stage(0.4)
    still = Stage(t=None, t_next=0.1, P=np.eye(2))
    noiseless = Stage(t=0.4, t_next=0.4, P=kick.P, E=kick.E)
    rows = merge((lead, noiseless, still))
    assert [row.t for row in rows] == [None, 0.4]
    assert np.all(rows[1].L == 0.0)


def test_modes() -> None:
    assert check_mode("exact") == "exact"
    with pytest.raises(ValueError, match="mode must be one of exact, published, got 'fast'"):
        check_mode("fast")


def test_a_schedule_of_functions_is_that_of_the_closed_form() -> None:
    other = LinearBeta(1.0, 3.0)
    mine = FunctionBeta(lambda t: 1.0 + 2.0 * t, lambda t: t + t**2)
    t = np.linspace(0.0, 1.0, 7)
    np.testing.assert_allclose(mine.beta(t), other.beta(t), rtol=1e-15)
    np.testing.assert_allclose(mine.integral(t), other.integral(t), rtol=1e-15)
    np.testing.assert_allclose(mine.inverse(other.integral(t)), t, atol=1e-14)
    assert torch.equal(mine.beta(torch.tensor(t)), torch.tensor(mine.beta(t)))
    assert FunctionBeta(lambda t: 4.0, lambda t: 4.0 * t).beta(t).shape == t.shape
    with pytest.raises(ValueError, match="tau must lie in"):
        mine.inverse(np.array([2.5]))
