"""The residual operation: the squared residual of each row, which every score-matching loss is.

A backend makes the gradient together with the loss, from planes that it has read anyway, and
backward only scales it. Eagerly that is an autograd function; under `torch.compile` it is the
registered operator `torch.ops.cldfast.residual`, with a fake kernel and an autograd formula. The
reference is plain PyTorch and differentiable in everything, as often as one likes.
"""

from __future__ import annotations

from functools import partial

import torch

from cldfast.kernels.backends import reference
from cldfast.kernels.backends.planes import layout
from cldfast.kernels.checks import (
    SEED_LIMIT,
    STATE_DTYPES,
    check_address,
    check_like,
    check_planes,
    check_seed,
    check_tensor,
    describe,
)
from cldfast.kernels.dispatch import backend_residual, resolve_backend
from cldfast.kernels.library import library
from cldfast.kernels.perturb import matrices
from cldfast.kernels.time_tables import AtTimes

REDUCTIONS = ("mean", "sum", "none")
_PLAIN = "backend='reference' is plain PyTorch and can"


def residual(
    output: torch.Tensor,
    u: torch.Tensor,
    weights: torch.Tensor | AtTimes,
    *,
    scale: torch.Tensor | None = None,
    reduction: str = "none",
    seed: int = 0,
    first_index: int = 0,
    stage_index: int = 0,
    stream: int = 0,
    noise: torch.Tensor | None = None,
    planes: int = 2,
    overwrite: bool = False,
    backend: str = "auto",
) -> torch.Tensor:
    """`loss_i = scale_i sum |R_o o + R_u u + R_z z|^2` of each row, differentiable in the output.

    output: (B, rC, ...), r planes, any float dtype. u: state (B, 2C, ...), float32 or float64.
    weights: float64 (B, q, r + 4): per row the blocks R_o, R_u, R_z of q residual planes; or a
        table's at each row's time, `table.at(t)`.
    scale: float64 (B,), >= 0; None is 1.
    reduction: "none" returns (B,), "mean" and "sum" over rows (); then backward from a plain
        `.backward()` does no work at all.
    seed, first_index, stage_index, stream: the address at which z was made, as in `stage`.
    noise: z (B, 2C, ...) itself, instead.
    planes: of u, p. Not a state's 2 where the residual is made of other planes, as the further ones
        of `perturb`: u is then (B, pC, ...), weights (B, q, r + p + 2).
    overwrite: the gradient may take the memory of u, whose values are then lost. Kernels do so
        where u has the dtype, shape and layout of the output.

    Raises ValueError or TypeError before anything is computed, OutsideTableError, a ValueError, for
    a time outside the table, and NotImplementedError for a gradient that a kernel does not make:
    that of u or weights, a second one, or by `torch.func`.
    """
    shape = weights.shape if isinstance(weights, AtTimes) else _check_weights(weights)
    channels = _check_planes(u, planes)
    outputs = check_planes("output", output, u, channels)
    if (
        shape[0] != u.shape[0]
        or not shape[1]
        or shape[2] != outputs + planes + 2
        or weights.device != u.device
    ):
        raise ValueError(
            f"weights must be ({u.shape[0]}, q, {outputs + planes + 2}) on {u.device}, "
            f"got {tuple(shape)} on {weights.device}"
        )
    if scale is not None:
        like = weights.t if isinstance(weights, AtTimes) else weights
        check_like("scale", scale, (u.shape[0],), like)
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(REDUCTIONS)}, got {reduction!r}")
    check_seed(seed)
    check_address(first_index, stage_index, stream)
    if noise is not None:
        check_like("noise", noise, (u.shape[0], 2 * channels, *u.shape[2:]), u)
    name = resolve_backend(backend, u.device)
    traced = torch.compiler.is_compiling()
    known: dict[str, int] = {}  # what is lost where a table's matrices become numbers like others
    if isinstance(weights, AtTimes) and (name != "cpu" or traced):
        known = {} if traced else {"used": weights.table.used}
        weights = matrices(weights, name)
    if name == "reference":
        losses = reference.residual(
            output, u, weights, seed=seed, first_index=first_index,  # type: ignore[arg-type]
            stage_index=stage_index, stream=stream, noise=noise,
        )  # fmt: skip
        losses = losses if scale is None else losses * scale.to(losses.dtype)
        return losses if reduction == "none" else getattr(losses, reduction)()
    check_gradients(u, scale, noise, None if isinstance(weights, AtTimes) else weights)
    gradient = output.requires_grad and torch.is_grad_enabled()
    if traced:
        signed = seed - SEED_LIMIT if seed >= SEED_LIMIT // 2 else seed
        loss, _ = torch.ops.cldfast.residual(
            output, u, weights, scale, signed, first_index, stage_index, stream, noise, reduction,
            gradient, name,
        )  # fmt: skip
        return loss  # type: ignore[no-any-return]
    inside, after = reduction_factor(reduction, u.shape[0], output)
    kernel = backend_residual(name)
    if known:
        kernel = partial(kernel, **known)

    def run() -> tuple[torch.Tensor, torch.Tensor | None]:
        loss, stored = kernel(
            output, u, weights, scale=scale, factor=inside, reduce=reduction != "none",
            gradient=gradient, seed=seed, first_index=first_index, stage_index=stage_index,
            stream=stream, noise=noise, overwrite=overwrite,
        )  # fmt: skip
        return loss if after == 1.0 else loss * after, stored

    if gradient:
        return _Residual.apply(output, run, after)  # type: ignore[no-any-return]
    return run()[0]


def _check_weights(weights: object) -> torch.Size:
    tensor = check_tensor("weights", weights)
    if tensor.dtype != torch.float64 or tensor.dim() != 3:
        raise TypeError(f"weights must be float64 (B, q, r + 4), got {describe(tensor)}")
    return tensor.shape


