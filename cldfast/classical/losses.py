"""Losses that teach a network the score of positions; `docs/classical.md` compares them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cldfast import kernels
from cldfast.classical.paths import EDM, FlowMatching, GaussianPath
from cldfast.conditions import Conditions, conditioned
from cldfast.kernels import NoiseAddress, Stream
from cldfast.network import Network, output_tensor, per_row
from cldfast.planner.parameterization import Parameterization
from cldfast.planner.path_forms import change, parts, view
from cldfast.training.times import given_times
from cldfast.training.trained import remember_training


def dsm_loss(
    net: Network, path: GaussianPath, x0: Tensor, t: Tensor | None = None, *,
    parameterization: Parameterization | None = None, weighting: str = "noise", t_min: float = 1e-3,
    seed: int | None = None, first_index: int = 0, generator: torch.Generator | None = None,
    noise: Tensor | None = None, conditions: Conditions | None = None,
) -> Tensor:  # fmt: skip
    """Denoising score matching, summed over the coordinates of a row and averaged over rows.

    net: `net(x, t)` returns what `parameterization` says, see `cldfast.planner.path_forms`.
    x0: data (B, ...). t: (B,) times in (0, T]; None draws them uniformly on [t_min, T].
    weighting: the form in which errors are counted: "noise" is `|sigma (s - s*)|^2`.
    seed, first_index, generator: of times and noise, see `cldfast.sample`. noise: normals like x0
        to use instead. conditions: further arguments of the network by name, see `cldfast.run`.

    Raises ValueError for an unknown form, or an output that is not of the shape of x0.
    Source: Vincent (2011); Song et al. (2021), eq. 7.
    """
    parameterization = path.parameterization if parameterization is None else parameterization
    address = kernels.noise_address(seed, first_index, generator)
    if t is None:
        t = t_min + (path.T - t_min) * _uniform(address, x0)
    else:
        t = given_times(t, path.T, len(x0), x0.device)
    if noise is None:
        where = address.in_stream(Stream.PERTURBATION)
        pairs = kernels.normals(x0.shape, where, dtype=x0.dtype, device=x0.device)
        noise = pairs[:, : x0.shape[1]]
    label = t
    p, q = parts(path, t, parameterization)
    gain, _ = change(path, t, parameterization, weighting)
    x = per_row(path.alpha(t), x0) * x0 + per_row(path.sigma(t), x0) * noise
    if (seen := view(path, t, parameterization)) is not None:
        x, label = per_row(seen[0], x0) * x, seen[1]
    output = _checked(conditioned(net, conditions)(x, label.to(x0.dtype)), x0)
    remember_training(net, parameterization)
    error = per_row(gain, x0) * (output - per_row(p, x0) * x0 - per_row(q, x0) * noise)
    return error.square().flatten(1).sum(1).mean()


def flow_matching_loss(
    net: Network, x0: Tensor, path: GaussianPath | None = None, **options: Any
) -> Tensor:
    """`|net(x_t, t) - dx_t/dt|^2`, on straight lines unless another path is given.

    options: of `dsm_loss`. Source: Lipman et al. (2023), eq. 9.
    """
    settings = {"parameterization": "flow", "weighting": "flow"} | options
    return dsm_loss(net, FlowMatching() if path is None else path, x0, **settings)


def multi_scale_loss(
    net: Network, x0: Tensor, sigmas: Sequence[float], *, seed: int | None = None,
    first_index: int = 0, generator: torch.Generator | None = None, **options: Any,
) -> Tensor:  # fmt: skip
    """Denoising score matching at given noise levels, `sigma^2` weighted; one level is fixed noise.

    net: `net(x, sigma)`; every row draws one of the levels. options: of `dsm_loss`. Source: Song
    and Ermon (2019), eq. 6.
    """
    address = kernels.noise_address(seed, first_index, generator)
    levels = torch.tensor(list(sigmas), dtype=torch.float64, device=x0.device)
    t = levels[(_uniform(address, x0) * len(levels)).long()]
    options |= {"seed": address.seed, "first_index": address.first_index}
    return dsm_loss(net, EDM(max(sigmas)), x0, t, **options)


def implicit_loss(net: Network, x: Tensor, t: Tensor, directions: Tensor | None = None) -> Tensor:
    """Implicit score matching, `|s|^2/2 + div s`: no noise, d backward passes for the divergence.

    directions: w like x, of zero mean and unit covariance, for Hutchinson's estimate `w^T (ds/dx)
    w` of the divergence by one pass. Sources: Hyvarinen (2005), theorem 1; Hutchinson (1990).
    """
    score = _checked(net(x := x.detach().requires_grad_(), t), x)
    size = 0.5 * score.flatten(1).square().sum(1)
    if directions is not None:
        return (size + _slope(score, x, directions)).mean()
    for axis in torch.eye(x[0].numel(), dtype=x.dtype, device=x.device):
        size = size + _slope(score, x, axis.reshape(x[0].shape).expand_as(x))
    return size.mean()


def sliced_loss(net: Network, x: Tensor, t: Tensor, directions: Tensor) -> Tensor:
    """Sliced score matching, `(w^T s)^2/2 + w^T (ds/dx) w`: one backward pass.

    directions: w like x, of zero mean and unit covariance (Rademacher or normal). With `|s|^2` for
    `(w^T s)^2`, of less variance, it is `implicit_loss` with directions.
    Source: Song, Garg, Shi, Ermon (2019), eq. 8.
    """
    score = _checked(net(x := x.detach().requires_grad_(), t), x)
    along = (directions * score).flatten(1).sum(1)
    return (0.5 * along.square() + _slope(score, x, directions)).mean()


def _uniform(address: NoiseAddress, x: Tensor) -> Tensor:
    return kernels.uniforms(address.in_stream(Stream.TIMES), len(x), x.device)


def _slope(score: Tensor, x: Tensor, w: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad((score * w).sum(), x, create_graph=True)
    return (gradient * w).flatten(1).sum(1)


def _checked(result: object, x: Tensor) -> Tensor:
    output = output_tensor(result)
    if output.shape != x.shape:
        raise ValueError(f"the network must return {tuple(x.shape)}, got {tuple(output.shape)}")
    return output
