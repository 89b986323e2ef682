"""The noise level, its inverse, and the grids that follow it."""

from __future__ import annotations

import numpy as np
import pytest

from cldfast import CLD, PSLD, make_grid, make_plan
from cldfast.planner.grids import LOGISTIC_CENTRE, LOGISTIC_SCALE
from cldfast.process.noise_level import NoiseLevel
from cldfast.process.schedules import LinearBeta

SDES = [CLD(beta=LinearBeta(0.0, 8.0)), CLD(x_noise=0.25), CLD(v0_var=0.0), PSLD()]


@pytest.mark.parametrize("sde", SDES)
def test_signal_to_noise_and_inverse(sde) -> None:
    noise, t = NoiseLevel(sde), np.geomspace(1e-4, 1.0, 40)
    kernel = sde.marginal(t)
    snr = np.einsum("ni,nij,nj->n", kernel.mean, kernel.precision, kernel.mean)
    assert np.allclose(noise.log_sigma(t), -0.5 * np.log(snr), rtol=1e-9, atol=1e-9)
    assert np.allclose(noise.time(noise.log_sigma(t)), t, rtol=1e-9)
    assert noise.log_sigma(np.array([0.0]))[0] == -np.inf


def test_grids() -> None:
    sde = CLD()
    noise = NoiseLevel(sde)
    even = make_grid("log_snr", T=1.0, t_min=1e-3, steps=10, noise=noise)
    steps = np.diff(noise.log_sigma(even))
    assert np.allclose(steps, steps[0], rtol=1e-8)
    for t_min in (0.0, 1e-3):
        grid = make_grid("logistic", T=1.0, t_min=t_min, steps=10, noise=noise)
        assert grid[0] == 1.0 and grid[-1] == t_min and np.all(np.diff(grid) < 0.0)
        z = (noise.log_sigma(grid) - LOGISTIC_CENTRE) / LOGISTIC_SCALE
        share = np.diff(1.0 / (1.0 + np.exp(-z)))
        assert np.allclose(share, share[0], rtol=1e-8)
    with pytest.raises(ValueError, match="log_snr grid needs t_min > 0"):
        make_grid("log_snr", T=1.0, t_min=0.0, steps=10, noise=noise)
    with pytest.raises(ValueError, match="unknown grid 'logistic'; expected linear, quadratic, po"):
        make_grid("logistic", T=1.0, t_min=0.0, steps=10)


def test_auto() -> None:
    sde = CLD()
    assert np.array_equal(
        make_plan(sde, "unipc", 12, "auto").grid, make_plan(sde, "unipc", 12, "logistic").grid
    )
    assert np.array_equal(
        make_plan(sde, "roba", 12, "auto").grid, make_plan(sde, "roba", 12, "quadratic").grid
    )
    # With many steps the late times want more of them.
    assert np.array_equal(
        make_plan(sde, "sscs2", 50, "auto").grid, make_plan(sde, "sscs2", 50, "quadratic").grid
    )
    # On logistic grids the last step is a leap, which the L form does not survive.
    assert np.array_equal(
        make_plan(sde, "multistep", 12, "auto", form="L").grid,
        make_plan(sde, "multistep", 12, "quadratic").grid,
    )