def _check_planes(u: object, planes: int) -> int:
    """The channels of each of the planes of u."""
    tensor = check_tensor("u", u)
    if tensor.dtype not in STATE_DTYPES:
        raise TypeError(f"u must be float32 or float64, got {describe(tensor)}")
    if tensor.dim() < 2 or tensor.numel() == 0:
        raise ValueError(f"u must be (B, {planes} C, ...) and not be empty, got {describe(tensor)}")
    channels, rest = divmod(tensor.shape[1], planes) if planes > 0 else (0, 1)
    if rest:
        raise ValueError(
            f"u must be (B, {planes} C, ...), of planes = {planes}, got {describe(tensor)}"
        )
    return channels


def check_gradients(*tensors: torch.Tensor | None) -> None:
    """NotImplementedError for gradients and transforms that a fused residual does not have."""
    if torch._C._are_functorch_transforms_active():
        raise NotImplementedError(
            f"torch.func transforms of a fused residual are not supported; {_PLAIN}"
        )
    if not torch.is_grad_enabled():
        return
    for tensor in tensors:
        if tensor is None or not tensor.requires_grad:
            continue
        raise NotImplementedError(
            "a fused residual is differentiable in the network's output only, and u, weights, "
            f"scale or noise require gradients: detach them; {_PLAIN}"
        )


def reduction_factor(reduction: str, rows: int, output: torch.Tensor) -> tuple[float, float]:
    """What a reduction multiplies the rows by: while the gradient is made, and afterwards.

    A mean's 1/B belongs to the pass, but for float16: there a loss scale must come first, or small
    gradients are lost below the smallest float16.
    """
    factor = 1.0 / rows if reduction == "mean" else 1.0
    return (1.0, factor) if output.dtype == torch.float16 else (factor, 1.0)


def scaled(stored: torch.Tensor, incoming: torch.Tensor, after: float) -> torch.Tensor:
    """The stored gradient times the incoming one, () or (B,), in one pass and rounded once.

    The stored tensor itself where the factor is a one that the host can see: autograd does not
    write to what it has saved.
    """
    if incoming.dim() == 0 and incoming.device.type == "cpu" and after * incoming.item() == 1.0:
        return stored
    return _product(stored, incoming, after)


def _product(stored: torch.Tensor, incoming: torch.Tensor, after: float) -> torch.Tensor:
    factor = incoming if after == 1.0 else incoming * after
    # A dimension keeps the factor's dtype in the product, which is rounded to the output's.
    factor = factor.reshape(-1, *([1] * (stored.dim() - 1)))
    return torch.mul(stored, factor, out=torch.empty_like(stored))


def refuse_second_derivative() -> None:
    """NotImplementedError in a backward that is itself to be differentiated."""
    if torch.is_grad_enabled():
        raise NotImplementedError(
            "a fused residual has no second derivative: its gradient is made with the loss "
            f"(backward was called with create_graph=True); {_PLAIN}"
        )


class _Residual(torch.autograd.Function):
    @staticmethod
    def forward(ctx, output, run, after):  # type: ignore[no-untyped-def]
        loss, stored = run()
        ctx.save_for_backward(stored)
        ctx.after = after
        return loss

    @staticmethod
    def backward(ctx, incoming):  # type: ignore[no-untyped-def]
        refuse_second_derivative()
        (stored,) = ctx.saved_tensors
        return scaled(stored, incoming, ctx.after), None, None


# --- the registered operator -------------------------------------------------------------------
# It returns the loss and the stored gradient, an empty tensor where none is wanted.

library.define(
    "residual(Tensor output, Tensor u, Tensor weights, Tensor? scale, int seed, int first_index, "
    "int stage_index, int stream, Tensor? noise, str reduction, bool gradient, str backend) "
    "-> (Tensor, Tensor)"
)


def _implementation(  # type: ignore[no-untyped-def]
    output, u, weights, scale, seed, first_index, stage_index, stream, noise, reduction, gradient,
    backend,
):  # fmt: skip
    inside, after = reduction_factor(reduction, u.shape[0], output)
    loss, stored = backend_residual(backend)(
        output, u, weights, scale=scale, factor=inside, reduce=reduction != "none",
        gradient=gradient, seed=seed % SEED_LIMIT, first_index=first_index,
        stage_index=stage_index, stream=stream, noise=noise,
    )  # fmt: skip
    return loss if after == 1.0 else loss * after, output.new_empty(0) if stored is None else stored


def _fake(  # type: ignore[no-untyped-def]
    output, u, weights, scale, seed, first_index, stage_index, stream, noise, reduction, gradient,
    backend,
):  # fmt: skip
    loss = u.new_empty(u.shape[0] if reduction == "none" else ())
    if not gradient:
        return loss, output.new_empty(0)
    return loss, torch.empty_like(output, memory_format=layout(output))


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    network_output, u, *_, reduction, gradient, _ = inputs
    ctx.save_for_backward(output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.after = reduction_factor(reduction, u.shape[0], network_output)[1]
    ctx.gradient = gradient


def _backward(ctx, incoming, _):  # type: ignore[no-untyped-def]
    if not ctx.gradient:
        raise RuntimeError("this residual was made without its gradient (gradient=False)")
    (stored,) = ctx.saved_tensors
    factor = incoming.reshape(-1, *([1] * (stored.dim() - 1))) * ctx.after
    return (stored * factor).to(stored.dtype), *[None] * 11


library.impl("residual", _implementation, "CompositeExplicitAutograd")
torch.library.register_fake("cldfast::residual", _fake)
torch.library.register_autograd("cldfast::residual", _backward, setup_context=_setup_context)
