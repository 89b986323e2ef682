"""The residual operation: the squared residual of each row, which every score-matching loss is.

A backend makes the gradient together with the loss, from planes that it has read anyway, and
backward only scales it. Eagerly that is an autograd function; under `torch.compile` it is the
registered operator `torch.ops.cldfast.residual`, with a fake kernel and an autograd formula. The
reference is plain PyTorch and differentiable in everything, as often as one likes.
"""

from __future__ import annotations

from typing import Any

import torch

from cldfast import reference
from cldfast.ops.checks import (
    SEED_LIMIT,
    check_address,
    check_like,
    check_planes,
    check_seed,
    check_state,
    check_tensor,
    describe,
)
from cldfast.ops.dispatch import backend_residual, resolve_backend
from cldfast.ops.library import library

REDUCTIONS = ("mean", "sum", "none")
_PLAIN = "backend='reference' is plain PyTorch and can"


def residual(
    output: torch.Tensor,
    u: torch.Tensor,
    weights: torch.Tensor,
    *,
    scale: torch.Tensor | None = None,
    reduction: str = "none",
    seed: int = 0,
    first_index: int = 0,
    stage_index: int = 0,
    stream: int = 0,
    noise: torch.Tensor | None = None,
    backend: str = "auto",
) -> torch.Tensor:
    """`loss_i = scale_i sum |R_o o + R_u u + R_z z|^2` of each row, differentiable in the output.

    output: (B, rC, ...), r planes, any float dtype. u: state (B, 2C, ...), float32 or float64.
    weights: float64 (B, q, r + 4): per row the blocks R_o, R_u, R_z of q residual planes.
    scale: float64 (B,), >= 0; None is 1.
    reduction: "none" returns (B,), "mean" and "sum" over rows (); then backward from a plain
        `.backward()` does no work at all.
    seed, first_index, stage_index, stream: the address at which z was made, as in `stage`.
    noise: z (B, 2C, ...) itself, instead.

    Raises ValueError or TypeError before anything is computed, and NotImplementedError for a
    gradient that a kernel does not make: that of u or weights, a second one, or by `torch.func`.
    """
    check_state("u", u)
    channels = u.shape[1] // 2
    planes = check_planes("output", output, u, channels)
    shape = check_tensor("weights", weights).shape
    if weights.dtype != torch.float64 or len(shape) != 3:
        raise TypeError(f"weights must be float64 (B, q, r + 4), got {describe(weights)}")
    if (
        shape[0] != u.shape[0]
        or not shape[1]
        or shape[2] != planes + 4
        or weights.device != u.device
    ):
        raise ValueError(
            f"weights must be ({u.shape[0]}, q, {planes + 4}) on {u.device}, "
            f"got {describe(weights)}"
        )
    if scale is not None:
        check_like("scale", scale, (u.shape[0],), weights)
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(REDUCTIONS)}, got {reduction!r}")
    check_seed(seed)
    check_address(first_index, stage_index, stream)
    if noise is not None:
        check_like("noise", noise, tuple(u.shape), u)
    name = resolve_backend(backend, u.device)
    if name == "reference":
        losses = reference.residual(
            output, u, weights, seed=seed, first_index=first_index, stage_index=stage_index,
            stream=stream, noise=noise,
        )  # fmt: skip
        losses = losses if scale is None else losses * scale.to(losses.dtype)
        return losses if reduction == "none" else getattr(losses, reduction)()
    check_gradients(u, weights, scale, noise)
    call = (scale, seed, first_index, stage_index, stream, noise, reduction)
    gradient = output.requires_grad and torch.is_grad_enabled()
    if torch.compiler.is_compiling():
        signed = seed - SEED_LIMIT if seed >= SEED_LIMIT // 2 else seed
        loss, _ = torch.ops.cldfast.residual(
            output, u, weights, scale, signed, *call[2:], gradient, name
        )
        return loss  # type: ignore[no-any-return]
    if gradient:
        return _Residual.apply(output, u, weights, call, name)  # type: ignore[no-any-return]
    return _run(output, u, weights, call, name, False)[0]


def check_gradients(*tensors: torch.Tensor | None) -> None:
    """NotImplementedError for gradients and transforms that a fused residual does not have."""
    if torch._C._are_functorch_transforms_active():
        raise NotImplementedError(
            f"torch.func transforms of a fused residual are not supported; {_PLAIN}"
        )
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
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


def _run(
    output: torch.Tensor,
    u: torch.Tensor,
    weights: torch.Tensor,
    call: tuple[Any, ...],
    backend: str,
    gradient: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The loss, reduced, and the gradient as it is stored."""
    scale, seed, first_index, stage_index, stream, noise, reduction = call
    inside, after = reduction_factor(reduction, u.shape[0], output)
    loss, stored = backend_residual(backend)(
        output, u, weights, scale=scale, factor=inside, reduce=reduction != "none",
        gradient=gradient, seed=seed, first_index=first_index, stage_index=stage_index,
        stream=stream, noise=noise,
    )  # fmt: skip
    return loss if after == 1.0 else loss * after, stored


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
    def forward(ctx, output, u, weights, call, backend):  # type: ignore[no-untyped-def]
        loss, stored = _run(output, u, weights, call, backend, True)
        ctx.save_for_backward(stored)
        ctx.after = reduction_factor(call[-1], u.shape[0], output)[1]
        return loss

    @staticmethod
    def backward(ctx, incoming):  # type: ignore[no-untyped-def]
        refuse_second_derivative()
        (stored,) = ctx.saved_tensors
        return scaled(stored, incoming, ctx.after), None, None, None, None


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
    call = (scale, seed % SEED_LIMIT, first_index, stage_index, stream, noise, reduction)
    loss, stored = _run(output, u, weights, call, backend, gradient)
    return loss, output.new_empty(0) if stored is None else stored


def _fake(  # type: ignore[no-untyped-def]
    output, u, weights, scale, seed, first_index, stage_index, stream, noise, reduction, gradient,
    backend,
):  # fmt: skip
    loss = u.new_empty(u.shape[0] if reduction == "none" else ())
    if not gradient:
        return loss, output.new_empty(0)
    channels_last = (
        output.dim() == 4
        and not output.is_contiguous()
        and output.is_contiguous(memory_format=torch.channels_last)
    )
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return loss, torch.empty_like(output, memory_format=layout)


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
