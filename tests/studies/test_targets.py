"""The study of the targets' variance: closed forms, limits, and Monte Carlo through the mixtures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from cldfast import CLD, LinearBeta, perturb
from cldfast.classical import OU, VP
from cldfast.lab.mixture import GaussianMixture
from cldfast.studies import targets
from cldfast.studies.targets import Mixture, at_time, vp_xi

SDES = [CLD(), CLD(a=1.3, x_noise=0.4, beta=LinearBeta(0.5, 7.0))]


@pytest.mark.parametrize("t", [1e-3, 0.05, 0.4, 1.0])
@pytest.mark.parametrize("sde", SDES)
def test_gaussian_data_in_closed_form(sde: CLD, t: float) -> None:
    """The score is then `-C^-1 u`, C the covariance of the state."""
    var = 0.7
    got = at_time(sde, Mixture((0.0,), var), t)
    for name in ("hsm", "dsm"):
        marginal = sde.marginal(t, name)
        assert getattr(got, name) == pytest.approx(np.linalg.inv(marginal.cov)[1, 1], rel=1e-6)
    marginal = sde.marginal(t)
    inverse = np.linalg.inv(marginal.cov + var * np.outer(marginal.mean, marginal.mean))
    assert got.dsm_given_u == pytest.approx(got.dsm - inverse[1, 1], rel=1e-6)
    # A difference of numbers of the size of `hsm`, at times a small one.
    rounding = 1e-9 * got.hsm
    assert got.hsm_given_u == pytest.approx(got.hsm - inverse[1, 1], rel=1e-6, abs=rounding)
    difference = sde.prior().precision[1] - inverse[1]
    xi = difference @ np.linalg.inv(inverse) @ difference
    assert got.xi == pytest.approx(xi, rel=1e-6, abs=1e-9 * inverse[1, 1])


@pytest.mark.parametrize("t", [0.05, 0.5])
def test_mixtures_by_monte_carlo(t: float) -> None:
    """Against the exact score of the mixture at perturbed samples, and targets drawn with it."""
    sde, data, n = SDES[1], Mixture((-1.0, 0.0, 2.0), 0.05), 50_000
    mixture = GaussianMixture(
        torch.ones(3), torch.tensor([[-1.0], [0.0], [2.0]]), torch.full((3, 1), 0.05)
    )
    x0 = mixture.sample(n, seed=1).double()
    u, _ = perturb(sde, x0, torch.full((n,), t, dtype=torch.float64), seed=2)
    score = mixture.score(u, t, sde).numpy()
    got, marginal = at_time(sde, data, t), sde.marginal(t)
    target = -((u - x0 * torch.from_numpy(marginal.mean)).numpy() @ marginal.precision)[:, 1]
    prior = -(u.numpy() @ sde.prior().precision)[:, 1]
    for expected, squares in (
        (got.hsm, target**2),
        (got.hsm_given_u, (target - score[:, 1]) ** 2),
        (got.xi, (score[:, 1] - prior) ** 2),
    ):
        assert abs(squares.mean() - expected) < 5 * squares.std() / n**0.5
    assert got.hsm_given_u < got.dsm_given_u


def test_limits() -> None:
    """At the start by the leading orders of the covariance, in the end by the stationary law."""
    sde, data, t = CLD(), Mixture(), 1e-6
    rate = float(sde.D[1]) * 4.0 * t
    start = at_time(sde, data, t)
    # Corrections of relative size D_vv beta t / v0_var = 8e-4.
    assert start.hsm == pytest.approx(3.0 / rate, rel=2e-3)
    assert start.dsm == pytest.approx(4.0 / rate, rel=2e-3)
    noisy = at_time(CLD(x_noise=0.5), data, t)
    assert noisy.hsm == pytest.approx(1.0 / sde.v0_var, rel=2e-3)
    assert noisy.dsm == pytest.approx(1.0 / rate, rel=2e-3)
    end = at_time(CLD(T=4.0), data, 4.0)
    # In the end the state knows nothing of the data, and the score is normal.
    stationary = float(sde.prior().precision[1, 1])
    assert end.hsm == pytest.approx(stationary, rel=1e-6)
    assert end.dsm == pytest.approx(stationary, rel=1e-6)
    assert abs(end.hsm_given_u) < 1e-6 and abs(end.xi) < 1e-6


def test_the_position_process() -> None:
    """Gaussian data: variance v + 1 - v e^-tau, and the squared difference of two slopes."""
    process, var = OU(LinearBeta(0.1, 20.0)), 0.3
    for t in (0.01, 0.3, 1.0):
        tau = 0.1 * t + 0.5 * 19.9 * t**2
        total = var * np.exp(-tau) + 1.0 - np.exp(-tau)
        xi = (1.0 - 1.0 / total) ** 2 * total
        assert vp_xi(process, Mixture((0.0,), var), t) == pytest.approx(xi, rel=1e-8, abs=1e-12)


def test_the_shape_of_the_figures(tmp_path: Path) -> None:
    """Hybrid below denoising; CLD nearer to normal than VP; noise on x bounds the hybrid target."""
    times = np.array([1e-3, 1e-2, 0.1, 0.5, 1.0])
    data = Mixture()
    results = {
        name: [at_time(sde, data, float(t)) for t in times]
        for name, sde in targets.PROCESSES.items()
    }
    for rows in results.values():
        assert all(r.hsm_given_u <= r.dsm_given_u and r.hsm <= r.dsm for r in rows)
    plain, noisy, *_ = (rows[0] for rows in results.values())
    assert noisy.hsm_given_u < 0.01 * noisy.dsm_given_u < 0.01 * plain.dsm_given_u
    positions = [vp_xi(VP(), data, float(t)) for t in times]
    first = results["CLD"]
    assert all(position > row.xi for position, row in zip(positions[:4], first[:4], strict=True))
    targets.plot(results, positions, times, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 0
