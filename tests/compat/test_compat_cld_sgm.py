"""`compat.cld_sgm` against its formulas, derived here again from the process by matrix exponentials.

With `A~ = [[0, -1/M], [1, -f/M]]` (the stationary process reversed) and stationary covariance
`S = diag(1, M)`, a transition over an integral b of beta is `exp(A~ b)` with covariance
`S - exp(A~ b) S exp(A~ b)^T`; forward the same with the signs of the off-diagonal turned.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.linalg import expm

import cldfast
from cldfast.compat import cld_sgm
from cldfast.compat.laws import naive

F64 = torch.float64


def config(**changes: Any) -> SimpleNamespace:
    values: dict[str, Any] = {
        "device": "cpu", "is_image": False, "m_inv": 2.25, "gamma": 0.05, "numerical_eps": 1e-6,
        "cld_objective": "hsm", "mixed_score": False, "weighting": "reweightedv2",
        "loss_eps": 1e-3, "sampling_method": "sscs", "n_discrete_steps": 20,
        "striding": "quadratic", "denoising": False, "sscs_num_stab": 1e-9, "beta": (1.0, 5.0),
    }  # fmt: skip
    for kind in ("sampling", "likelihood"):
        values |= {f"{kind}_solver": "dopri5", f"{kind}_solver_options": None}
        values |= {f"{kind}_rtol": 1e-6, f"{kind}_atol": 1e-6}
    values |= {"likelihood_eps": 1e-2, "likelihood_hutchinson_type": "rademacher"}
    return SimpleNamespace(**(values | changes))


def process(c: SimpleNamespace, kind: str = "cld", mode: str = "exact") -> Any:
    b0, b1 = c.beta
    make = cld_sgm.CLD if kind == "cld" else cld_sgm.VPSDE
    return make(c, lambda t: b0 + b1 * t, lambda t: b0 * t + 0.5 * b1 * t**2, mode)


def tau(c: SimpleNamespace, t: float) -> float:
    return c.beta[0] * t + 0.5 * c.beta[1] * t * t


def beta(c: SimpleNamespace, t: float) -> float:
    return c.beta[0] + c.beta[1] * t


def constants(c: SimpleNamespace) -> tuple[np.ndarray, np.ndarray, float]:
    """Forward drift, stationary covariance, f."""
    f = 2.0 / math.sqrt(c.m_inv)
    return (
        np.array([[0.0, c.m_inv], [-1.0, -f * c.m_inv]]),
        np.diag([1.0, 1.0 / c.m_inv]),
        f,
    )


def reversed_step(c: SimpleNamespace, b: float) -> tuple[np.ndarray, np.ndarray]:
    """Matrix and covariance of the reversed stationary process."""
    A, S, _ = constants(c)
    phi = expm((-A - 2.0 * np.diag([0.0, constants(c)[2]]) @ np.linalg.inv(S)) * b)
    return phi, S - phi @ S @ phi.T


def kernel(c: SimpleNamespace, t: float, jitter: float = 0.0, v0: float | None = None) -> Any:
    """Matrix and covariance given the start; v0: variance of its velocity."""
    A, S, _ = constants(c)
    phi = expm(A * tau(c, t))
    if v0 is None:
        v0 = c.gamma / c.m_inv if c.cld_objective == "hsm" else 0.0
    return phi, S - phi @ S @ phi.T + phi @ np.diag([0.0, v0]) @ phi.T + jitter * np.eye(2)


def ell(cov: np.ndarray) -> float:
    return math.sqrt(cov[0, 0] / np.linalg.det(cov))


def model(u: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """A smooth network in float32, d wide for states 2d wide or for positions alone."""
    assert u.dtype == t.dtype == torch.float32
    width = u.shape[1] // 2 if u.shape[1] % 2 == 0 else u.shape[1]
    time = t.reshape(-1, *([1] * (u.dim() - 1)))
    return torch.sin(u[:, :width]) * 0.5 + torch.tanh(u[:, -width:]) * (1.0 + time)


def published_score(c: SimpleNamespace, u: torch.Tensor, t: float) -> torch.Tensor:
    """The network's output times a float32 `-ell`, and the mixed part in the state's precision."""
    scale = torch.tensor(-ell(kernel(c, t, c.numerical_eps)[1])).to(torch.float32)
    score = scale * model(u.to(torch.float32), torch.full((len(u),), t, dtype=torch.float32))
    if c.mixed_score:
        start = torch.tensor(c.gamma / c.m_inv, dtype=u.dtype).item()
        vv = torch.tensor(kernel(c, t, c.numerical_eps, start)[1][1, 1]).to(torch.float32)
        score = score - u.chunk(2, dim=1)[1] / vv
    return score


def apply(matrix: np.ndarray, u: torch.Tensor) -> torch.Tensor:
    x, v = u.chunk(2, dim=1)
    return torch.cat([float(row[0]) * x + float(row[1]) * v for row in matrix], dim=1)


def published_times(c: SimpleNamespace, eps: float) -> np.ndarray:
    s = np.linspace(1.0, 0.0, c.n_discrete_steps - c.denoising + 1)
    return eps + (1.0 - eps) * (s**2 if c.striding == "quadratic" else s)


def euler_mean(c: SimpleNamespace, u: torch.Tensor, t: float, h: float) -> torch.Tensor:
    A, _, f = constants(c)
    score = published_score(c, u, t).to(F64)
    pull = torch.cat([torch.zeros_like(score), 2.0 * f * score], dim=1)
    return u.to(F64) + h * beta(c, t) * (pull - apply(A, u.to(F64)))


def published_run(
    c: SimpleNamespace, u: torch.Tensor, noise: list[torch.Tensor], eps: float
) -> torch.Tensor:
    times = published_times(c, eps)
    draws = iter(noise)
    _, _, f = constants(c)
    for t, s in zip(times[:-1].tolist(), times[1:].tolist(), strict=True):
        h = t - s
        if c.sampling_method == "em":
            kick = math.sqrt(2.0 * f * beta(c, t) * h)
            u = euler_mean(c, u, t, h) + apply(np.diag([0.0, kick]), next(draws).to(F64))
            continue
        # Both half-steps take the integral of the first half.
        phi, cov = reversed_step(c, tau(c, t) - tau(c, t - h / 2))
        factor = np.linalg.cholesky(cov + c.sscs_num_stab * np.eye(2))
        u = apply(phi, u) + apply(factor, next(draws))
        x, v = u.chunk(2, dim=1)
        v = v + 2.0 * f * (published_score(c, u, t) + c.m_inv * v) * (beta(c, t) * h)
        u = torch.cat([x, v], dim=1)
        u = apply(phi, u) + apply(factor, next(draws))
    return euler_mean(c, u, eps, eps) if c.denoising else u


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("solver", ["em", "sscs"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"striding": "linear", "denoising": True},
        {"mixed_score": True, "beta": (4.0, 0.0), "m_inv": 4.0},
        {"cld_objective": "dsm", "denoising": True, "mixed_score": True},
    ],
    ids=str,
)
def test_published_states(changes: dict[str, Any], solver: str, dtype: torch.dtype) -> None:
    # The shortest half-step has an xx of 1e-8, which a difference of numbers near 1 knows to 8
    # digits; with 1e-4 added to it, to 12.
    c, eps = config(sampling_method=solver, sscs_num_stab=1e-4, **changes), 1e-2
    u = torch.randn(7, 6, dtype=dtype)
    draws = [torch.randn(7, 6, dtype=dtype) for _ in range(40)]
    steps = c.n_discrete_steps - c.denoising
    given = draws[: steps * (2 if solver == "sscs" else 1)]
    sampler = cld_sgm.get_sampling_fn(c, process(c), (7, 3), eps, mode="published")
    x, v, nfe = sampler(model, u, noise=given)
    wanted = published_run(c, u, draws, eps)
    promoted = solver == "em" or c.denoising
    assert x.dtype == v.dtype == (F64 if promoted else dtype) and nfe == 20
    bound = 1e-5 if dtype == torch.float32 else 1e-11
    torch.testing.assert_close(torch.cat([x, v], 1), wanted.to(x.dtype), rtol=bound, atol=bound)


def test_published_runs_follow_the_generator() -> None:
    c = config()
    sampler = cld_sgm.get_sampling_fn(c, process(c, mode="published"), (5, 3), 1e-2)
    torch.manual_seed(3)
    x, v, _ = sampler(model)
    torch.manual_seed(3)
    u = torch.cat([torch.randn(5, 3), torch.randn(5, 3) / 1.5], dim=1)
    again, _, _ = sampler(model, u, noise=[torch.randn(5, 6) for _ in range(40)])
    torch.testing.assert_close(again, x)


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("solver", ["em", "sscs"])
def test_exact_states_are_those_of_a_plan(solver: str, mixed: bool) -> None:
    c = config(sampling_method=solver, mixed_score=mixed, numerical_eps=0.0, sscs_num_stab=1.0)
    sampler = cld_sgm.get_sampling_fn(c, process(c), (5, 2, 3, 3), 1e-3)
    c.is_image = True
    sde = cldfast.CLD.from_mass(2.25, 0.05, cldfast.LinearBeta(1.0, 6.0))
    form = "mixed" if mixed else "noise"
    wanted = cldfast.sample(
        model,
        sde,
        (5, 2, 3, 3),
        solver,
        20,
        grid="quadratic",
        t_min=1e-3,
        parameterization=form,
        seed=11,
    )
    x, v, nfe = sampler(model, seed=11)
    assert v.shape == x.shape == (5, 2, 3, 3) and nfe == 20 and x.dtype == torch.float32
    # The same coefficients in another order of multiplication, over 20 steps in float32.
    torch.testing.assert_close(x, wanted, rtol=1e-4, atol=1e-4)


def test_exact_runs_use_every_digit_of_small_steps() -> None:
    """Where the published covariances are indefinite and the codebase gives up."""
    c = config(n_discrete_steps=4000, sscs_num_stab=0.0, numerical_eps=0.0)
    with pytest.raises(ValueError, match="numerical precision error"):
        cld_sgm.get_sampling_fn(c, process(c), (2, 3), 1e-5, mode="published")(model)
    x, _, _ = cld_sgm.get_sampling_fn(c, process(c), (2, 3), 1e-5)(model)
    assert torch.isfinite(x).all()


@pytest.mark.parametrize(("kind", "solver"), [("cld", "sscs"), ("vpsde", "em"), ("cld", "ode")])
def test_a_sample_depends_on_its_index_alone(kind: str, solver: str) -> None:
    c = config(sampling_method=solver, denoising=True, mixed_score=True)
    runs = [
        cld_sgm.get_sampling_fn(c, process(c, kind), (rows, 3), 1e-3)(model, seed=5)[0]
        for rows in (4, 9)
    ]
    assert runs[0].shape == (4, 3)
    # An adaptive solver chooses its steps for the batch.
    bound = 1e-3 if solver == "ode" else 1e-6
    torch.testing.assert_close(runs[1][:4], runs[0], rtol=bound, atol=bound)


@pytest.mark.parametrize("mode", ["exact", "published"])
@pytest.mark.parametrize("shape", [(6, 3), (6, 3, 1, 2)])
def test_variance_preserving_euler(mode: str, shape: tuple[int, ...]) -> None:
    c = config(sampling_method="em", denoising=True, is_image=len(shape) == 4)
    eps, steps = 1e-3, 19
    u = torch.randn(shape)
    # In exact mode a stage takes the packed layout: flat rows, padded to an even width.
    flat = [torch.randn(6, math.prod(shape[1:]) + math.prod(shape[1:]) % 2) for _ in range(steps)]
    draws = [z[:, : math.prod(shape[1:])].reshape(shape) for z in flat]
    sampler = cld_sgm.get_sampling_fn(c, process(c, "vpsde"), shape, eps, mode=mode)
    x, v, nfe = sampler(model_vp, u, noise=draws if mode == "published" else flat)
    wanted = u.to(F64)
    times = published_times(c, eps).tolist()
    for k, (t, s) in enumerate(zip(times, [*times[1:], 0.0], strict=True)):
        score = -model_vp(wanted.float(), torch.full((6,), t, dtype=torch.float32))
        score = score.double() / math.sqrt(1.0 - math.exp(-tau(c, t)))
        drift = beta(c, t) * (t - s) * (0.5 * wanted + score)
        wanted = wanted + drift
        if k < steps:
            wanted = wanted + math.sqrt(beta(c, t) * (t - s)) * draws[k].double()
    assert v is None and nfe == 20 and x.dtype == (torch.float32 if mode == "exact" else F64)
    torch.testing.assert_close(x.double(), wanted, rtol=1e-4, atol=1e-4)


def model_vp(u: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return torch.sin(u) * (1.0 + t.reshape(-1, *([1] * (u.dim() - 1))))


# --- the loss -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["exact", "published"])
@pytest.mark.parametrize("weighting", ["reweightedv1", "reweightedv2", "likelihood"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"cld_objective": "dsm"},
        {"mixed_score": True},
        {"cld_objective": "dsm", "mixed_score": True},
    ],
    ids=str,
)
def test_loss(changes: dict[str, Any], weighting: str, mode: str) -> None:
    c = config(weighting=weighting, **changes)
    rows, dims = 6, 3
    x, v0 = torch.randn(rows, dims), 0.1 * torch.randn(rows, dims)
    z = torch.randn(rows, 2 * dims)
    t = torch.linspace(0.03, 1.0, rows, dtype=F64)
    loss_fn = cld_sgm.get_loss_fn(process(c), True, c, mode=mode)
    got = loss_fn(model, x, t=t, noise=z, v0=v0 if c.cld_objective == "dsm" else None)
    _, _, f = constants(c)
    for i, s in enumerate(t.tolist()):
        # The kernel of the data has jitter in published mode; the network's scale always has.
        phi, cov = kernel(c, s, c.numerical_eps if mode == "published" else 0.0)
        scale = ell(kernel(c, s, c.numerical_eps)[1])
        start = torch.cat([x[i : i + 1], v0[i : i + 1] * (c.cld_objective == "dsm")], 1).double()
        u = apply(phi, start) + apply(np.linalg.cholesky(cov), z[i : i + 1].double())
        score = -scale * model(u.float(), torch.tensor([s], dtype=torch.float32)).double()
        if c.mixed_score:
            hybrid = kernel(c, s, c.numerical_eps, c.gamma / c.m_inv)[1][1, 1]
            score = score - u.chunk(2, dim=1)[1] / hybrid
        target = -ell(cov) * z[i : i + 1, dims:].double()
        weight = {
            "likelihood": beta(c, s) * f,
            "reweightedv1": beta(c, s) * f / ell(cov) ** 2,
            "reweightedv2": 1.0 / ell(cov) ** 2,
        }[weighting]
        wanted = weight * float((score - target).square().sum())
        # float32 residuals of order 1 before squaring, scaled.
        assert float(got[i]) == pytest.approx(wanted, rel=2e-5, abs=1e-5 * max(weight, 1.0))


@pytest.mark.parametrize("mode", ["exact", "published"])
def test_loss_of_the_variance_preserving_process(mode: str) -> None:
    c = config(weighting="reweightedv1", cld_objective=None)
    x, z = torch.randn(5, 3), torch.randn(5, 3)
    t = torch.linspace(0.02, 1.0, 5, dtype=F64)
    got = cld_sgm.get_loss_fn(process(c, "vpsde"), True, c, mode=mode)(model_vp, x, t=t, noise=z)
    for i, s in enumerate(t.tolist()):
        decay = math.exp(-0.5 * tau(c, s))
        u = decay * x[i : i + 1].double() + math.sqrt(1.0 - decay**2) * z[i : i + 1].double()
        output = model_vp(u.float(), torch.tensor([s], dtype=torch.float32)).double()
        wanted = 0.5 * beta(c, s) * float((output - z[i : i + 1]).square().sum())
        assert float(got[i]) == pytest.approx(wanted, rel=2e-5, abs=1e-5)


def test_loss_draws_and_gradients() -> None:
    c = config()
    net = torch.nn.Linear(5, 2)
    wrapped = Wrapped(net)
    loss_fn = cld_sgm.get_loss_fn(process(c), True, c)
    x = torch.randn(2000, 2)
    wrapped.eval()
    torch.manual_seed(1)
    loss = loss_fn(wrapped, x)
    assert wrapped.training and loss.shape == (2000,) and loss.requires_grad
    loss.mean().backward()
    assert net.weight.grad is not None and torch.isfinite(net.weight.grad).all()
    torch.manual_seed(1)
    assert torch.equal(loss_fn(wrapped, x), loss), "the generator governs times and noise"
    loss = loss.detach()
    with torch.no_grad():
        published = cld_sgm.get_loss_fn(process(c), False, c, mode="published")(wrapped, x)
    assert not wrapped.training
    # Two independent estimates of one expectation; 5 standard errors.
    error = float((loss.var() / 2000 + published.var() / 2000).sqrt())
    assert abs(float(loss.mean() - published.mean())) < 5.0 * error


class Wrapped(torch.nn.Module):
    def __init__(self, net: torch.nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, u: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.net(torch.cat([u, t.reshape(-1, 1)], dim=1))


# --- the probability flow -------------------------------------------------------------------------


def gaussian_model(c: SimpleNamespace, variance: float) -> Callable[..., torch.Tensor]:
    """The exact velocity score of N(0, variance) data in the codebase's noise form."""

    def net(u: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        s = float(t.flatten()[0])
        phi, cov = kernel(c, s)
        total = cov + variance * np.outer(phi[:, 0], phi[:, 0])
        row = -np.linalg.inv(total)[1] / -ell(kernel(c, s, c.numerical_eps)[1])
        x, v = u.chunk(2, dim=1)
        return float(row[0]) * x + float(row[1]) * v

    return net


@pytest.mark.parametrize("mode", ["exact", "published"])
def test_ode_on_gaussian_data(mode: str) -> None:
    pytest.importorskip("torchdiffeq")
    c = config(sampling_method="ode", beta=(4.0, 3.0), numerical_eps=1e-7)
    eps, variance = 1e-2, 0.3
    # The flow carries covariances: u_T = R u_eps with S_T = R S_eps R^T. Its matrix by small steps.
    A, _, f = constants(c)
    flow, times = np.eye(2), np.linspace(1.0, eps, 4001)
    for t, s in zip(times[:-1], times[1:], strict=True):
        middle = 0.5 * (t + s)
        phi, cov = kernel(c, middle)
        total = cov + variance * np.outer(phi[:, 0], phi[:, 0])
        drift = beta(c, middle) * (A + np.diag([0.0, f]) @ np.linalg.inv(total))
        flow = expm(drift * (s - t)) @ flow
    u = torch.randn(4, 6)
    net = gaussian_model(c, variance)
    x, v, nfe = cld_sgm.get_sampling_fn(c, process(c), (4, 3), eps, mode=mode)(net, u)
    torch.testing.assert_close(torch.cat([x, v], 1), apply(flow, u), rtol=1e-3, atol=1e-3)
    assert nfe > 20


@pytest.mark.parametrize("mode", ["exact", "published"])
def test_an_adaptive_solver_asks_nothing_past_the_last_time(mode: str) -> None:
    pytest.importorskip("torchdiffeq")
    c, asked = config(sampling_method="ode"), []

    def net(u: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        asked.append(float(t[0]))
        return model_vp(u, t)

    x, _, nfe = cld_sgm.get_sampling_fn(c, process(c, "vpsde"), (4, 3), 1e-3, mode=mode)(net)
    # Times of single precision.
    assert torch.isfinite(x).all() and len(asked) == nfe and min(asked) > 0.999e-3


@pytest.mark.parametrize("law", ["gaussian", "rademacher"])
@pytest.mark.parametrize("mode", ["exact", "published"])
def test_likelihood_on_gaussian_data(mode: str, law: str) -> None:
    pytest.importorskip("torchdiffeq")
    c = config(likelihood_hutchinson_type=law, beta=(6.0, 6.0), numerical_eps=1e-7)
    variance, dims, rows = 0.3, 3, 400
    phi, cov = kernel(c, c.likelihood_eps)
    total = cov + variance * np.outer(phi[:, 0], phi[:, 0])
    factor = np.linalg.cholesky(total)
    u = apply(factor, torch.randn(rows, 2 * dims))
    nll, last, _ = cld_sgm.get_likelihood_fn(c, process(c), mode=mode)(
        gaussian_model(c, variance), u
    )
    x, v = u.double().chunk(2, dim=1)
    precision = np.linalg.inv(total)
    energy = precision[0, 0] * x * x + 2 * precision[0, 1] * x * v + precision[1, 1] * v * v
    wanted = 0.5 * energy.sum(1) + dims * (
        math.log(2.0 * math.pi) + 0.5 * math.log(np.linalg.det(total))
    )
    error = (nll - wanted).double()
    # The probe's estimate has no bias; the solver's tolerance is far below.
    assert abs(float(error.mean())) < 5.0 * float(error.std()) / math.sqrt(rows) + 1e-3
    assert last.shape == u.shape and float(last.std()) == pytest.approx(0.86, abs=0.1)


def test_likelihood_of_the_variance_preserving_process() -> None:
    pytest.importorskip("torchdiffeq")
    c = config(beta=(4.0, 8.0))
    variance = 0.3

    def net(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        decay = math.exp(-tau(c, float(t[0])))
        return x * math.sqrt(1.0 - decay) / (1.0 - decay + variance * decay)

    decay = math.exp(-tau(c, c.likelihood_eps))
    spread = 1.0 - decay + variance * decay
    x = torch.randn(6, 3) * math.sqrt(spread)
    nll, last, _ = cld_sgm.get_likelihood_fn(c, process(c, "vpsde"))(net, x)
    # The probe of a diagonal Jacobian by signs is exact, for the odd width too.
    wanted = 0.5 * (x.square().sum(1) / spread + 3 * math.log(2.0 * math.pi * spread))
    torch.testing.assert_close(nll, wanted.double(), rtol=1e-3, atol=1e-3)
    assert last.shape == (6, 3)


# --- the processes --------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["exact", "published"])
@pytest.mark.parametrize("objective", ["hsm", "dsm"])
def test_process_moments(mode: str, objective: str) -> None:
    c = config(cld_objective=objective)
    sde = process(c, mode=mode)
    t = torch.tensor([0.05, 0.4, 1.0], dtype=F64)
    u = torch.randn(3, 4, dtype=F64)
    mean, var = sde.mean_and_var(u, t)
    wide = sde.var(t, 0.2 * torch.ones(3, 1, dtype=F64), 0.7 * torch.ones(3, 1, dtype=F64))
    for i, s in enumerate(t.tolist()):
        phi, cov = kernel(c, s, c.numerical_eps)
        torch.testing.assert_close(mean[i : i + 1], apply(phi, u[i : i + 1]))
        entries = [float(entry[i]) for entry in var]
        np.testing.assert_allclose(entries, [cov[0, 0], cov[0, 1], cov[1, 1]], rtol=1e-9)
        assert float(sde.noise_multiplier(t)[i]) == pytest.approx(-ell(cov), rel=1e-8)
        started = kernel(c, s, c.numerical_eps, 0.7)[1] + 0.2 * np.outer(phi[:, 0], phi[:, 0])
        entries = [float(entry[i]) for entry in wide]
        np.testing.assert_allclose(
            entries, [started[0, 0], started[0, 1], started[1, 1]], rtol=1e-9
        )


def test_perturbed_data_have_the_kernels_law() -> None:
    c = config(numerical_eps=1e-2)
    rows, s = 200_000, 0.2
    for mode in ("exact", "published"):
        sde = process(c, mode=mode)
        t = torch.full((rows,), s, dtype=F64)
        u, mean, noise, z = sde.perturb_data(torch.ones(rows, 2), t)
        assert u.dtype == (torch.float32 if mode == "exact" else F64)
        torch.testing.assert_close(u, mean + noise)
        phi, cov = kernel(c, s, c.numerical_eps if mode == "published" else 0.0)
        torch.testing.assert_close(
            u.double(),
            apply(phi, torch.ones(rows, 2).double()) + apply(np.linalg.cholesky(cov), z.double()),
            rtol=1e-5,
            atol=1e-5,
        )


def test_prior() -> None:
    c = config()
    sde = process(c)
    x, v = sde.prior_sampling((50_000, 2))
    # 5 standard errors of a variance from 1e5 values: 5 sqrt(2/1e5).
    assert float(x.var()) == pytest.approx(1.0, rel=0.023)
    assert float(v.var()) == pytest.approx(1.0 / 2.25, rel=0.023)
    u = torch.randn(3, 4)
    normal = torch.distributions.Normal
    logs = (
        normal(0.0, 1.0).log_prob(u[:, :2]).sum(1),
        normal(0.0, 1 / 1.5).log_prob(u[:, 2:]).sum(1),
    )
    for got, wanted in zip(sde.prior_logp(u), logs, strict=True):
        torch.testing.assert_close(got, wanted)
    other = process(c, "vpsde")
    torch.testing.assert_close(other.prior_logp(u)[0], normal(0.0, 1.0).log_prob(u).sum(1))
    assert other.prior_sampling((3, 2))[1] is None and other.prior_logp(u)[1] is None


@pytest.mark.parametrize("kind", ["cld", "vpsde"])
@pytest.mark.parametrize("mode", ["exact", "published"])
def test_discrete_steps(kind: str, mode: str) -> None:
    c = config()
    sde = process(c, kind, mode)
    u, s, h = torch.randn(4, 4), 0.7, 0.01
    score = torch.randn(4, 2 if kind == "cld" else 4)
    after, mean = sde.get_discrete_step_fn("reverse", lambda u, t: score)(u, 1.0 - s, h)
    rate = beta(c, s)
    if kind == "cld":
        A, _, f = constants(c)
        drift = apply(-A, u) + torch.cat([torch.zeros_like(score), 2.0 * f * score], 1)
        assert torch.equal(after[:, :2], mean[:, :2])
    else:
        drift = 0.5 * u + score
    torch.testing.assert_close(mean.float(), u + h * rate * drift, rtol=1e-5, atol=1e-6)
    assert mean.dtype == (torch.float32 if mode == "exact" else F64)
    forward, forward_mean = sde.get_discrete_step_fn("forward")(u, s, h)
    assert not torch.equal(forward, forward_mean)
    flow, still = sde.get_reverse_sde(lambda u, t: score, probability_flow=True)(
        u, torch.full((4,), 1.0 - s, dtype=F64)
    )
    assert torch.all(still == 0.0) and flow.shape == u.shape


def test_published_forms_are_the_exponential() -> None:
    c = config()
    b = torch.tensor([0.1, 1.0, 4.0], dtype=F64)
    reverse = naive(process(c).process, b, reverse=True)
    for i, value in enumerate(b.tolist()):
        phi, cov = reversed_step(c, value)
        np.testing.assert_allclose(reverse.phi[i].numpy(), phi, rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(reverse.cov[i].numpy(), cov, rtol=1e-10)


# --- installing -------------------------------------------------------------------------------------


def original(*args: Any) -> str:
    return "theirs"


def fake(name: str, *names: str) -> ModuleType:
    module = ModuleType(name)
    for attribute in names:
        function = type(original)(original.__code__, {}, attribute)
        function.__module__ = name
        setattr(module, attribute, function)
    return module


@pytest.fixture
def codebase(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, ModuleType]]:
    """Modules with the names of the codebase's, one that imports from them, and a stranger."""
    modules = {
        "sampling": fake("sampling", "get_sampling_fn", "get_em_sampler", "get_sscs_sampler", "get_ode_sampler"),
        "losses": fake("losses", "get_loss_fn", "get_step_fn"),
        "likelihood": fake("likelihood", "get_likelihood_fn", "get_ode_likelihood_fn"),
        "sde_lib": fake("sde_lib", "CLD", "VPSDE"),
        "util.checkpoint": fake("util.checkpoint", "restore_checkpoint", "save_checkpoint"),
        "run_lib": ModuleType("run_lib"),
        "stranger.sampling": fake("stranger.sampling", "get_sampling_fn"),
    }  # fmt: skip
    modules["run_lib"].make_sampler = modules["sampling"].get_sampling_fn  # type: ignore[attr-defined]
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    yield modules
    cld_sgm.uninstall()


def test_install_and_uninstall(codebase: dict[str, ModuleType]) -> None:
    before = {name: dict(vars(module)) for name, module in codebase.items()}
    names = cld_sgm.install()
    assert "run_lib.make_sampler" in names and "losses.get_loss_fn" in names and len(names) == 11
    assert codebase["losses"].get_step_fn() == "theirs"  # type: ignore[attr-defined]
    assert codebase["stranger.sampling"].get_sampling_fn() == "theirs"  # type: ignore[attr-defined]
    sde_lib, c = codebase["sde_lib"], config()
    made = sde_lib.CLD(c, lambda t: 4.0 + 0.0 * t, lambda t: 4.0 * t)  # type: ignore[attr-defined]
    assert isinstance(made, cld_sgm.CLD) and made.mode == "exact" and made.type == "cld"
    x, _, _ = codebase["run_lib"].make_sampler(c, made, (3, 2), 1e-3)(model)  # type: ignore[attr-defined]
    assert x.shape == (3, 2)
    cld_sgm.install("published")
    made = sde_lib.CLD(c, lambda t: 4.0 + 0.0 * t, lambda t: 4.0 * t)  # type: ignore[attr-defined]
    assert made.mode == "published"
    cld_sgm.uninstall()
    assert {name: dict(vars(module)) for name, module in codebase.items()} == before


def test_samplers_read_their_options_at_each_call() -> None:
    c, asked = config(sampling_method="em"), []

    def net(u: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        asked.append(float(t[0]))
        return model(u, t)

    sampler = cld_sgm.get_sampling_fn(c, process(c), (3, 2), 1e-3)
    assert sampler(net)[2] == len(asked) == 20
    c.n_discrete_steps, c.striding = 4, "linear"
    asked.clear()
    assert sampler(net)[2] == len(asked) == 4
    assert asked == pytest.approx([1.0, 0.75025, 0.5005, 0.25075])


def test_what_others_change_meanwhile_stays(codebase: dict[str, ModuleType]) -> None:
    with cld_sgm.installed() as names:
        assert "sampling.get_em_sampler" in names
        codebase["losses"].get_loss_fn = original  # type: ignore[attr-defined]
    assert codebase["losses"].get_loss_fn is original  # type: ignore[attr-defined]
    assert codebase["sampling"].get_em_sampler() == "theirs"  # type: ignore[attr-defined]


def test_nothing_to_install_under() -> None:
    with pytest.raises(RuntimeError, match="none of CLD-SGM's modules .* is imported"):
        cld_sgm.install()
    with pytest.raises(ValueError, match="mode must be one of exact, published"):
        cld_sgm.install("fast")


# --- checkpoints ------------------------------------------------------------------------------------


class Ema:
    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.state = state


def test_checkpoints(tmp_path: Any) -> None:
    net = torch.nn.Linear(2, 2)
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    # A warm-up of the codebase leaves a numpy number here.
    optimizer.param_groups[0]["lr"] = 1e-3 * np.minimum(np.float64(0.5), 1.0)
    path = tmp_path / "checkpoint.pth"
    saved = {"optimizer": optimizer.state_dict(), "model": net.state_dict(), "step": 3}
    torch.save(saved | {"ema": {"decay": 0.9, "shadow_params": [torch.ones(2)]}}, path)
    other = torch.nn.Linear(2, 2)
    state = {
        "model": other,
        "optimizer": torch.optim.Adam(other.parameters()),
        "ema": Ema(),
        "step": 0,
    }
    cld_sgm.restore_checkpoint(str(path), state, "cpu")
    assert state["step"] == 3 and torch.equal(other.weight, net.weight)
    assert state["optimizer"].param_groups[0]["lr"] == 5e-4  # type: ignore[attr-defined]
    assert torch.equal(state["ema"].state["shadow_params"][0], torch.ones(2))  # type: ignore[attr-defined]
    with pytest.warns(UserWarning, match="no checkpoint at") as caught:
        assert cld_sgm.restore_checkpoint(str(tmp_path / "none"), state, "cpu") is state
    assert caught[0].filename == __file__


class Hostile:
    def __reduce__(self) -> Any:
        return print, ("run from a checkpoint",)


def test_checkpoints_run_nothing(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"model": Hostile()}, tmp_path / "hostile.pth")
    with pytest.raises(Exception, match="weights_only|Weights only"):
        cld_sgm.load_checkpoint(tmp_path / "hostile.pth")
    assert capsys.readouterr().out == ""


# --- bad input --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampling_method": "heun"}, "sampling_method must be one of em, sscs, ode, got 'heun'"),
        ({"striding": "cubic"}, "striding must be one of linear, quadratic, got 'cubic'"),
        ({"n_discrete_steps": 1, "denoising": True}, "steps must be at least 1, got 0"),
    ],
)
def test_bad_options(changes: dict[str, Any], message: str) -> None:
    c = config(**changes)
    with pytest.raises(ValueError, match=message):
        cld_sgm.get_sampling_fn(c, process(c), (3, 2), 1e-3)(model)


def test_bad_arguments() -> None:
    c = config()
    with pytest.raises(
        ValueError,
        match="sde must be one of CLD-SGM's, of type cld or vpsde, got 'SimpleNamespace'",
    ):
        cld_sgm.get_sampling_fn(c, SimpleNamespace(), (3, 2), 1e-3)
    with pytest.raises(ValueError, match="mode must be one of exact, published"):
        cld_sgm.get_sampling_fn(c, process(c), (3, 2), 1e-3, mode="fast")
    with pytest.raises(ValueError, match="sscs sampler is for CLD only"):
        cld_sgm.get_sampling_fn(c, process(c, "vpsde"), (3, 2), 1e-3)(model)
    with pytest.raises(ValueError, match="weighting must be one of"):
        cld_sgm.get_loss_fn(process(c), True, config(weighting="none"))
    with pytest.raises(ValueError, match="cld_objective must be one of hsm, dsm, got 'ism'"):
        cld_sgm.get_loss_fn(process(c), True, config(cld_objective="ism"))
    with pytest.raises(ValueError, match="v0 is for the objective dsm"):
        cld_sgm.get_loss_fn(process(c), True, c)(model, torch.ones(1, 2), v0=torch.ones(1, 2))
    with pytest.raises(ValueError, match="mode must be one of forward, reverse"):
        process(c).get_discrete_step_fn("sideways")
    with pytest.raises(ValueError, match="needs score_fn"):
        process(c).get_reverse_sde()(torch.ones(1, 2), torch.zeros(1, dtype=F64))
    with pytest.raises(ValueError, match="likelihood_hutchinson_type must be one of"):
        c.likelihood_hutchinson_type = "sphere"
        cld_sgm.get_likelihood_fn(c, process(c))(model, torch.ones(1, 2))
    with pytest.raises(ValueError, match="noise must hold one entry per stage"):
        cld_sgm.get_sampling_fn(c, process(c), (3, 2), 1e-3)(model, noise=[torch.ones(3, 4)])
