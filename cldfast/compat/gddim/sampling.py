"""gDDIM's samplers behind its own configuration: `get_sampling_fn(config, eps_fn)`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from cldfast.compat.gddim import plans
from cldfast.compat.gddim.layout import Function, as_network, from_state, to_state
from cldfast.compat.gddim.process import CLD
from cldfast.compat.published import check_name
from cldfast.planner.plan import Plan
from cldfast.sampling.run import initial_state, run

METHODS = ("deis", "order0", "sdeis", "ldeis", "hybdeis", "sscs", "em")
_MODEL = ("m_inv", "beta_0", "beta_1", "vv_gamma", "mixed_score", "is_R_rk", "R_dt")

Sampler = Callable[..., tuple[Any, Any, int]]


def from_config(config: Any, mode: str = "exact", numerical_eps: float | None = None) -> CLD:
    """The process of a configuration's `model` section; see `CLD` for mode and numerical_eps.

    config: with attributes or keys, such as an `ml_collections.ConfigDict`.
    """
    model = _get(config, "model")
    given = {name: _get(model, name, None) for name in _MODEL}
    values = {name: value for name, value in given.items() if value is not None}
    return CLD(**values, numerical_eps=numerical_eps, mode=mode)


def plan_from_config(config: Any, cld: CLD) -> Plan:
    """The sampler of a configuration's `sampling` section as a plan.

    `nfe` counts evaluations, that of the denoising step (`noise_removal`) too.

    Raises ValueError for a method that is not one of `METHODS`.
    """
    sampling = _get(config, "sampling")
    method = check_name("sampling.method", str(_get(sampling, "method")).lower(), METHODS)
    denoising = bool(_get(sampling, "noise_removal"))
    steps = int(_get(sampling, "nfe")) - denoising
    if steps < 1:
        raise ValueError(f"sampling.nfe leaves {steps} steps; expected at least 1")
    if method == "order0":
        times = plans.rev_times(steps)
        return plans.order0_plan(cld, times, bool(_get(sampling, "is_em")), denoising)
    ts_order = float(_get(sampling, "ts_order"))
    if method == "hybdeis":
        share = float(_get(sampling, "noise_nfe_ratio"))
        middle = float(_get(sampling, "img_t_ratio"))
        times = plans.hybrid_times(steps, share, middle, ts_order, cld.mode)
    else:
        times = plans.rev_times(steps, ts_order)
    if method == "sdeis":
        order, scale = int(_get(sampling, "deis_order")), float(_get(sampling, "lambda_coef"))
        return plans.sdeis_plan(cld, times, order, scale, denoising)
    if method == "em":
        return plans.em_plan(cld, times, float(_get(sampling, "lambda_coef")), denoising)
    if method == "sscs":
        return plans.sscs_plan(cld, times, denoising)
    form = "L" if method == "ldeis" else "R"
    return plans.deis_plan(cld, times, int(_get(sampling, "deis_order")), form, denoising)


def get_sampling_fn(
    config: Any,
    eps_fn: Function,
    inverse_scaler: Callable[[Any], Any] | None = None,
    *,
    xp: Any = np,
    layout: str = "pairs",
    mode: str = "exact",
    numerical_eps: float | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Sampler:
    """`sampler(seed, batch_size, u=None, noise=None) -> (x, v, nfe)` from a configuration.

    config: the codebase's; read are `model`, `sampling` and `data`. eps_fn: `eps_fn(u, t)`, what
        its `get_eps_fn` makes, but without the part of `mixed_score`, which the plan adds.
    inverse_scaler: applied to x. xp, layout: see `as_network`. mode, numerical_eps: see `CLD`.
    device, dtype: of the state, float32 or float64.

    The sampler takes an integer seed, states u at T `(B, ..., d, 2)` or None for the prior, and
    normals per stage of the plan in that layout, or None. x and v are `(B, ..., d)` arrays of xp.
    Sample i depends on the seed and i alone, whatever the batch size.
    """
    plan = plan_from_config(config, from_config(config, mode, numerical_eps))
    net, shape = as_network(eps_fn, xp, layout), data_shape(config)
    channels, spatial = shape[-1], shape[:-1]

    def sampler(
        seed: int, batch_size: int, u: Any = None, noise: Sequence[Any] | None = None
    ) -> tuple[Any, Any, int]:
        if u is None:
            state = initial_state(
                plan.sde, (batch_size, channels, *spatial), seed=seed, device=device, dtype=dtype
            )
        else:
            state = to_state(u).to(device=device, dtype=dtype)
        rows = None
        if noise is not None:
            rows = [None if z is None else to_state(z).to(state) for z in noise]
        pairs = from_state(run(plan, net, state, seed=seed, noise=rows))
        x, v = (xp.from_dlpack(part.contiguous()) for part in pairs.unbind(-1))
        return x if inverse_scaler is None else inverse_scaler(x), v, plan.evaluations

    return sampler


def data_shape(config: Any) -> tuple[int, ...]:
    """`(dim,)` for a data set of points, whose name holds "ps", else `(size, size, channels)`."""
    data = _get(config, "data")
    if "ps" in _get(data, "dataset"):
        return (int(_get(data, "dim")),)
    size = int(_get(data, "image_size"))
    return (size, size, int(_get(data, "num_channels")))


def _get(section: Any, name: str, *default: Any) -> Any:
    if hasattr(section, name):
        return getattr(section, name)
    if hasattr(section, "keys") and name in section:
        return section[name]
    if default:
        return default[0]
    raise ValueError(f"the configuration needs {name!r}, which is missing")
