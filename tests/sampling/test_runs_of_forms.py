"""Runs with networks that predict the data: all forms, solvers, backends and surroundings."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from core_calls import LEVELS
from forms import SEE_Y, question

from cldfast import (
    CLD,
    PSLD,
    Inpainting,
    LinearBeta,
    Preconditioned,
    initial_state,
    kernels,
    likelihood,
    make_plan,
    pflow,
    run,
    sample,
)
from cldfast.kernels.backends.cpu import CpuBackend
from cldfast.lab.mixture import GaussianMixture
from cldfast.planner.data_forms import DATA_FORMS
from cldfast.planner.parameterization import Parameterization, input_map, score_map
from cldfast.planner.solvers import SOLVERS

F64 = torch.float64
FORMS: list[Parameterization] = [*DATA_FORMS, Preconditioned(0.5)]
MIXTURE = GaussianMixture(
    np.array([0.4, 0.6]),
    np.array([[-1.0, 0.2], [0.8, 0.5]]),
    np.array([[[0.05, 0.02], [0.02, 0.1]], [[0.09, 0.0], [0.0, 0.04]]]),
)
SDES = [CLD(x_noise=0.25, beta=LinearBeta(1.0, 7.0)), PSLD()]
SDE = SDES[0]
D = 3


class Denoising(torch.nn.Module):
    """Row by row a smooth function of what it sees; kept: all that it was asked."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.one = torch.nn.Parameter(torch.ones((), dtype=dtype), requires_grad=False)
        self.kept: list[tuple[torch.Tensor, torch.Tensor]] = []

    def forward(self, seen: torch.Tensor, argument: torch.Tensor) -> torch.Tensor:
        self.kept.append((seen.clone(), argument))
        a = torch.tanh(argument).reshape(-1, *[1] * (seen.dim() - 1)).to(seen.dtype)
        return self.one * (0.8 * torch.tanh(seen) + 0.1 * a)


@pytest.mark.parametrize("sde", SDES, ids=repr)
@pytest.mark.parametrize("solver", SOLVERS)
def test_every_form_makes_the_same_samples(solver: str, sde) -> None:
    """With exact networks, to 1e-9 in float64: those of both rows of the score."""
    options = {"steps": 5, "t_min": 0.01, "dtype": F64, "seed": 3, "return_velocity": True}
    want = torch.cat(
        sample(MIXTURE.network(sde, "full_score"), sde, (6, 2), solver,
               parameterization="full_score", **options), 1
    )  # fmt: skip
    for form in FORMS:
        net = MIXTURE.network(sde, form)
        made = torch.cat(sample(net, sde, (6, 2), solver, parameterization=form, **options), 1)
        assert float((made - want).norm()) < 1e-9 * float(want.norm()), form


@pytest.fixture
def levels() -> Iterator[list[str]]:
    """Names of backends, one for each level of instructions."""
    core, names = kernels.get_backend("cpu", "cpu").core, []
    for level in LEVELS:
        backend = CpuBackend(core, level)
        backend.name = f"cpu at {level}"
        kernels.register_backend(backend.name, lambda found=backend: found)
        names.append(backend.name)
    yield names
    for name in names:
        kernels.unregister_backend(name)


@pytest.mark.parametrize("solver", ["em", "sscs", "multistep", "stochastic_multistep"])
@pytest.mark.parametrize("form", ["denoiser", "edm"])
def test_backends_agree(solver: str, form: str, levels: list[str]) -> None:
    """The CPU at every level of instructions, and the reference: to 1e-6 in float32."""
    options = {"solver": solver, "steps": 6, "t_min": 0.02, "parameterization": form, "seed": 7}
    for shape in ((33, D), (5, 2, 4, 3)):
        net = Denoising()
        made = [
            sample(net, SDE, shape, backend=backend, **options)
            for backend in ("reference", *levels)
        ]
        exact = sample(Denoising(F64), SDE, shape, dtype=F64, backend="reference", **options)
        for x in made[1:]:
            assert float((x - made[0]).norm()) < 1e-6 * float(made[0].norm())
        # Six steps of coefficients that grow to some hundreds, rounded to float32.
        assert float((made[0] - exact).norm()) < 1e-4 * float(exact.norm())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, F64])
