"""The residual operation: the squared residual of each row, which every score-matching loss is.

A backend makes the gradient together with the loss, from planes that it has read anyway, and
backward only scales it. Eagerly that is an autograd function; under `torch.compile` it is the
registered operator `torch.ops.cldfast.residual`, with a fake kernel and an autograd formula. The
reference is plain PyTorch and differentiable in everything, as often as one likes.
"""

from __future__ import annotations

import torch

from cldfast.kernels.backends.planes import layout
from cldfast.kernels.backends.protocol import Backend
from cldfast.kernels.backends.registry import get_backend, resolve_backend
from cldfast.kernels.checks import STATE_DTYPES, check_like, check_planes, check_tensor, describe
from cldfast.kernels.perturb import matrices
from cldfast.kernels.stage import library
from cldfast.kernels.time_tables import AtTimes

REDUCTIONS = ("mean", "sum", "none")
_PLAIN = "backend='reference' is plain PyTorch and can"


def residual(
    output: torch.Tensor,
    offset: torch.Tensor,
    weights: torch.Tensor | AtTimes,
    *,
    scale: torch.Tensor | None = None,
    reduction: str = "none",
    overwrite: bool = False,
    backend: str | Backend = "auto",
) -> torch.Tensor:
    """`loss_i = scale_i sum |R_o o + R_e e|^2` of each row, differentiable in the output o.

    output: o, (B, rC, ...), r planes, any float dtype. offset: e, (B, pC, ...), float32 or float64:
        what data and noise contribute, as `perturb` has made it.
    weights: float64 (B, q, r + p): per row the blocks R_o, R_e of q residual planes; or a table's
        at each row's time, `table.at(t)`.
    scale: float64 (B,), >= 0; None is 1.
    reduction: "none" returns (B,), "mean" and "sum" over rows (); then backward from a plain
        `.backward()` does no work at all.
    overwrite: the gradient may take the memory of the offset, whose values are then lost. Kernels
        do so where the offset has the dtype, shape and layout of the output.

    Raises ValueError or TypeError before anything is computed, OutsideTableError, a ValueError, for
    a time outside the table, and NotImplementedError for a gradient that a kernel does not make:
    that of offset or weights, a second one, or by `torch.func`.
    """
    _check(output, offset, weights)
    if scale is not None:
        like = weights.t if isinstance(weights, AtTimes) else weights
        check_like("scale", scale, (offset.shape[0],), like)
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(REDUCTIONS)}, got {reduction!r}")
    found = resolve_backend(backend, offset.device)
    traced = torch.compiler.is_compiling()
    if isinstance(weights, AtTimes) and (traced or not found.reads_tables):
        weights = matrices(weights, found)
    if not found.fuses_gradients:
        losses, _ = found.residual(output, offset, weights, scale=scale)
        return losses if reduction == "none" else getattr(losses, reduction)()  # type: ignore[no-any-return]
    check_gradients(offset, scale, None if isinstance(weights, AtTimes) else weights)
    gradient = output.requires_grad and torch.is_grad_enabled()
    if traced:
        loss, _ = torch.ops.cldfast.residual(
            output, offset, weights, scale, reduction, gradient, found.name
        )
        return loss  # type: ignore[no-any-return]
    inside, after = reduction_factor(reduction, offset.shape[0], output)

    def run() -> tuple[torch.Tensor, torch.Tensor | None]:
        loss, stored = found.residual(
            output, offset, weights, scale=scale, factor=inside, reduce=reduction != "none",
            gradient=gradient, overwrite=overwrite,
        )  # fmt: skip
        return loss if after == 1.0 else loss * after, stored

    if gradient:
        return _Residual.apply(output, run, after)  # type: ignore[no-any-return]
    return run()[0]


