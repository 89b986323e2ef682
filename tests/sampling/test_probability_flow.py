"""The adaptive flow: law, encoding, evaluation count, errors."""

from __future__ import annotations

import sys

import pytest
import torch

from cldfast import CLD, initial_state, make_plan, pflow, run
from cldfast.lab.mixture import GaussianMixture
from cldfast.process.schedules import LinearBeta

pytest.importorskip("torchdiffeq")
pytestmark = pytest.mark.usefixtures("one_thread")
MIXTURE = GaussianMixture([0.4, 0.6], [[-1.0], [0.8]], [[0.04], [0.09]])


@pytest.mark.parametrize("x_noise", [0.0, 0.25])
@pytest.mark.parametrize("parameterization", ["score", "x0", "full_score"])
def test_agrees_with_a_fine_multistep_run(x_noise: float, parameterization: str) -> None:
    sde = CLD(x_noise=x_noise, beta=LinearBeta(2.0, 6.0))
    net = MIXTURE.network(sde, parameterization)
    u = initial_state(sde, (16, 1), seed=3, dtype=torch.float64)
    got, evaluations = pflow(
        net, sde, init=u, parameterization=parameterization, t_min=0.01, rtol=1e-7, atol=1e-7,
        return_velocity=True,
    seed=0,
)  # fmt: skip
    plan = make_plan(
        sde, "multistep", 600, "log_snr", 0.01, parameterization, order=3, variable="log_snr"
    )
    want = run(plan, net, u, seed=0)
    # Local errors of 1e-7 a step, some 50 steps, and the multistep run's own h^3.
    assert float((got - want).abs().max()) < 2e-5
    assert evaluations > 50
    # The way back.
    again, _ = pflow(
        net, sde, init=got, parameterization=parameterization, t_min=0.01, rtol=1e-7, atol=1e-7,
        reverse=True, return_velocity=True,
    seed=0,
)  # fmt: skip
    assert float((again - u).abs().max()) < 2e-5


def test_tolerance_costs_evaluations_and_rows_are_addressed() -> None:
    sde = CLD()
    net = MIXTURE.network(sde)
    x, loose = pflow(net, sde, (8, 1), rtol=1e-3, atol=1e-3, seed=0)
    _, tight = pflow(net, sde, (8, 1), rtol=1e-7, atol=1e-7, seed=0)
    assert x.shape == (8, 1) and loose < tight
    whole, _ = pflow(net, sde, (8, 1), rtol=1e-6, atol=1e-6, dtype=torch.float64, seed=0)
    part, _ = pflow(
        net, sde, (4, 1), rtol=1e-6, atol=1e-6, dtype=torch.float64, first_index=4, seed=0
    )
    assert float((whole[4:] - part).abs().max()) < 1e-2


def test_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    sde = CLD()
    net = MIXTURE.network(sde)
    with pytest.raises(ValueError, match="t_min must lie in"):
        pflow(net, sde, (4, 1), t_min=0.0)
    with pytest.raises(ValueError, match="rtol must be finite and > 0, got 0.0"):
        pflow(net, sde, (4, 1), rtol=0.0)
    with pytest.raises(ValueError, match="pflow needs init"):
        pflow(net, sde)
    with pytest.raises(ValueError, match="unknown parameterization 'eps'"):
        pflow(net, sde, (4, 1), parameterization="eps")
    with pytest.raises(ValueError, match="needs 2 output planes, got 1"):
        pflow(net, sde, (4, 1), parameterization="full_score")
    monkeypatch.setitem(sys.modules, "torchdiffeq", None)  # an import of it now fails
    with pytest.raises(ImportError, match=r"cldfast\[ode\]"):
        pflow(net, sde, (4, 1))