@pytest.mark.parametrize("form", SEE_Y)
def test_the_network_sees_its_own_dtype(backend: str, form: str, dtype: torch.dtype) -> None:
    """Rounded as `.to` does, once: a network that returns 0 has the same states in all dtypes."""

    class Zero(Denoising):
        def forward(self, seen: torch.Tensor, argument: torch.Tensor) -> torch.Tensor:
            self.kept.append((seen.clone(), argument))
            return torch.zeros_like(seen)

    nets = [Zero(torch.float32), Zero(dtype)]
    states: list[torch.Tensor] = []
    u = initial_state(SDE, (9, D), seed=1, device=torch.get_default_device())
    for net in nets:
        plan = make_plan(SDE, "multistep", 5, t_min=0.05, parameterization=form)
        states.append(run(plan, net.to(u.device), u, seed=2, backend=backend))
    assert torch.equal(*states)
    for (plain, _), (own, argument) in zip(*(net.kept for net in nets), strict=True):
        assert plain.dtype == torch.float32 and own.dtype == dtype
        assert own.shape == (9, D) and argument.shape == (9,) and argument.stride(0) == 0
        if dtype != F64:
            assert torch.equal(own, plain.to(dtype))
        else:
            torch.testing.assert_close(own.float(), plain, rtol=1e-6, atol=1e-6)
    asked = torch.tensor([float(argument[0]) for _, argument in nets[0].kept])
    levels = input_map(SDE, np.array([s.t for s in plan.stages]), form)[1]
    torch.testing.assert_close(asked, torch.from_numpy(levels).float(), rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("form", SEE_Y)
def test_a_replaced_state_is_what_the_network_sees_next(backend: str, form: str) -> None:
    """Every stage asks about the state at hand, the callback's where there is one."""
    plan = make_plan(SDE, "multistep", 6, t_min=0.05, parameterization=form)
    u = initial_state(SDE, (4, D), seed=1, dtype=F64, device=torch.get_default_device())
    states, net = [u], Denoising(F64).to(u.device)

    def callback(step: int, t: float, state: torch.Tensor) -> torch.Tensor | None:
        states.append(state * 0.5 if step in (1, 2) else state)
        return states[-1] if step in (1, 2) else None

    run(plan, net, u, seed=2, callback=callback, backend=backend)
    for stage, state, (seen, argument) in zip(plan.stages, states, net.kept, strict=False):
        want, at = question(SDE, stage.t, form, state)
        torch.testing.assert_close(seen, want, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(argument, at, rtol=1e-12, atol=0.0)


def as_state_network(form: str, net):  # type: ignore[no-untyped-def]
    """The network of a form that sees y as one of "data_noise" that sees the state."""

    def wrapped(u: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        sigma = SDE.marginal(float(t[0])).sigma_y
        made = DATA_FORMS[form].coefficients(np.asarray(sigma))
        output = net(*question(SDE, float(t[0]), form, u))
        a = SDE.marginal(float(t[0])).statistic
        x, v = u.chunk(2, 1)
        return float(made.drop / sigma) * (a[0] * x + a[1] * v) - float(made.gain / sigma) * output

    return wrapped


@pytest.mark.parametrize("form", SEE_Y)
@pytest.mark.parametrize("solver", ["sscs", "multistep", "heun"])
def test_surroundings_of_a_run(solver: str, form: str) -> None:
    """Inpainting, guidance of both kinds, batches and images: as for a network of the state."""
    net, other = Denoising(F64), lambda y, s: 0.3 * y
    known = torch.randn(7, 2, 3, 2, dtype=F64)
    inpaint = Inpainting(known, torch.tensor([[[True, False]]]))

    def term(u: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        assert float(t[0]) > 0.01  # a time, where the network gets a noise level
        return torch.tanh(u[:, u.shape[1] // 2 :]) * t.reshape(-1, *[1] * (u.dim() - 1))

    common = {"solver": solver, "steps": 5, "t_min": 0.05, "dtype": F64, "seed": 4}
    states = [as_state_network(form, one) for one in (net, other)]

    def both(one, two):  # type: ignore[no-untyped-def]
        return lambda u, t: (one(u, t), two(u, t))

    for options in (
        {},
        {"inpaint": inpaint},
        {"batch_size": 3},
        {"guidance": term},
        {"guidance_scale": 1.7},
        {"guidance_scale": 1.7, "guidance": term},
    ):
        free = "guidance_scale" in options
        ours = both(net, other) if free else net
        theirs = both(*states) if free else states[0]
        made = sample(ours, SDE, (7, 2, 3, 2), parameterization=form, **common, **options)
        want = sample(theirs, SDE, (7, 2, 3, 2), parameterization="data_noise", **common, **options)
        assert float((made - want).norm()) < 1e-9 * float(want.norm()), options


@pytest.mark.parametrize("form", ["denoiser", "edm"])
def test_gradients_through_a_run(form: str) -> None:
    plan = make_plan(SDE, "multistep", 3, t_min=0.1, parameterization=form)
    net = Denoising(F64)
    u = torch.randn(2, 2 * D, dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda u: run(plan, net, u, differentiable=True, seed=0), (u,))
    assert torch.allclose(
        run(plan, net, u.detach(), seed=0), run(plan, net, u, differentiable=True, seed=0)
    )


@pytest.mark.parametrize("form", [*SEE_Y, "data_noise"])
def test_the_flow_and_the_likelihood(form: str) -> None:
    """`pflow` ends where that of the full score does, and the bound is the same."""
    pytest.importorskip("torchdiffeq")
    u = initial_state(SDE, (5, 2), seed=3, dtype=F64)
    options = {"init": u, "t_min": 0.05, "rtol": 1e-7, "atol": 1e-7, "return_velocity": True}
    ends, bounds = [], []
    for name in ("full_score", form):
        net = MIXTURE.network(SDE, name)
        ends.append(pflow(net, SDE, parameterization=name, **options)[0])
        made = likelihood(
            net, SDE, MIXTURE.sample(4, seed=2).double(), parameterization=name, t_min=0.05,
            probe="exact", rtol=1e-6, atol=1e-6,
        seed=0,
)  # fmt: skip
        bounds.append(made.nll)
    assert float((ends[0] - ends[1]).abs().max()) < 1e-5
    assert float((bounds[0] - bounds[1]).abs().max()) < 1e-4


def test_a_state_on_a_denoiser_of_another_width_is_refused() -> None:
    with pytest.raises(ValueError, match="needs the network's output to have 3"):
        sample(lambda y, s: y.repeat(1, 2), SDE, (4, D), steps=2, parameterization="denoiser")
    # The score of the form's own network, at a glance.
    assert score_map(SDE, np.array([0.3]), "denoiser").planes == 1
