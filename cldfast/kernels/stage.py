"""The stage operation for users and for `torch.compile`: checks, choice of backend, gradients.

`stage` calls a backend directly in eager mode without gradients; otherwise it goes through the
registered operator `torch.ops.cldfast.stage`, which has a fake kernel and an autograd formula.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from cldfast.kernels.backends.planes import layout
from cldfast.kernels.checks import (
    OUTPUT_DTYPES,
    SEED_LIMIT,
    STATE_DTYPES,
    check_address,
    check_like,
    check_out,
    check_planes,
    check_seed,
    check_state,
    check_tensor,
    check_weights,
    describe,
)
from cldfast.kernels.dispatch import StageResult, backend_stage, resolve_backend
from cldfast.kernels.library import library


def stage(
    u: torch.Tensor | None,
    outputs: Sequence[torch.Tensor] = (),
    history: Sequence[torch.Tensor] = (),
    weights: torch.Tensor | None = None,
    *,
    seed: int = 0,
    first_index: int = 0,
    stage_index: int = 0,
    stream: int = 0,
    noise: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
    cast: torch.dtype | None = None,
    backend: str = "auto",
) -> StageResult:
    """`(x', v', h ...) = W (x, v, o ..., h ..., z_x, z_v)` at every coordinate, in one pass.

    u: state (B, 2d) or (B, 2C, H, W), float32 or float64, x half then v half; None where the stage
        reads none, then outputs[0] is (B, C, ...) in the state's dtype and gives the shape.
    outputs: network outputs (B, rC, ...) with r planes, any float dtype.
    history: earlier history rows (B, qC, ...).
    weights: float64 (R, 2 + q, n), columns in that order, the two noise columns last; R = 1 (on the
        CPU) shares one matrix, R = B gives each row its own.
    seed, first_index, stage_index, stream: the address of the noise: key, global index of row 0,
        and the last two counter words.
    noise: (B, 2C, ...) normals to use instead.
    out: where to write u', may be u itself. cast: also return u' in this dtype.
    backend: "auto" (the fastest there is), "cpu", "cuda", "triton" or "reference".

    Returns (u', history rows (B, qC, ...) or None, cast copy or None). Differentiable in u, outputs
    and history. Raises ValueError or TypeError before anything is written.
    """
    if u is not None:
        check_state("u", u)
        like, channels = u, u.shape[1] // 2
        columns = 4
    else:
        if not outputs:
            raise ValueError("a stage without state u needs at least one output, got none")
        like = check_tensor("outputs[0]", outputs[0])
        if like.dtype not in STATE_DTYPES or like.dim() < 2 or like.numel() == 0:
            raise ValueError(
                "outputs[0] of a stage without state must be a non-empty (B, C, ...) tensor of "
                f"float32 or float64, got {describe(like)}"
            )
        channels = like.shape[1]
        columns = 2
    for j, tensor in enumerate(outputs):
        columns += check_planes(f"outputs[{j}]", tensor, like, channels)
    for j, tensor in enumerate(history):
        columns += check_planes(f"history[{j}]", tensor, like, channels)
    weights = check_weights(weights, like.shape[0], columns, like.device)
    check_seed(seed)
    check_address(first_index, stage_index, stream)
    if noise is not None or out is not None:
        shape = (like.shape[0], 2 * channels, *like.shape[2:])
        more = [] if noise is None else [check_like("noise", noise, shape, like)]
        if out is not None:
            check_out(out, shape, like, u, [*outputs, *history, *more])
    if cast is not None and cast not in OUTPUT_DTYPES:
        raise TypeError(f"cast must be a float dtype, got {cast}")
    name = resolve_backend(backend, like.device)
    if torch.compiler.is_compiling() or _needs_grad(u, outputs, history):
        if out is not None:
            raise ValueError("out= cannot be used with gradients or under torch.compile")
        return stage_operator(
            u, outputs, history, weights, seed, first_index, stage_index, stream, noise, cast, name
        )
    return backend_stage(name)(
        u, outputs, history, weights, seed=seed, first_index=first_index, stage_index=stage_index,
        stream=stream, noise=noise, out=out, cast=cast,
    )  # fmt: skip


def _needs_grad(
    u: torch.Tensor | None, outputs: Sequence[torch.Tensor], history: Sequence[torch.Tensor]
) -> bool:
    if not torch.is_grad_enabled():
        return False
    if u is not None and u.requires_grad:
        return True
    # A generator for `any` would take longer than all the rest.
    for tensors in (outputs, history):
        for tensor in tensors:
            if tensor.requires_grad:
                return True
    return False


# --- the registered operator -------------------------------------------------------------------
# An operator returns tensors only: a missing history row or cast is an empty tensor.

library.define(
    "stage(Tensor? u, Tensor[] outputs, Tensor[] history, Tensor weights, int seed, "
    "int first_index, int stage_index, int stream, Tensor? noise, ScalarType? cast, str backend) "
    "-> (Tensor, Tensor, Tensor)"
)


def stage_operator(
    u: torch.Tensor | None,
    outputs: Sequence[torch.Tensor],
    history: Sequence[torch.Tensor],
    weights: torch.Tensor,
    seed: int,
    first_index: int,
    stage_index: int,
    stream: int,
    noise: torch.Tensor | None,
    cast: torch.dtype | None,
    backend: str,
) -> StageResult:
    """`torch.ops.cldfast.stage` with the conventions of `stage`; arguments taken as valid."""
    signed = seed - SEED_LIMIT if seed >= SEED_LIMIT // 2 else seed
    state, row, copy = torch.ops.cldfast.stage(
        u, list(outputs), list(history), weights, signed, first_index, stage_index, stream, noise,
        cast, backend,
    )  # fmt: skip
    return state, row if weights.shape[1] > 2 else None, copy if cast is not None else None


def _implementation(
    u: torch.Tensor | None,
    outputs: list[torch.Tensor],
    history: list[torch.Tensor],
    weights: torch.Tensor,
    seed: int,
    first_index: int,
    stage_index: int,
    stream: int,
    noise: torch.Tensor | None,
    cast: torch.dtype | None,
    backend: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    state, row, copy = backend_stage(backend)(
        u, outputs, history, weights, seed=seed % SEED_LIMIT, first_index=first_index,
        stage_index=stage_index, stream=stream, noise=noise, cast=cast,
    )  # fmt: skip
    return (
        state,
        state.new_empty(0) if row is None else row,
        state.new_empty(0) if copy is None else copy,
    )


def _fake(
    u: torch.Tensor | None,
    outputs: list[torch.Tensor],
    history: list[torch.Tensor],
    weights: torch.Tensor,
    seed: int,
    first_index: int,
    stage_index: int,
    stream: int,
    noise: torch.Tensor | None,
    cast: torch.dtype | None,
    backend: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    like = u if u is not None else outputs[0]
    channels = like.shape[1] // 2 if u is not None else like.shape[1]

    def planes(count: int, dtype: torch.dtype) -> torch.Tensor:
        shape = (like.shape[0], count * channels, *like.shape[2:])
        return torch.empty(shape, dtype=dtype, device=like.device, memory_format=layout(like))

    extra = weights.shape[1] - 2
    return (
        planes(2, like.dtype),
        planes(extra, like.dtype) if extra else like.new_empty(0),
        planes(2, cast) if cast is not None else like.new_empty(0),
    )


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    u, outputs, history, weights, *_, cast, backend = inputs
    ctx.save_for_backward(weights)
    ctx.has_state, ctx.backend, ctx.cast = u is not None, backend, cast
    ctx.dtypes = [t.dtype for t in [*outputs, *history]]
    channels = u.shape[1] // 2 if u is not None else outputs[0].shape[1]
    ctx.planes = [t.shape[1] // channels for t in [*outputs, *history]]
    ctx.channels, ctx.outputs = channels, len(outputs)


def _backward(ctx, grad_state, grad_row, grad_copy):  # type: ignore[no-untyped-def]
    """Gradients of a stage are a stage with the transposed matrix and no noise.

    Its planes are the gradients of (u', new history); its rows the gradients of (u, outputs,
    history), so the first two rows come back as the state and the rest as the history row.
    """
    (weights,) = ctx.saved_tensors
    transposed = weights.transpose(1, 2)[:, :-2, :]
    if not ctx.has_state:
        transposed = torch.cat(
            [transposed.new_zeros(weights.shape[0], 2, weights.shape[1]), transposed], 1
        )
    if ctx.cast is not None and grad_copy is not None and grad_copy.numel():
        grad_state = grad_state + grad_copy.to(grad_state.dtype)
    no_noise = transposed.new_zeros(transposed.shape[0], transposed.shape[1], 2)
    has_row = weights.shape[1] > 2
    state, rows, _ = torch.ops.cldfast.stage(
        grad_state,
        [grad_row] if has_row else [],
        [],
        torch.cat([transposed, no_noise], 2).contiguous(),
        0, 0, 0, 0, None, None, ctx.backend,
    )  # fmt: skip
    sizes = [count * ctx.channels for count in ctx.planes]
    parts = list(rows.split(sizes, dim=1)) if sizes else []
    grads = [part.to(dtype) for part, dtype in zip(parts, ctx.dtypes, strict=True)]
    return (
        state if ctx.has_state else None,
        grads[: ctx.outputs],
        grads[ctx.outputs :],
        None, None, None, None, None, None, None, None,
    )  # fmt: skip


library.impl("stage", _implementation, "CompositeExplicitAutograd")
torch.library.register_fake("cldfast::stage", _fake)
torch.library.register_autograd("cldfast::stage", _backward, setup_context=_setup_context)