def _check(output: object, offset: object, weights: torch.Tensor | AtTimes) -> None:
    """TypeError or ValueError for tensors that do not fit each other."""
    if not isinstance(weights, AtTimes):
        tensor = check_tensor("weights", weights)
        if tensor.dtype != torch.float64 or tensor.dim() != 3:
            raise TypeError(f"weights must be float64 (B, q, r + p), got {describe(tensor)}")
    e, o = check_tensor("offset", offset), check_tensor("output", output)
    if e.dtype not in STATE_DTYPES:
        raise TypeError(f"offset must be float32 or float64, got {describe(e)}")
    if e.dim() < 2 or e.numel() == 0:
        raise ValueError(f"offset must be (B, p C, ...) and not be empty, got {describe(e)}")
    rows, residuals, columns = weights.shape
    width = e.shape[1] + (o.shape[1] if o.dim() == e.dim() else 0)
    channels = width // max(columns, 1)
    whole = channels and width == channels * columns and e.shape[1] % channels == 0
    if rows != e.shape[0] or weights.device != e.device or not residuals or not whole:
        raise ValueError(
            f"weights must be ({e.shape[0]}, q, r + p) on {e.device}, a column for each plane of "
            f"output {describe(o)} and offset {describe(e)}; "
            f"got {tuple(weights.shape)} on {weights.device}"
        )
    check_planes("output", o, e, channels)


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
            "a fused residual is differentiable in the network's output only, and offset, "
            f"weights or scale require gradients: detach them; {_PLAIN}"
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
    factor = incoming if after == 1.0 else incoming * after
    # A dimension keeps the factor's dtype in the product, which is rounded to the output's.
    factor = factor.reshape(-1, *([1] * (stored.dim() - 1)))
    return torch.mul(stored, factor, out=torch.empty_like(stored))


class _Residual(torch.autograd.Function):
    @staticmethod
    def forward(ctx, output, run, after):  # type: ignore[no-untyped-def]
        loss, stored = run()
        ctx.save_for_backward(stored)
        ctx.after = after
        return loss

    @staticmethod
    def backward(ctx, incoming):  # type: ignore[no-untyped-def]
        if torch.is_grad_enabled():
            raise NotImplementedError(
                "a fused residual has no second derivative: its gradient is made with the loss "
                f"(backward was called with create_graph=True); {_PLAIN}"
            )
        (stored,) = ctx.saved_tensors
        return scaled(stored, incoming, ctx.after), None, None


# --- the registered operator -------------------------------------------------------------------
# It returns the loss and the stored gradient, an empty tensor where none is wanted.

library.define(
    "residual(Tensor output, Tensor offset, Tensor weights, Tensor? scale, str reduction, "
    "bool gradient, str backend) -> (Tensor, Tensor)"
)


def _implementation(output, offset, weights, scale, reduction, gradient, backend):  # type: ignore[no-untyped-def]
    inside, after = reduction_factor(reduction, offset.shape[0], output)
    loss, stored = get_backend(backend, offset.device.type).residual(
        output, offset, weights, scale=scale, factor=inside, reduce=reduction != "none",
        gradient=gradient,
    )  # fmt: skip
    return loss if after == 1.0 else loss * after, output.new_empty(0) if stored is None else stored


def _fake(output, offset, weights, scale, reduction, gradient, backend):  # type: ignore[no-untyped-def]
    loss = offset.new_empty(offset.shape[0] if reduction == "none" else ())
    if not gradient:
        return loss, output.new_empty(0)
    return loss, torch.empty_like(output, memory_format=layout(output))


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    network_output, offset, *_, reduction, gradient, _ = inputs
    ctx.save_for_backward(output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.after = reduction_factor(reduction, offset.shape[0], network_output)[1]
    ctx.gradient = gradient


def _backward(ctx, incoming, _):  # type: ignore[no-untyped-def]
    if not ctx.gradient:
        raise RuntimeError("this residual was made without its gradient (gradient=False)")
    (stored,) = ctx.saved_tensors
    factor = incoming.reshape(-1, *([1] * (stored.dim() - 1))) * ctx.after
    return (stored * factor).to(stored.dtype), *[None] * 6


library.impl("residual", _implementation, "CompositeExplicitAutograd")
torch.library.register_fake("cldfast::residual", _fake)
torch.library.register_autograd("cldfast::residual", _backward, setup_context=_setup_context)
