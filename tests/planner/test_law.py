"""Exact laws: distances between normals, and the recursion against simulation and theory."""

from __future__ import annotations

import mpmath as mp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cldfast.planner.law import GaussianLaw, marginal_law, wasserstein2
from cldfast.planner.make_plan import make_plan
from cldfast.planner.plan import Plan
from cldfast.planner.stage import Stage
from cldfast.process.schedules import LinearBeta
from cldfast.process.sde import CLD

BETA = LinearBeta(0.5, 8.0)


def bures(a: GaussianLaw, b: GaussianLaw) -> float:
    """`|m - n|^2 + tr(A + B - 2 (A^(1/2) B A^(1/2))^(1/2))`, 60 digits."""
    with mp.workdps(60):
        first, second = (mp.matrix(law.cov.tolist()) for law in (a, b))
        values, vectors = mp.eigsy(first)
        root = vectors * mp.diag([mp.sqrt(abs(value)) for value in values]) * vectors.T
        inner = mp.eigsy(root * second * root, eigvals_only=True)
        cross = sum(mp.sqrt(abs(value)) for value in inner)
        trace = first[0, 0] + first[1, 1] + second[0, 0] + second[1, 1] - 2 * cross
        shift = sum((mp.mpf(x) - mp.mpf(y)) ** 2 for x, y in zip(a.mean, b.mean, strict=True))
        return float(mp.sqrt(max(mp.re(shift + trace), mp.mpf(0))))


