"""The codebase's likelihood by the probability flow, with Hutchinson's divergence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from cldfast.compat.cld_sgm.sampling import solve
from cldfast.compat.cld_sgm.sde import PublishedInterface, as_served
from cldfast.compat.published import check_name
from cldfast.compat.steps import Flow
from cldfast.sampling.probability_flow import combine

Tensor = torch.Tensor
HUTCHINSON = ("gaussian", "rademacher")


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
        flow = Flow(served.network(model, data.shape), served.process, served.output_map)
        law = "likelihood_hutchinson_type"
        if check_name(law, getattr(config, law), HUTCHINSON) == "gaussian":
            probe = served.pack(torch.randn_like(data))
        else:
            probe = served.pack(torch.randint_like(data, low=0, high=2) * 2.0 - 1.0)
        xx, xv, vv = _traces(probe, data.shape, served)
        # The probe at the rows of the state that the network's output moves.
        own = probe.chunk(2, dim=1)[1] if served.is_augmented else probe

        def rate(t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            P, E = flow.blocks(float(t))
            with torch.enable_grad():
                u = state[0].detach().requires_grad_()
                output = flow.output(t, u)
                # E maps one plane of output to its row of the state by one number.
                weighed = (float(E[1, -1]) * own).to(output.dtype)
                (pulled,) = torch.autograd.grad(output, u, weighed)
            linear = P[0, 0] * xx + (P[0, 1] + P[1, 0]) * xv + P[1, 1] * vv
            divergence = (pulled * probe).flatten(1).sum(1) + linear
            return combine(P, E, u.detach(), output.detach()), divergence

        start = (served.pack(data), torch.zeros(len(data), device=data.device).double())
        last, change = solve(config, "likelihood", rate, start, (config.likelihood_eps, 1.0))
        last = served.unpack(last, data.shape)
        log_x, log_v = served.prior_logp(last)
        log_prior = log_x if log_v is None else log_x + log_v
        return -(log_prior + change), last, flow.evaluations

    return likelihood_fn


def _traces(
    probe: Tensor, shape: Sequence[int], sde: PublishedInterface
) -> tuple[Tensor, Tensor, Tensor]:
    """`e_x e_x`, `e_x e_v` and `e_v e_v` summed over coordinates, (B,): of the probe, or exact."""
    published = sde.mode == "published"
    if not published:
        # Ones count the coordinates, without the plane that pads an odd number of them.
        probe = sde.pack(torch.ones(shape, device=probe.device))
    e_x, e_v = (half.flatten(1).double() for half in probe.chunk(2, dim=1))
    return (e_x * e_x).sum(1), (e_x * e_v).sum(1) * published, (e_v * e_v).sum(1)
