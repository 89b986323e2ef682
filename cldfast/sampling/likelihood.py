"""Bounds on the log-likelihood of data through the probability flow.

The flow has the density of its state, `log p_t(u)`, as one more ODE: along a path from t to T,

    log p_t(u_t) = log p_T(u_T) + int_t^T div f(u, s) ds.

Data come without a velocity and the flow ends at t > 0, so a kernel closes the gap: with u drawn
from `N(m x0, Sigma)` and r(x0 | u) any density,

    log p(x0) >= E [log p_t(u) + log r(x0 | u) - log N(u; m x0, Sigma)].

In the volume-preserving coordinates y = m^T Sigma^-1 u / snr and w = m_x v - m_v x the kernel is
`N(y; x0, 1/snr) N(w; 0, kappa)`; taking `r = N(x0; y, 1/snr)` leaves, per draw,

    log p(x0) >= E [log p_t(u) - log N(w; 0, kappa)],       kappa = q^T Sigma q, q = (-m_v, m_x).

At t = 0 that is the bound `E log p(x0, v0) + H(v0)` of Dockhorn, Vahdat, Kreis (2022), appendix
B.6. For an exact score w is independent of the rest and cancels draw by draw: little noise is left,
and the bound falls short by what blurring the data with variance 1/snr does.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from cldfast import kernels
from cldfast.conditions import Conditions, conditioned
from cldfast.kernels import NoiseAddress, Stream
from cldfast.network import Network
from cldfast.planner.parameterization import Parameterization, score_map, x0_map
from cldfast.process.sde import LinearPhaseSDE
from cldfast.sampling.probability_flow import Flow, check_t_min, combine, solve
from cldfast.sampling.steps import look
from cldfast.training.losses import perturb

PROBES = ("rademacher", "gaussian", "exact")


@dataclass(frozen=True)
class Likelihood:
    """nll: (B,) upper bounds of `-log p(x0)` in nats, estimates of them unless the trace is exact.

    evaluations: network calls, for all draws. draws: of the kernel (and probe) that were averaged.
    dim: coordinates of a row.
    """

    nll: torch.Tensor
    evaluations: int
    draws: int
    dim: int

    def bits_per_dim(self, levels: int = 256, width: float = 2.0) -> torch.Tensor:
        """(B,) bits per dimension of data with `levels` values spread over `width`, dequantised.

        The default is 8-bit images scaled to [-1, 1]; levels = width = 1 is plain continuous data.
        """
        return self.nll / (self.dim * math.log(2.0)) + math.log2(levels / width)


def likelihood(
    net: Network,
    sde: LinearPhaseSDE,
    x0: torch.Tensor,
    *,
    parameterization: Parameterization | None = None,
    t_min: float = 1e-3,
    probe: str = "rademacher",
    draws: int = 1,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    method: str = "dopri5",
    conditions: Conditions | None = None,
    seed: int | None = None,
    first_index: int = 0,
    generator: torch.Generator | None = None,
    **options: Any,
) -> Likelihood:
    """Upper bounds on the negative log-likelihood of rows x0, (B, d) or (B, C, H, W).

    net, sde, parameterization: as for `cldfast.sample`; the network must be differentiable in u.
    t_min: where the flow ends. draws: of the kernel at t_min, averaged.
    probe: Hutchinson's estimator of the divergence with "rademacher" or "gaussian" probes, one per
        row and draw, kept along the path; "exact" takes d vector-Jacobian products (2d for full
        scores) per evaluation instead.
    conditions: further arguments of the network by name, see `cldfast.run`.
    rtol, atol, method, options: see `cldfast.pflow`. seed, first_index: row i draws by
        (seed, first_index + i) alone; None draws a seed from `generator`, see `cldfast.sample`.

    Sources: Song et al. (2021), appendix D.2; Hutchinson (1990); Grathwohl et al. (2019) for the
        fixed probe.
    Raises ImportError without torchdiffeq; ValueError for an unknown probe, `draws < 1`, or t_min
        outside (0, T).
    """
    check_t_min(sde, t_min)
    if probe not in PROBES:
        raise ValueError(f"unknown probe {probe!r}; expected one of {', '.join(PROBES)}")
    if isinstance(draws, bool) or not isinstance(draws, int) or draws < 1:
        raise ValueError(f"draws must be an integer >= 1, got {draws!r}")
    flow = Flow(conditioned(net, conditions), sde, parameterization)
    address = kernels.noise_address(seed, first_index, generator)
    seed, first_index = address.seed, address.first_index
    # Each draw has a key of its own; the first is the caller's.
    total = torch.zeros(len(x0), dtype=torch.float64, device=x0.device)
    for draw in range(draws):
        key = (seed + draw) % 2**64
        t = torch.full((len(x0),), t_min, dtype=torch.float64, device=x0.device)
        u, _ = perturb(sde, x0, t, seed=key, first_index=first_index)
        divergence = _divergence(flow, probe, key, first_index)
        start = (u, torch.zeros(len(u), dtype=u.dtype, device=u.device))
        end, growth = solve(
            divergence, start, (t_min, sde.T), rtol=rtol, atol=atol, method=method, **options
        )
        total += _log_prior(sde, end) + growth.double() - _log_complement(sde, t_min, u)
    dim = math.prod(x0.shape[1:])
    return Likelihood(-total / draws, flow.evaluations, draws, dim)


def _probes(
    u: torch.Tensor, planes: int, probe: str, seed: int, first_index: int
) -> list[torch.Tensor]:
    """Probes of `planes` planes per coordinate, from addressed noise; all unit vectors: "exact"."""
    channels = planes * u.shape[1] // 2
    if probe == "exact":
        flat = torch.eye(channels * math.prod(u.shape[2:]), dtype=u.dtype, device=u.device)
        return [e.reshape(1, channels, *u.shape[2:]).expand(len(u), -1, *u.shape[2:]) for e in flat]
    address = NoiseAddress(seed, first_index, stream=Stream.PROBE)
    normals = kernels.normals(
        (len(u), u.shape[1] // 2, *u.shape[2:]), address, dtype=u.dtype, device=u.device
    )
    normals = normals[:, :channels]
    if probe == "gaussian":
        return [normals]
    return [torch.where(normals < 0.0, -1.0, 1.0).to(u.dtype)]


@dataclass(frozen=True)
class _Trace:
    """`div f = coordinates * known + E sum e^T (J_o^T left e) . (right e) + e^T rest e`.

    The divergence of `f = P u + E o` at one time with the exact linear part of an ideal network's
    Jacobian taken out: what is left to the probes is the Jacobian of x0, which is small where that
    of the score is huge. left (r, q), right (2, q), rest (q, q) act on the q planes of a probe.
    """

    known: float
    left: np.ndarray
    right: np.ndarray
    rest: np.ndarray


def _trace(flow: Flow, t: float) -> _Trace:
    at = np.array([t])
    state, gain = flow.blocks(t)
    to_score = score_map(flow.sde, at, flow.parameterization)
    if to_score.planes == 1:
        # f = (P - k c_u) u + k x0 with x0 = c_o o + c_u u: probes of one plane, moved along k.
        to_x0 = x0_map(flow.sde, at, flow.parameterization)
        c_o, c_u = float(to_x0.from_output[0, 0, 0]), to_x0.from_state[0]
        k = gain / c_o
        return _Trace(float(np.trace(state - k @ c_u)), np.array([[c_o]]), k, c_u @ k)
    # The trace of -beta D (J_s + Sigma^-1)/2, similar to one in the coordinates of unit noise.
    kernel = flow.sde.marginal(t)
    half = -0.5 * float(flow.sde.beta(t)) * np.diag(flow.sde.D)
    factor, precision = kernel.factor, kernel.precision
    pull = half @ np.linalg.inv(factor).T
    known = float(flow.sde.beta(t)) * np.trace(flow.sde.A) - np.trace(half @ precision)
    rest = pull.T @ (to_score.from_state[0] + precision) @ factor
    return _Trace(float(known), to_score.from_output[0].T @ pull, factor, rest)


def _divergence(
    flow: Flow, probe: str, seed: int, first_index: int
) -> Callable[[torch.Tensor, tuple[torch.Tensor, torch.Tensor]], tuple[torch.Tensor, ...]]:
    """The flow and its divergence (B,), with the same probes at every time."""
    probes: list[torch.Tensor] = []

    def rate(
        t: torch.Tensor, states: tuple[torch.Tensor, torch.Tensor]
    ) -> tuple[torch.Tensor, ...]:
        u = states[0].detach()
        trace = _trace(flow, float(t))
        if not probes:
            probes.extend(_probes(u, trace.rest.shape[0], probe, seed, first_index))
        with torch.enable_grad():
            u.requires_grad_(True)
            o = flow.output(t, u)
        divergence = u.new_full((len(u),), u[0].numel() // 2 * trace.known)
        for e in probes:
            vector = look(trace.left, e, o.dtype)
            (back,) = torch.autograd.grad(o, u, vector, retain_graph=e is not probes[-1])
            terms = (back * look(trace.right, e, u.dtype)).flatten(1).sum(1)
            divergence = divergence + terms + (e * look(trace.rest, e, u.dtype)).flatten(1).sum(1)
        state, gain = flow.blocks(float(t))
        return combine(state, gain, u.detach(), o.detach()), divergence

    return rate


def _log_prior(sde: LinearPhaseSDE, u: torch.Tensor) -> torch.Tensor:
    """Log density (B,) of the stationary law."""
    prior = sde.prior()
    x, v = u.double().chunk(2, dim=1)
    (p, q), (_, r) = prior.precision.tolist()
    square = (p * x * x + 2.0 * q * x * v + r * v * v).flatten(1)
    constant = math.log(2.0 * math.pi) + 0.5 * math.log(float(prior.det))
    return -0.5 * square.sum(1) - constant * square.shape[1]


def _log_complement(sde: LinearPhaseSDE, t: float, u: torch.Tensor) -> torch.Tensor:
    """`log N(w; 0, kappa)` summed over coordinates, (B,)."""
    kernel = sde.marginal(t)
    m_x, m_v = (float(entry) for entry in kernel.mean)
    kappa = float(kernel.signal)  # `m^T adj(Sigma) m`, the same number
    x, v = u.double().chunk(2, dim=1)
    w = (m_x * v - m_v * x).flatten(1)
    return -0.5 * (w * w).sum(1) / kappa - 0.5 * math.log(2.0 * math.pi * kappa) * w.shape[1]