NUMBER = st.floats(-2.0, 2.0)
LAWS = st.tuples(*[NUMBER] * 2, *[st.floats(-2.0, 0.5)] * 2, st.floats(-0.99, 0.99)).map(
    lambda p: GaussianLaw(
        np.array(p[:2]),
        np.array(
            [[10 ** p[2], p[4] * 10 ** ((p[2] + p[3]) / 2)],
             [p[4] * 10 ** ((p[2] + p[3]) / 2), 10 ** p[3]]]
        ),
    )
)  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(LAWS, LAWS, LAWS)
def test_wasserstein2(a: GaussianLaw, b: GaussianLaw, c: GaussianLaw) -> None:
    """Against Bures' formula, and as a metric; distances are of order 1."""
    distance = wasserstein2(a, b, "phase")
    assert distance == pytest.approx(bures(a, b), rel=1e-11, abs=1e-12)
    assert distance == pytest.approx(wasserstein2(b, a, "phase"), rel=1e-11, abs=1e-12)
    assert distance <= wasserstein2(a, c, "phase") + wasserstein2(c, b, "phase") + 1e-12
    assert wasserstein2(a, b) <= distance + 1e-12  # a projection never lengthens
    one = GaussianLaw(a.mean, np.diag([a.cov[0, 0], 0.0]))
    two = GaussianLaw(b.mean, np.diag([b.cov[0, 0], 0.0]))
    alone = np.hypot(wasserstein2(a, b), b.mean[1] - a.mean[1])
    assert wasserstein2(one, two, "phase") == pytest.approx(alone, rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("size", [1e-4, 1e-8, 1e-12])
def test_wasserstein2_of_close_laws(size: float) -> None:
    """A relative step `size` from a law: Bures' difference would lose it from 1e-8 on."""
    a = GaussianLaw(np.zeros(2), np.array([[1.0, 0.3], [0.3, 0.5]]))
    b = GaussianLaw(np.zeros(2), a.cov * (1.0 + size) ** 2)
    # The optimal map is the scaling by 1 + size.
    want = size * np.sqrt(np.trace(a.cov))
    assert wasserstein2(a, b, "phase") == pytest.approx(want, abs=1e-15, rel=1e-7)
    assert wasserstein2(a, b) == pytest.approx(size, abs=1e-15, rel=1e-7)


def test_degenerate_laws() -> None:
    point = GaussianLaw(np.array([1.0, 0.0]), np.zeros((2, 2)))
    line = GaussianLaw(np.array([1.0, 0.0]), np.diag([4.0, 0.0]))
    plane = GaussianLaw(np.array([1.0, 0.0]), np.diag([4.0, 1.0]))
    assert wasserstein2(point, point, "phase") == 0.0
    assert wasserstein2(point, line, "phase") == 2.0
    assert wasserstein2(line, plane, "phase") == pytest.approx(1.0, rel=1e-15)
    with pytest.raises(ValueError, match="over must be 'x' or 'phase', got 'v'"):
        wasserstein2(point, line, "v")


@pytest.mark.parametrize("parameterization", ["score", "full_noise"])
@pytest.mark.parametrize("solver", ["em", "sscs"])
def test_against_simulation(solver: str, parameterization: str) -> None:
    """The recursion against sampling the same plan: 4 standard errors of 50,000 samples."""
    sde = CLD(x_noise=0.3, beta=BETA)
    plan = make_plan(sde, solver, 8, "quadratic", 0.05, parameterization)
    law = plan.gaussian_law(data_mean=0.7, data_var=0.2)
    n = 50_000
    rng = np.random.default_rng(0)
    u = rng.standard_normal((n, 2)) @ sde.prior().factor.T
    for stage in plan.stages:
        state = u @ stage.P.T
        if stage.t is not None:
            kernel = sde.marginal(stage.t)
            cov = kernel.cov + 0.2 * np.outer(kernel.mean, kernel.mean)
            score = -np.linalg.solve(cov, (u - 0.7 * kernel.mean).T).T
            output = score[:, 1:] if parameterization == "score" else -score @ kernel.factor
            state = state + output @ stage.E[0].T
        u = state + rng.standard_normal((n, 2)) @ stage.L.T
    size = np.sqrt(np.diag(law.cov))
    assert np.all(np.abs(u.mean(axis=0) - law.mean) < 4.0 * size / np.sqrt(n))
    spread = np.sqrt(2.0 / n) * np.outer(size, size)
    assert np.all(np.abs(np.cov(u.T) - law.cov) < 4.0 * spread)


def test_history_rows() -> None:
    """A made-up two-step plan with history, against its law written out by hand."""
    sde = CLD(beta=BETA)
    e, h, a, b = (
        np.array([[0.1], [0.2]]),
        np.array([[0.3], [-0.4]]),
        np.array([[0.5]]),
        np.eye(2)[:1],
    )
    noise = np.array([[0.2, 0.0], [0.1, 0.3]])
    stages = (
        Stage(0.9, 0.6, np.eye(2), (e,), (), noise, (a,), b),
        Stage(0.6, 0.3, 0.5 * np.eye(2), (e,), (h,), noise, (a,), b),
        Stage(0.3, 0.1, np.eye(2), (e,), (h, 2.0 * h), noise),
    )
    plan = Plan(stages, sde, "test", 1, "score", np.array([0.9, 0.6, 0.3, 0.1]))
    mean0, var0 = np.array([0.3, -0.2]), np.array([[1.0, 0.2], [0.2, 0.5]])
    got = plan.gaussian_law(mean0, var0, 0.7, 0.2)

    # The same as one linear map of (u_0, z_0, z_1, z_2) and a shift, u and rows kept whole.
    u, shift = np.hstack([np.eye(2), np.zeros((2, 6))]), np.zeros(2)
    rows: list[tuple[np.ndarray, np.ndarray]] = []
    for k, stage in enumerate(stages):
        kernel = sde.marginal(stage.t)
        precision = np.linalg.inv(kernel.cov + 0.2 * np.outer(kernel.mean, kernel.mean))
        gain, offset = -precision[1:], (precision @ kernel.mean * 0.7)[1:]
        o, o_shift = gain @ u, gain @ shift + offset
        z = np.zeros((2, 8))
        z[:, 2 + 2 * k : 4 + 2 * k] = np.eye(2)
        new = stage.P @ u + e @ o + stage.L @ z
        new_shift = stage.P @ shift + e @ o_shift
        for block, (row, row_shift) in zip(stage.H, rows, strict=False):
            new, new_shift = new + block @ row, new_shift + block @ row_shift
        rows.insert(0, (a @ o + b @ u, a @ o_shift + b @ shift))
        u, shift = new, new_shift
    covariance = np.eye(8)
    covariance[:2, :2] = var0
    start = np.concatenate([mean0, np.zeros(6)])
    assert np.allclose(got.mean, u @ start + shift, rtol=0, atol=1e-12)
    assert np.allclose(got.cov, u @ covariance @ u.T, rtol=0, atol=1e-12)


def test_marginal_law_at_both_ends() -> None:
    sde = CLD(beta=4.0, T=20.0)
    start = marginal_law(sde, 0.0, 0.7, 0.2)
    assert np.array_equal(start.mean, [0.7, 0.0])
    assert np.array_equal(start.cov, np.diag([0.2, sde.v0_var]))
    end = marginal_law(sde, 20.0, 0.7, 0.2)  # a tau = 160
    assert np.allclose(end.mean, 0.0, atol=1e-60)
    assert np.allclose(end.cov, sde.prior().cov, rtol=0, atol=1e-15)


def test_refusals() -> None:
    plan = make_plan(CLD(), "em", 3)
    with pytest.raises(ValueError, match=r"mean0 must be \(2,\) and var0 \(2, 2\), got \(3,\)"):
        plan.gaussian_law(np.zeros(3), np.eye(2))
    with pytest.raises(ValueError, match="data_var must be >= 0, got -1.0"):
        plan.gaussian_law(data_var=-1.0)
    with pytest.raises(ValueError, match="data_var must be >= 0, got nan"):
        plan.gaussian_law(data_var=float("nan"))
