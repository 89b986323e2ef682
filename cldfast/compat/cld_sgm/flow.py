"""The probability flow: the codebase's ODE sampler and its likelihood, by way of torchdiffeq."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from cldfast import kernels
from cldfast.compat.cld_sgm.calls import (
    Samples,
    exact_prior,
    network,
    published_prior,
    split,
    state_shape,
)
from cldfast.compat.cld_sgm.interface import PublishedInterface
from cldfast.compat.cld_sgm.plans import denoising_plan
from cldfast.compat.cld_sgm.sde import as_served
from cldfast.network import draw_seed
from cldfast.sampling.run import run

Tensor = torch.Tensor
HUTCHINSON = ("gaussian", "rademacher")


def flow_weights(sde: PublishedInterface, s: Tensor) -> Tensor:
    """The flow `du/ds = beta (A u - D score / 2)` as weights (1, 2, 4 + r) on (u, output, z).

    s: forward time, one element, float64.
    """
    gain, shift = sde.gain_and_shift(s.reshape(1))
    beta = sde.process.beta(s.reshape(1))[:, None, None]
    A, D, rows = (
        torch.from_numpy(np.array(m)).to(s.device)
        for m in (sde.process.A, np.diag(sde.process.D), sde.rows)
    )
    P = beta * (A - 0.5 * D @ (shift * rows @ rows.T))
    E = beta * (-0.5 * D @ (gain * rows))
    return torch.cat([P, E, torch.zeros_like(P)], dim=2)


def _apply(u: Tensor, output: Tensor, weights: Tensor) -> Tensor:
    """The noise-free stage; off the CPU each row has the weights, which saves a synchronisation."""
    if u.device.type != "cpu":
        weights = weights.expand(u.shape[0], -1, -1).contiguous()
    return kernels.stage(u, (output,), (), weights)[0]


def get_ode_sampler(
    config: Any, sde: Any, sampling_shape: Sequence[int], eps: float, *, mode: str | None = None
) -> Callable[..., Samples]:
    """Probability flow with `config.sampling_solver` of torchdiffeq and the config's tolerances.

    Arguments as in `get_sampling_fn`. Returns `sampler(model, u=None, *, seed=None) -> x, v, nfe`;
    u, seed: see `get_sscs_sampler`. nfe counts network calls.
    """
    served = as_served(sde, mode)
    shape = tuple(sampling_shape)
    states = state_shape(served, shape)

    @torch.no_grad()
    def ode_sampler(model: Any, u: Tensor | None = None, *, seed: int | None = None) -> Samples:
        if isinstance(model, torch.nn.Module):
            model.eval()
        if u is None and served.mode == "exact":
            u = exact_prior(served, shape, config.device, draw_seed() if seed is None else seed)
        elif u is None:
            u = published_prior(served, shape)
        net = network(served, model, states)
        calls = 0

        def rate(t: Tensor, flat: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            s = 1.0 - t.to(torch.float64)
            state = flat if served.mode == "exact" else flat.to(torch.float64)
            output = net(state, s.expand(state.shape[0]))
            assert isinstance(output, Tensor)
            return _apply(state, output, -flow_weights(served, s))

        times = torch.tensor([0.0, 1.0 - eps], dtype=torch.float64, device=u.device)
        state = _solve(config, "sampling", rate, served.pack(u), times)[-1]
        if config.denoising:
            if served.mode == "published":
                # Drawn and not used, so that the generator is where the codebase leaves it.
                served.euler_normals(served.unpack(state, states))
                state = state.to(torch.float64)
            state = run(denoising_plan(served, eps, served.output_map), net, state)
            calls += 1
        return split(served, served.unpack(state, states), calls)

    return ode_sampler


def get_likelihood_fn(
    config: Any, sde: Any, *, mode: str | None = None
) -> Callable[[Any, Tensor], tuple[Tensor, Tensor, int]]:
    """Negative log-likelihood of states by the probability flow, with Hutchinson's divergence.

    config.likelihood_eps is the first time; solver, tolerances and the law of the probe are the
    config's. mode: as in `get_sampling_fn`; "exact" takes the divergence of the linear part as it
    is and probes the network's alone, "published" probes both.

    Returns `likelihood_fn(model, data) -> nll, u_T, nfe`; data: states (B, 2d) or (B, 2C, H, W), or
    positions for VPSDE. nll: (B,), in nats, of the state. The network is called once per evaluation
    of the flow (the codebase calls it twice).
    Raises ValueError for an unknown law of the probe.
    """
    served = as_served(sde, mode)

    @torch.no_grad()
    def likelihood_fn(model: Any, data: Tensor) -> tuple[Tensor, Tensor, int]:
        if isinstance(model, torch.nn.Module):
            model.eval()
        net = network(served, model, data.shape)
        probe = served.pack(_probe(config.likelihood_hutchinson_type, data))
        sums = _traces(probe, data.shape, served)
        calls = 0

        def rate(t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            nonlocal calls
            calls += 1
            s = t.to(torch.float64)
            weights = flow_weights(served, s)
            with torch.enable_grad():
                u = state[0].detach().requires_grad_()
                output = net(u, s.expand(u.shape[0]))
                assert isinstance(output, Tensor)
                # E maps one plane of output to its row of the state by one number.
                own = probe.chunk(2, dim=1)[1] if served.is_augmented else probe
                gain = weights[0, 1, -3]
                (pulled,) = torch.autograd.grad(output, u, (gain * own).to(output.dtype))
            P = weights[0, :, :2]
            divergence = (pulled * probe).flatten(1).sum(1)
            divergence = divergence + P[0, 0] * sums[0] + P[1, 1] * sums[2]
            divergence = divergence + (P[0, 1] + P[1, 0]) * sums[1]
            return _apply(u.detach(), output.detach(), weights), divergence

        start = (served.pack(data), torch.zeros(data.shape[0], device=data.device).double())
        times = torch.tensor([config.likelihood_eps, 1.0], dtype=torch.float64, device=data.device)
        states, changes = _solve(config, "likelihood", rate, start, times)
        last = served.unpack(states[-1], data.shape)
        log_x, log_v = served.prior_logp(last)
        log_prior = log_x if log_v is None else log_x + log_v
        return -(log_prior + changes[-1]), last, calls

    return likelihood_fn


def _probe(law: str, data: Tensor) -> Tensor:
    if law == "gaussian":
        return torch.randn_like(data)
    if law == "rademacher":
        return torch.randint_like(data, low=0, high=2) * 2.0 - 1.0
    raise ValueError(
        f"likelihood_hutchinson_type must be one of {', '.join(HUTCHINSON)}, got {law!r}"
    )


def _traces(
    probe: Tensor, shape: Sequence[int], sde: PublishedInterface
) -> tuple[Tensor, Tensor, Tensor]:
    """`e_x e_x`, `e_x e_v` and `e_v e_v` summed over coordinates, (B,): of the probe, or exact."""
    e_x, e_v = (half.flatten(1).double() for half in probe.chunk(2, dim=1))
    if sde.mode == "published":
        return (e_x * e_x).sum(1), (e_x * e_v).sum(1), (e_v * e_v).sum(1)
    # What is left of an odd number of packed coordinates is zero in the probe, and counts nothing.
    real = sde.pack(torch.ones(1, *shape[1:], device=probe.device, dtype=torch.float64))
    n_x, n_v = (half.sum().expand(probe.shape[0]) for half in real.chunk(2, dim=1))
    return n_x, torch.zeros_like(n_x), n_v


def _solve(config: Any, kind: str, rate: Callable[..., Any], start: Any, times: Tensor) -> Any:
    try:
        from torchdiffeq import odeint
    except ImportError as error:
        raise ImportError(
            "the probability flow needs torchdiffeq: pip install torchdiffeq, "
            "or pip install 'cldfast[ode]'"
        ) from error
    return odeint(
        rate, start, times,
        rtol=getattr(config, f"{kind}_rtol"), atol=getattr(config, f"{kind}_atol"),
        method=getattr(config, f"{kind}_solver"),
        options=getattr(config, f"{kind}_solver_options"),
    )  # fmt: skip
