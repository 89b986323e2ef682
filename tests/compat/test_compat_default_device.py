"""The codebases' losses and samplers on CPU tensors under a default device of the user's."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

from cldfast.compat import cld_sgm, psld, strasman

MODES = ("exact", "published")
CPU = torch.device("cpu")
SPACE = SimpleNamespace
Case = Callable[[], torch.Tensor]


@pytest.fixture(autouse=True)
def _restored() -> object:
    yield
    torch.set_default_device(None)


def check(case: Case) -> None:
    """The case gives the same numbers, on the CPU, whatever the default device."""
    results = []
    for device in (None, "meta"):
        torch.manual_seed(0)
        torch.set_default_device(device)
        results.append(case())
    torch.set_default_device(None)
    torch.testing.assert_close(results[1], results[0], rtol=0.0, atol=0.0)


def halves(count: int) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """A network of `count` planes of the two of a state."""

    def net(u: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return torch.sin(u[:, -count * (u.shape[1] // 2) :])

    return net


def data(width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(4, width, generator=generator, device=CPU)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("decomposition", ["lower", "upper"])
@pytest.mark.parametrize("training", ["hsm", "dsm"])
def test_psld(training: str, decomposition: str, mode: str) -> None:
    sde = SPACE(
        gamma=0.3, nu=3.0, kappa=0.04, beta_0=2.0, beta_1=9.0, T=1.0, eps=1e-5,
        decomp_mode=decomposition,
    )  # fmt: skip
    config = SPACE(
        training=SPACE(mode=training, loss=SPACE(weighting="fid", reduce_mean=True)),
        evaluation=SPACE(
            n_discrete_steps=3, sampler=SPACE(rtol=1e-3, atol=1e-3, solver="RK45")
        ),
    )  # fmt: skip
    t, ts = torch.full((4,), 0.4), torch.linspace(0.0, 0.99, 4, dtype=torch.float64)
    loss = psld.PSLDScoreLoss(config, sde, mode=mode)
    check(lambda: loss(data(3), t, halves(2)))
    batches = {"em_sde": data(6), "sscs_sde": data(6)}
    batches["ip_em_sde"] = (data(3), torch.tensor([1.0, 0.0, 1.0]))  # type: ignore[assignment]
    for name, batch in batches.items():
        sampler = psld.REGISTERED["samplers"][name](config, sde, halves(2), mode=mode)
        check(lambda sampler=sampler, batch=batch: sampler.sample(batch, ts, 3))
    pytest.importorskip("torchdiffeq")
    flow = psld.BBODESampler(config, sde, halves(2), mode=mode)
    check(lambda: flow.sample(data(6), ts, 3))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("is_cld", [True, False])
def test_strasman(is_cld: bool, mode: str) -> None:
    config = SPACE(
        a=1.5, epsilon=0.0 if is_cld else 0.25, sigma=1.2, device=CPU, T=1.0, beta_min=0.5,
        beta_max=7.0, v0_var=0.02, numerical_eps=1e-3,
    )  # fmt: skip
    sde, net = strasman.CriticallyDampedLangevin(config, mode), halves(1 if is_cld else 2)
    check(lambda: strasman.loss_hsm(net, sde, 0.01)(data(3), is_cld))
    check(lambda: sde.sample_final(4, 3))
    check(lambda: sde.Euler_Maruyama_discr_sampler(data(6), net, 3, 0.01, is_cld))
    check(lambda: sde.leapfrog_sampler(data(6), net, 3, 0.01, is_cld))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("objective", ["hsm", "dsm"])
@pytest.mark.parametrize("solver", ["em", "sscs", "ode"])
def test_cld_sgm(solver: str, objective: str, mode: str) -> None:
    if solver == "ode":
        pytest.importorskip("torchdiffeq")
    config = SPACE(
        device=CPU, is_image=False, m_inv=2.25, gamma=0.05, numerical_eps=1e-6, mixed_score=True,
        cld_objective=objective, weighting="reweightedv2", loss_eps=1e-3, n_discrete_steps=4,
        striding="quadratic", denoising=True, sscs_num_stab=1e-9, sampling_method=solver,
        sampling_solver="dopri5", sampling_solver_options=None, sampling_rtol=1e-3,
        sampling_atol=1e-3,
    )  # fmt: skip
    sde = cld_sgm.CLD(config, lambda t: 4.0 + 0.0 * t, lambda t: 4.0 * t, mode)
    check(lambda: cld_sgm.get_loss_fn(sde, True, config)(halves(1), data(3)))
    check(lambda: cld_sgm.get_sampling_fn(config, sde, (4, 3), 1e-2)(halves(1))[0])
