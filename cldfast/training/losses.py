"""Score matching in phase space: perturbed data, and the loss between a network and their score.

Every loss here is `sum |R_o o + R_u u + R_z z|^2` with 2x2 blocks per row: the network's score
`s = C_o o + C_u u` against the kernel's `-L^-T z`, both under a weighting matrix M,

    residual = M (s + L^-T z),      M = L^T for "reweighted".

A network that returns the velocity score alone is held to the velocity row, `-ell z_v`, with the
scalar M = 1/ell. Data and noise decide the part `R_u u + R_z z` of a residual, the offset. The pass
that makes u makes the offset too, one plane or two beside it; the pass after the network reads the
offset and the output, and leaves the gradient in the offset's memory.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

import numpy as np
import torch

from cldfast import kernels
from cldfast.caller import caller_level
from cldfast.conditions import Conditions, check_arguments, condition_rows
from cldfast.kernels import REDUCTIONS, Backend, Noise, NoiseAddress, Stream, check_gradients
from cldfast.network import Network, explain_failure, output_tensor
from cldfast.planner.data_forms import DataForm, Preconditioned
from cldfast.planner.parameterization import (
    VELOCITY_MAPS,
    Parameterization,
    check_parameterization,
    data_form,
    default_parameterization,
    output_planes,
    velocity_share,
)
from cldfast.process.sde import OBJECTIVES, LinearPhaseSDE, Marginal
from cldfast.training.reference import Reference, check_reference
from cldfast.training.row_weights import WEIGHTINGS, RowKernels, row_loss, row_perturbation
from cldfast.training.times import given_times, sample_times
from cldfast.training.trained import remember_training
from cldfast.training.uncertainty import Uncertainty

Weighting = str | Callable[[torch.Tensor], torch.Tensor]


class BlindLossWarning(UserWarning):
    """A loss on the velocity score, where that score says almost nothing about the data."""


@dataclass(frozen=True)
class RowCoefficients:
    """All that a loss needs to know of its rows beside data and noise; it depends on times alone.

    t: (B,) float64. perturbation: (B, 2 + q, 3 or 4) float64, columns of data (and velocity) and of
    noise, rows of the state and of the residual's part that they decide, its offset. residual: (B,
    q, r + q + 2) float64, see `training.row_weights.split_weights`. Both may be a table's at t.
    scale: (B,) float64, a further factor of each row's loss, or None. argument: (B,) float64, the
    network's second argument. Indexed by rows, as tensors are.

    For a network that sees y the blocks are those of `training.row_weights.isotropic_weights`.
    """

    t: torch.Tensor
    perturbation: torch.Tensor | kernels.AtTimes
    residual: torch.Tensor | kernels.AtTimes
    scale: torch.Tensor | None
    argument: torch.Tensor

    def __getitem__(self, rows: slice) -> RowCoefficients:
        return RowCoefficients(
            self.t[rows], self.perturbation[rows], self.residual[rows],
            None if self.scale is None else self.scale[rows], self.argument[rows],
        )  # fmt: skip


def row_coefficients(
    sde: LinearPhaseSDE,
    t: torch.Tensor,
    weighting: Weighting,
    parameterization: Parameterization,
    *,
    factors: torch.Tensor | None = None,
    objective: str = "hsm",
    bounds: tuple[float, float] | None = None,
) -> RowCoefficients:
    """Coefficients at times t (B,), computed in float64; arguments taken as valid.

    factors: (B,), of each row's loss; None where they are 1. objective: "hsm" or "dsm".
    bounds: the least and the largest time that there may be, if that is known.
    """
    t = t.to(torch.float64)
    name = weighting if isinstance(weighting, str) else "reweighted"
    scale = factors
    if callable(weighting):
        own = _own_weighting(weighting, t)
        scale = own if scale is None else scale * own
    first, second, argument = row_loss(sde, t, objective, name, parameterization, bounds)
    return RowCoefficients(t, first, second, scale, argument)


def drawn_coefficients(
    rows: int,
    sde: LinearPhaseSDE,
    weighting: Weighting,
    parameterization: Parameterization,
    *,
    t_min: float,
    times: str,
    seed: int,
    batch: int | None = None,
    first_index: int = 0,
    device: torch.device | str = "cpu",
    objective: str = "hsm",
) -> RowCoefficients:
    """`row_coefficients` at times that are drawn, see `cldfast.sample_times`.

    The mean of the "likelihood" weighting is an estimate of its integral over [t_min, T], for any
    distribution of the times. With the other weightings the distribution of "log", "half_log",
    "log_snr" and "edm" belongs to the weighting, as in Karras et al. (2022).
    """
    form = data_form(parameterization)
    sigma_data = form.sigma_data if isinstance(form, Preconditioned) else 1.0
    t, factors = sample_times(
        rows, sde, t_min=t_min, method=times, batch=batch, seed=seed, first_index=first_index,
        device=device, sigma_data=sigma_data,
    )  # fmt: skip
    scale = factors if times == "importance" else None
    if weighting == "likelihood":
        scale = factors * (sde.T - t_min)
    return row_coefficients(
        sde, t, weighting, parameterization, factors=scale, objective=objective,
        bounds=(t_min, sde.T),
    )  # fmt: skip


def _own_weighting(
    weighting: Callable[[torch.Tensor], torch.Tensor], t: torch.Tensor
) -> torch.Tensor:
    """w(t), float64 (B,)."""
    values = weighting(t)
    if not isinstance(values, torch.Tensor):
        raise TypeError(f"weighting(t) must be a tensor, got {type(values).__name__}")
    if values.shape not in ((), (1,), t.shape) or values.device != t.device:
        raise ValueError(
            f"weighting(t) must be ({len(t)},) on {t.device}, "
            f"got {tuple(values.shape)} on {values.device}"
        )
    return values.to(torch.float64).expand(t.shape)


def perturb(
    sde: LinearPhaseSDE,
    x0: torch.Tensor,
    t: torch.Tensor,
    *,
    v0: torch.Tensor | None = None,
    seed: int | None = None,
    first_index: int = 0,
    generator: torch.Generator | None = None,
    noise: torch.Tensor | None = None,
    backend: str = "auto",
) -> tuple[torch.Tensor, Marginal]:
    """Noise data: `u = mean + L z` with a time for each row, one stage with per-row coefficients.

    x0: (B, d) or (B, C, H, W), float32 or float64. t: (B,) times in (0, T] on the same device.
    v0: initial velocities like x0; the mean is then `Phi (x0, v0)` (denoising score matching), else
        `m x0` with the velocity integrated out (hybrid score matching).
    noise: (B, 2d) or (B, 2C, H, W) normals z; None takes those addressed by (seed, first_index).
    seed, generator: see `cldfast.sample`; None draws a seed.
    Returns u, in the layout of noise, and the float64 kernels of the rows, which are computed when
    they are first looked at.
    """
    kernels.check_data("x0", x0)
    t, objective = given_times(t, sde.T, len(x0), x0.device), "hsm" if v0 is None else "dsm"
    u, _ = kernels.perturb(
        (x0,) if v0 is None else (x0, v0), row_perturbation(sde, t, objective),
        noise=_noise(seed, first_index, generator, noise), backend=backend,
    )  # fmt: skip
    return u, RowKernels(lambda: sde.marginal(t, objective))


def hsm_loss(
    net: Network,
    sde: LinearPhaseSDE,
    x0: torch.Tensor,
    weighting: Weighting = "reweighted",
    parameterization: Parameterization | None = None,
    seed: int | None = None,
    t: torch.Tensor | None = None,
    *,
    t_min: float = 1e-3,
    times: str = "uniform",
    first_index: int = 0,
    generator: torch.Generator | None = None,
    noise: torch.Tensor | None = None,
    reduction: str = "mean",
    objective: str = "hsm",
    uncertainty: Uncertainty | None = None,
    conditions: Conditions | None = None,
    reference: torch.Tensor | None = None,
    backend: str = "auto",
) -> torch.Tensor:
    """Hybrid score matching loss, summed over the coordinates of a row and averaged over rows.

    net: `net(u, t)`, or `net(y, argument)` for a parameterisation of y, returns what
        `parameterization` says, see `cldfast.make_plan`; None is the default there.
    x0: data (B, d) or (B, C, H, W), float32 or float64.
    weighting: of `|s - s*|^2`, s* the score of the perturbation kernel. "reweighted": in units of
        its noise, `|s_v - s_v*|^2 / ell^2` or `|L^T (s - s*)|^2`. "reweighted_g2": that times
        `beta D_vv / 2`. "likelihood": `beta |D^1/2 (s - s*)|^2 / 2` (the path-measure bound).
        "det": `det(Sigma) |s - s*|^2`. "edm": "reweighted" times `1 + sigma_y^2/sigma_data^2`. A
        function of t (B,) that returns w (B,): w times "reweighted".
    seed: of times and noise; None draws one from `generator`, see `cldfast.sample`. A graph of
        `torch.compile(fullgraph=True)` cannot draw one: see docs/seeds.md.
    t: (B,) times in (0, T]; None draws them on [t_min, T] as `times` says, see
        `cldfast.sample_times`. Their distribution weights the loss, but for "importance" and the
        weighting "likelihood", whose mean is an unbiased estimate of the integral over [t_min, T];
        for times that are given it is the mean over rows alone.
    first_index: global index of row 0. noise: (B, 2d) or (B, 2C, H, W) normals to use instead; of a
        parameterisation of y, which takes one plane of noise, shaped like x0.
    reduction: "mean" or "sum" over rows, or "none", (B,). backend: see `cldfast.stage`.
    conditions: further arguments of the network by name, such as labels, with a row for each row of
        x0 or one for all; see `cldfast.conditions.condition_rows`.
    objective: "hsm" integrates the initial velocity out; "dsm" is `dsm_loss`.
    reference: further rows of data (n, ...), drawn independently of x0, for a parameterisation of
        the data without conditions. The target x0 becomes its mean over these rows and itself given
        y: the same minimiser with less variance, see `cldfast.training.reference`.

    Raises ValueError or TypeError naming what was expected.
    Source: Dockhorn, Vahdat, Kreis (2022), eqs. 6 to 9; "det": Strasman, Surendran et al. (2025).
    """
    kernels.check_data("x0", x0)
    parameterization = checked_parameterization(sde, parameterization, objective)
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(REDUCTIONS)}, got {reduction!r}")
    if not callable(weighting) and weighting not in WEIGHTINGS:
        known = f"a function of t or one of {', '.join(WEIGHTINGS)}"
        raise ValueError(f"unknown weighting {weighting!r}; expected {known}")
    if objective not in OBJECTIVES:
        raise ValueError(f"objective must be one of {', '.join(OBJECTIVES)}, got {objective!r}")
    if not 0.0 < t_min < sde.T:
        raise ValueError(f"t_min must lie in (0, T) with T = {sde.T}, got {t_min}")
    if conditions is not None:
        if not torch.compiler.is_compiling():
            check_arguments(net, conditions)
        conditions = condition_rows(conditions, len(x0), x0.device)
    found = kernels.resolve_backend(backend, x0.device)
    if found.fuses_gradients:
        check_gradients()  # before the perturbation meets a transform's tensors
    address = kernels.noise_address(seed, first_index, generator)
    seed, first_index = address.seed, address.first_index
    if t is None:
        rows = drawn_coefficients(
            x0.shape[0], sde, weighting, parameterization, t_min=t_min, times=times, seed=seed,
            first_index=first_index, device=x0.device, objective=objective,
        )  # fmt: skip
    else:
        t = given_times(t, sde.T, x0.shape[0], x0.device)
        rows = row_coefficients(sde, t, weighting, parameterization, objective=objective)
    v0 = drawn_velocity(sde, x0, seed, first_index, found) if objective == "dsm" else None
    pooled = None
    if reference is not None:
        if conditions:
            raise ValueError(
                "reference: expected a loss without conditions, whose rows all have one law, got "
                f"{', '.join(conditions)}"
            )
        form = reference_form(parameterization, objective)
        name = weighting if isinstance(weighting, str) else "reweighted"
        pooled = Reference.at(rows.t, sde, name, form, check_reference(reference, x0))
    return prepared_loss(
        net, x0, rows, parameterization, seed=seed, first_index=first_index, v0=v0, noise=noise,
        reduction=reduction, uncertainty=uncertainty, conditions=conditions, reference=pooled,
        backend=found,
    )  # fmt: skip


def dsm_loss(
    net: Network, sde: LinearPhaseSDE, x0: torch.Tensor, *arguments: Any, **options: Any
) -> torch.Tensor:
    """Denoising score matching loss in phase space, with the initial velocity as data.

    Same minimiser as `hsm_loss`, larger variance; kept as a baseline. Arguments as in `hsm_loss`;
    weightings go by the perturbation kernel given (x0, v0), and `v0 ~ N(0, v0_var)` is addressed
    noise too.
    Source: Dockhorn, Vahdat, Kreis (2022), appendix B.3.
    """
    return hsm_loss(net, sde, x0, *arguments, objective="dsm", **options)


def prepared_loss(
    net: Network,
    x0: torch.Tensor,
    rows: RowCoefficients,
    parameterization: Parameterization,
    *,
    seed: int,
    first_index: int = 0,
    v0: torch.Tensor | None = None,
    noise: torch.Tensor | None = None,
    reduction: str = "mean",
    uncertainty: Uncertainty | None = None,
    conditions: Conditions | None = None,
    reference: Reference | None = None,
    backend: str | Backend = "auto",
) -> torch.Tensor:
    """The loss where the rows' coefficients are already known.

    Arguments as in `hsm_loss`, which prepares `rows` itself: a training loop can do so for many
    steps at once. v0: initial velocities for coefficients of the objective "dsm".
    conditions: those of the rows, as `condition_rows` makes them.

    Raises TypeError or ValueError for an output of the network that does not fit.
    """
    backend = kernels.resolve_backend(backend, x0.device)
    form = data_form(parameterization)
    isotropic = form is not None and form.sees_y
    data: tuple[torch.Tensor, ...]
    if isotropic:
        if noise is not None and noise.shape != x0.shape:
            raise ValueError(
                f"noise of parameterization {str(form)!r} must be one plane, {tuple(x0.shape)}, "
                f"got {tuple(noise.shape)}"
            )
        # Coordinate j and coordinate j + D/2 are a pair.
        data, noise = _paired(x0).chunk(2, dim=1), None if noise is None else _paired(noise)
    else:
        data = (x0,) if v0 is None else (x0, v0)
    seen, offset = kernels.perturb(
        data, rows.perturbation, noise=_noise(seed, first_index, None, noise), backend=backend
    )
    if offset is None:
        raise ValueError("rows.perturbation must have rows for the residual's offset, got none")
    if isotropic:
        width = x0[0].numel()
        if seen.shape[1] > width:
            offset[:, width:] = 0.0  # of the coordinate that fills the last pair
            seen = seen[:, :width]
        seen = seen.reshape(x0.shape)
    if reference is not None:
        shift = reference.shift(x0, seen)
        offset = offset + (_paired(shift) if isotropic else shift.reshape(x0.shape))
    try:
        result = net(seen, rows.argument.to(seen.dtype), **(conditions or {}))  # type: ignore[call-arg]
    except Exception as error:
        shown = "y" if isotropic else "the state, x and v side by side"
        where = f"in a loss; parameterization {str(parameterization)!r} shows the network {shown}"
        explain_failure(error, net, seen, where)
        raise
    output = output_tensor(result)
    kernels.check_output(
        "the network's output", output, x0, x0.shape[1], output_planes(parameterization),
        str(parameterization),
    )  # fmt: skip
    remember_training(net, parameterization)
    if isotropic:
        output = _paired(output)
    losses = kernels.residual(
        output, offset, rows.residual, scale=rows.scale,
        reduction=reduction if uncertainty is None else "none", overwrite=True, backend=backend,
    )  # fmt: skip
    if uncertainty is None:
        return losses
    losses = uncertainty(losses, rows.t, x0[0].numel())
    return losses if reduction == "none" else getattr(losses, reduction)()  # type: ignore[no-any-return]


def reference_form(parameterization: Parameterization, objective: str = "hsm") -> DataForm:
    """The data form of a loss whose targets are means over a pool; ValueError for what has none."""
    form = data_form(parameterization)
    if form is None or objective == "dsm":
        raise ValueError(
            "reference: expected the objective 'hsm' and a parameterization of the data, such as "
            f"'edm' or 'data_noise', got {objective!r} and {str(parameterization)!r}"
        )
    return form


def checked_parameterization(
    sde: LinearPhaseSDE, parameterization: Parameterization | None, objective: str = "hsm"
) -> Parameterization:
    """The parameterisation of a loss, by default the process's own.

    Raises ValueError for one that the objective does not fit. Warns once for a
    process where the loss would be blind at small times.
    """
    if parameterization is None:
        parameterization = default_parameterization(sde)
    check_parameterization(parameterization)
    form = data_form(parameterization)
    if form is not None and form.sees_y and objective == "dsm":
        raise ValueError(
            f"parameterization {str(form)!r} sees nothing of the velocity, which the objective "
            "'dsm' takes for data: use 'hsm'"
        )
    if parameterization in VELOCITY_MAPS and sde.diffusion[0] > 0.0 and sde not in _warned:
        _warned.add(sde)
        times = (1e-3, 1e-2, 1e-1)
        share = velocity_share(sde, sde.T * np.array(times))
        shares = ", ".join(
            f"{100.0 * part:.2g} % at t = {sde.T * t:g}"
            for part, t in zip(share, times, strict=True)
        )
        warnings.warn(
            f"with noise on the position the velocity score carries {shares} of what the state "
            "says about the data, so that a loss on it is blind at small t: train with "
            "parameterization 'data_noise' or 'edm'",
            BlindLossWarning,
            stacklevel=caller_level(),
        )
    return parameterization


# Processes about which `BlindLossWarning` has been given.
_warned: WeakSet[LinearPhaseSDE] = WeakSet()


def _paired(rows: torch.Tensor) -> torch.Tensor:
    """Rows (B, ...) flat and of even width, with a zero at the end where one is missing."""
    flat = rows.reshape(len(rows), -1)
    return torch.nn.functional.pad(flat, (0, 1)) if flat.shape[1] % 2 else flat


def _noise(
    seed: int | None,
    first_index: int,
    generator: torch.Generator | None,
    given: torch.Tensor | None,
) -> Noise:
    """The noise by which data are perturbed: that given, else that of the address."""
    if given is not None:
        return given
    return kernels.noise_address(seed, first_index, generator, stream=Stream.PERTURBATION)


def drawn_velocity(
    sde: LinearPhaseSDE,
    x0: torch.Tensor,
    seed: int,
    first_index: int,
    backend: str | Backend = "auto",
) -> torch.Tensor:
    """Addressed initial velocities `N(0, v0_var)`, shaped like x0."""
    pairs = kernels.normals(
        x0.shape, NoiseAddress(seed, first_index, stream=Stream.VELOCITY), dtype=x0.dtype,
        factor=sde.v0_var**0.5 * np.eye(2), device=x0.device, backend=backend,
    )  # fmt: skip
    return pairs[:, : x0.shape[1]]
