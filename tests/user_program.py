"""A user's program that touches every public name, for type checkers: `mypy --strict` passes it.

Nothing here runs. `tests/test_public_names.py` holds the program to the public names, and
`make types` and `make check-install` check its types, the latter against an installed package.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import assert_type

import cldfast
from cldfast import classical


class Net(nn.Module):
    """A network as users write one: it returns the velocity score."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 2)

    def forward(self, u: Tensor, t: Tensor) -> Tensor:
        y: Tensor = self.layer(torch.cat([u, t[:, None]], 1))
        return y


def processes() -> Sequence[cldfast.LinearPhaseSDE]:
    rates = (
        cldfast.ConstantBeta(4.0), cldfast.LinearBeta(0.1, 20.0), cldfast.CosineBeta(),
        cldfast.ExponentialBeta(0.1, 1.6), cldfast.CallableBeta(lambda t: 1.0 + t),
    )  # fmt: skip
    own = cldfast.LinearPhaseSDE([[0.0, 1.0], [-1.0, -2.0]], [0.0, 4.0], v0_var=0.01, beta=rates[1])
    again = cldfast.sde_from_config(own.config())
    return [cldfast.CLD(a=2.0, beta=rates[0]), cldfast.CLD.from_mass(4.0), cldfast.PSLD(), again]


def training(net: Net, sde: cldfast.LinearPhaseSDE, x0: Tensor) -> None:
    learned = cldfast.Uncertainty()
    loss = cldfast.hsm_loss(net, sde, x0, parameterization=cldfast.Preconditioned(0.5))
    assert_type(loss, Tensor)
    assert_type(cldfast.hsm_loss(net, sde, x0, uncertainty=learned), Tensor)
    assert_type(cldfast.dsm_loss(net, sde, x0), Tensor)
    times, weights = cldfast.sample_times(len(x0), sde, seed=1)
    u, marginal = cldfast.perturb(sde, x0, times, seed=1)
    assert_type(u, Tensor)
    assert_type(weights, Tensor)
    print(marginal.mean)


def sampling(net: Net, sde: cldfast.LinearPhaseSDE, folder: Path) -> Tensor:
    x = cldfast.sample(net, sde, (10, 2), "sscs2", 20, "auto", parameterization="mixed", seed=None)
    assert_type(x, Tensor)
    record, mask = cldfast.Trajectory(every=2), torch.ones(2)
    known = cldfast.Inpainting(torch.zeros(10, 2), mask)
    cldfast.sample(net, sde, (10, 2), callback=record, inpaint=known)
    x, v = cldfast.sample(net, sde, (10, 2), return_velocity=True)
    assert_type(v, Tensor)

    plan = cldfast.make_plan(sde, "multistep", 8, "logistic", order=3)
    assert_type(plan, cldfast.Plan)
    plan.save(folder / "plan.json")
    u = cldfast.initial_state(sde, (10, 2), seed=1)
    assert_type(cldfast.run(plan, net, u, seed=1), Tensor)
    assert_type(plan.error_budget(0.5), cldfast.ErrorBudget)
    fitted = cldfast.fit_plan(net, sde, torch.zeros(100, 2), 8)
    assert_type(fitted, cldfast.FitResult)
    assert_type(fitted.plan.stages, tuple[cldfast.Stage, ...])
    grid = cldfast.make_grid("quadratic", T=1.0, t_min=1e-3, steps=20)
    cldfast.sample(net, sde, (10, 2), "em", grid=grid, plan=None)
    cldfast.optimise_grid(sde, "em", 10)

    def stop(index: int, t: float, u: Tensor) -> None:
        if not bool(torch.isfinite(u).all()):
            raise cldfast.StopSampling

    cldfast.sample(net, sde, (10, 2), callback=stop)
    flow, evaluations = cldfast.pflow(net, sde, (10, 2))
    assert_type(flow, Tensor)
    assert_type(evaluations, int)
    found = cldfast.likelihood(net, sde, x)
    assert_type(found, cldfast.Likelihood)
    return found.nll


def model(net: Net, sde: cldfast.LinearPhaseSDE, x0: Tensor, folder: Path) -> cldfast.Model:
    made = cldfast.Model(net, sde, "mixed", cldfast.DataScale.fit(x0), shape=(2,))
    assert_type(made.loss(x0, labels=torch.zeros(10)), Tensor)
    made.fit(x0)

    def watch(info: cldfast.StepInfo) -> None:
        assert_type(info.x0, Tensor | None)

    x = made.sample(10, 8, labels=3, batch_size=4, callback=watch)
    assert_type(x, Tensor)
    assert_type(made.denoise(torch.zeros(10, 4), 0.5), Tensor)
    assert_type(made.likelihood(x0), cldfast.Likelihood)
    assert_type(made.fit_plan(x0, 8), cldfast.FitResult)
    made.save_pretrained(folder)
    again = cldfast.Model.from_pretrained(folder, net)
    assert_type(again, cldfast.Model)
    return again


def own_stage(u: Tensor, output: Tensor) -> None:
    address = cldfast.NoiseAddress(seed=1, stage_index=3)
    weights = torch.zeros(1, 2, 5, dtype=torch.float64)
    print(cldfast.stage(u, [output], weights=weights, noise=address))


def pretrained(denoiser: nn.Module, pipeline: Any) -> None:
    cld = cldfast.CLD()
    own = cldfast.from_denoiser(denoiser, predicts="x0")
    ready = cldfast.from_diffusers(pipeline)
    for net in (own, ready):
        x = cldfast.sample(net, cld, (4, 3, 32, 32), parameterization="denoiser")
        assert_type(x, Tensor)


def the_classical(net: Net, x0: Tensor) -> None:
    paths: Sequence[classical.GaussianPath] = [
        classical.VP(), classical.VE(), classical.OU(), classical.Brownian(), classical.EDM(),
        classical.FlowMatching(), classical.GaussianPath(np.cos, np.sin),
    ]  # fmt: skip
    for path in paths:
        assert_type(cldfast.sample(net, path, (10, 2), "multistep", 20), Tensor)
        assert_type(classical.dsm_loss(net, path, x0), Tensor)
        assert_type(classical.annealed_langevin(net, path, (10, 2), 5), Tensor)
    t = torch.ones(len(x0))
    for loss in (
        classical.flow_matching_loss(net, x0),
        classical.multi_scale_loss(net, x0, [0.1]),
        classical.implicit_loss(net, x0, t),
        classical.sliced_loss(net, x0, t, torch.ones_like(x0)),
    ):
        assert_type(loss, Tensor)
    assert_type(classical.ula(net, x0, 0.1, 10), Tensor)
    x, v = classical.kinetic_langevin(net, x0, 0.1, 10)
    assert_type(v, Tensor)
    x, accepted = classical.mala(lambda x: -0.5 * x.square().sum(1), x0, 0.1, 10)
    assert_type(accepted, Tensor)
    for chain in (classical.Langevin(10.0), classical.KineticLangevin(10.0)):
        cldfast.make_plan(chain, "ula" if isinstance(chain, classical.Langevin) else "baoab", 10)


def the_rest(data: Any) -> None:
    for row in cldfast.compare(data, (8, 20)):
        assert_type(row, dict[str, Any])
    report = cldfast.info()
    print(report["backends"], cldfast.__version__)
    for warning in (cldfast.BackendWarning, cldfast.BlindLossWarning, cldfast.GraphWarning):
        assert issubclass(warning, Warning)
