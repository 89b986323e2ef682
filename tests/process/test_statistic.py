"""The sufficient statistic y of the state against arbitrary precision, from t = 1e-10 to T."""

from __future__ import annotations

from typing import Any

import exact
import mpmath as mp
import numpy as np
import pytest
import torch

from cldfast.process.sde import CLD, PSLD, LinearPhaseSDE

SDES = {
    "CLD": CLD(),
    "x_noise 0.1": CLD(a=1.0, x_noise=0.1),
    "x_noise 1": CLD(a=1.0, x_noise=1.0),
    "at rest": CLD(v0_var=0.0),
    "at rest, x_noise": CLD(x_noise=0.1, v0_var=0.0),
    "PSLD": PSLD(),
    "overdamped": CLD(damping=3.0),
    "underdamped": CLD(damping=0.3),
    "swings": CLD(damping=0.1, x_noise=0.2),
}
TIMES = np.array([*10.0 ** np.arange(-10.0, 0.0, 0.5), 0.5, 0.8, 1.0])

# Covariance entries come out to about 2,000 roundings of 1.1e-16 at worst, 2e-13, as the tests of
# the transitions ask for 1e-12; a sum of four products of theirs adds a handful of roundings.
RELATIVE = 1e-12


def exact_statistic(sde: LinearPhaseSDE, tau: float) -> tuple[Any, list[Any], Any, Any]:
    """snr, the row of y, the size of the terms of each entry, and that of the terms of snr."""
    with mp.workdps(exact.DIGITS):
        step = exact.transition(sde.A, sde.D, tau)
        m, cov = step.phi[:, 0], step.sigma(sde.v0_var)
        det = cov[0, 0] * cov[1, 1] - cov[0, 1] ** 2
        terms = [
            (cov[1, 1] * m[0], -cov[0, 1] * m[1]),
            (-cov[0, 1] * m[0], cov[0, 0] * m[1]),
        ]
        pull = [a + b for a, b in terms]
        signal = m[0] * pull[0] + m[1] * pull[1]
        sizes = [abs(a) + abs(b) for a, b in terms]
        whole = abs(m[0]) * sizes[0] + abs(m[1]) * sizes[1]
        return (
            signal / det, [entry / signal for entry in pull], [size / signal for size in sizes],
            whole / signal,
        )  # fmt: skip


@pytest.mark.parametrize("name", SDES)
def test_against_exact_values(name: str) -> None:
    """Nothing cancels until the process swings back; then by the terms that do."""
    sde = SDES[name]
    marginal = sde.marginal(TIMES)
    for k, t in enumerate(TIMES):
        snr, row, sizes, whole = exact_statistic(sde, float(sde.tau(t)))
        assert exact.relative(marginal.snr[k], snr) < RELATIVE * float(whole), t
        with mp.workdps(exact.DIGITS):
            sigma = 1 / mp.sqrt(snr)
        assert exact.relative(marginal.sigma_y[k], sigma) < RELATIVE * float(whole), t
        for got, want, size in zip(marginal.statistic[k], row, sizes, strict=True):
            with mp.workdps(exact.DIGITS):
                error = abs(mp.mpf(float(got)) - want)
            assert error < RELATIVE * size * whole, t
        # Only what has swung back, or carries much noise on x, has terms of two signs to speak of.
        assert float(whole) < 3.0 or "swings" in name or "x_noise" in name, (t, float(whole))


@pytest.mark.parametrize("name", SDES)
def test_y_is_x0_with_noise_and_the_rest_knows_nothing(name: str) -> None:
    """`a^T m = 1` and `a^T Sigma a = sigma_y^2`; `n^T m = 0` and `n^T Sigma a = 0`."""
    sde = SDES[name]
    for t in TIMES[::4]:
        with mp.workdps(exact.DIGITS):
            step = exact.transition(sde.A, sde.D, float(sde.tau(t)))
            m, cov = step.phi[:, 0], step.sigma(sde.v0_var)
            a = cov**-1 * m / (m.T * cov**-1 * m)[0]
            n = mp.matrix([-m[1], m[0]])
            snr, row, _, _ = exact_statistic(sde, float(sde.tau(t)))
            assert all(abs(got / want - 1) < 1e-100 for got, want in zip(a, row, strict=True))
            assert abs((a.T * m)[0] - 1) < 1e-100
            assert abs((a.T * cov * a)[0] * snr - 1) < 1e-100
            size = mp.sqrt((n.T * cov * n)[0] / snr)
            assert abs((n.T * cov * a)[0]) < 1e-60 * size


def test_in_torch_and_at_both_ends() -> None:
    sde = SDES["x_noise 0.1"]
    ours, theirs = sde.marginal(TIMES), sde.marginal(torch.from_numpy(TIMES))
    for name in ("signal", "snr", "sigma_y", "statistic"):
        want, got = getattr(ours, name), getattr(theirs, name)
        assert got.dtype == torch.float64
        assert np.allclose(got.numpy(), want, rtol=1e-13, atol=0.0)
    start = SDES["CLD"].marginal(0.0)
    assert start.sigma_y == 0.0
    # Long after, the state has forgotten x0: a tau = 40.
    assert CLD(T=10.0, a=1.0).marginal(10.0).sigma_y > 1e15
