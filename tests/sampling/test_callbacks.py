"""What a callback is told: the state, and the prediction of the data, whatever a network returns."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import cldfast
from cldfast.classical import VP
from cldfast.lab.mixture import GaussianMixture

F64 = torch.float64
SDE = cldfast.CLD(x_noise=0.3)
MIXTURE = GaussianMixture(
    torch.tensor([0.5, 0.5]), torch.tensor([[1.0, 0.0], [-1.0, 0.5]]), torch.full((2, 2), 0.1)
)


@pytest.mark.parametrize("parameterization", ["noise", "full_score", "data_noise", "edm"])
@pytest.mark.parametrize("solver", ["sscs", "multistep"])
def test_x0_is_the_exact_prediction(parameterization: str, solver: str) -> None:
    """`Phi^-1 (u + Q s)` of the mixture's exact score, at the state before each evaluation."""
    net, score = (MIXTURE.network(SDE, name) for name in (parameterization, "full_score"))
    asked: list[tuple[torch.Tensor, torch.Tensor]] = []

    def recorded(u: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        asked.append((u.clone(), t))
        return net(u, t)

    infos: list[cldfast.StepInfo] = []
    options: dict[str, Any] = {"parameterization": parameterization, "dtype": F64, "seed": 3}
    x = cldfast.sample(recorded, SDE, (6, 2), solver, 5, callback=infos.append, **options)
    states = [cldfast.initial_state(SDE, (6, 2), seed=3, dtype=F64), *(i.state for i in infos)]
    assert torch.equal(infos[-1].state[:, :2], x)
    plan = cldfast.make_plan(SDE, solver, 5, parameterization=parameterization)
    assert [info.t for info in infos] == [stage.t_next for stage in plan.stages]
    expected = None
    for k, (stage, info) in enumerate(zip(plan.stages, infos, strict=True)):
        assert info.step == k
        if stage.t is not None:
            u, t = states[k], torch.full((6,), stage.t, dtype=F64)
            kernel = SDE.marginal(t)
            m_x = kernel.mean[:, :1]
            cov = kernel.cov
            s = score(u, t)
            # The position row of `m x0 = u + Sigma s`, where Sigma is the marginal's covariance.
            moved = u[:, :2] + cov[:, :1, 0] * s[:, :2] + cov[:, :1, 1] * s[:, 2:]
            expected = moved / m_x
        if expected is None:
            assert info.x0 is None
        else:
            assert info.x0 is not None
            torch.testing.assert_close(info.x0, expected, rtol=1e-6, atol=1e-6)


def test_x0_is_guided() -> None:
    """A pair and a term, against one network that returns their sum."""
    net = MIXTURE.network(SDE, "full_score")
    options: dict[str, Any] = {"parameterization": "full_score", "dtype": F64, "seed": 1}
    found: list[torch.Tensor | None] = []
    expected: list[torch.Tensor | None] = []
    cldfast.sample(
        lambda u, t: (net(u, t), -u), SDE, (3, 2), "em", 4, guidance_scale=1.5,
        guidance=lambda u, t: 0.2 * u, callback=lambda info: found.append(info.x0), **options,
    )  # fmt: skip
    cldfast.sample(
        lambda u, t: 1.5 * net(u, t) + 0.7 * u, SDE, (3, 2), "em", 4,
        callback=lambda info: expected.append(info.x0), **options,
    )  # fmt: skip
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_a_path_shows_samples_and_takes_back_a_state() -> None:
    def callback(info: cldfast.StepInfo) -> torch.Tensor | None:
        assert info.x0 is not None and info.state.shape == info.x0.shape == (4, 3)
        # The exact prediction for data N(0, 1) is alpha x.
        torch.testing.assert_close(info.x0, float(VP().alpha(times[info.step])) * states[-1])
        states.append(info.state)
        return None if info.step < 2 else torch.zeros_like(info.state)

    times = cldfast.make_plan(VP(), "ddim", 3, t_min=0.1).grid
    x = cldfast.initial_state(VP(), (4, 2), seed=2, dtype=F64)
    states = [x[:, :3]]
    x = cldfast.sample(
        lambda x, t: -x, VP(), (4, 3), "ddim", 3, t_min=0.1, seed=2, callback=callback, dtype=F64
    )
    assert len(states) == 4 and not x.any()


def test_both_kinds_of_callback_and_none_else() -> None:
    plan = cldfast.make_plan(SDE, "em", 2, parameterization="data_noise")
    u, seen = torch.zeros(1, 2), []
    net = MIXTURE.network(SDE, "data_noise")
    u = torch.zeros(1, 4)
    cldfast.run(plan, net, u, callback=lambda *three: seen.append(three))
    assert [len(three) for three in seen] == [3, 3]
    with pytest.raises(TypeError, match=r"callback\(info\) or callback\(step, t, state\)"):
        cldfast.run(plan, net, u, callback=lambda a, b: None)
    with pytest.raises(TypeError, match="callback must be callable, got int"):
        cldfast.run(plan, net, u, callback=3)
