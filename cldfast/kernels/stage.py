"""The stage operation for users and for `torch.compile`: checks, choice of backend, gradients.

`stage` calls a backend directly in eager mode without gradients; otherwise it goes through the
registered operator `torch.ops.cldfast.stage`, which has a fake kernel and an autograd formula.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from cldfast.kernels.address import SEED_LIMIT, NoiseAddress, signed_seed
from cldfast.kernels.backends.planes import layout
from cldfast.kernels.backends.protocol import Backend, Noise, StageResult
from cldfast.kernels.backends.registry import get_backend, resolve_backend
from cldfast.kernels.checks import (
    check_data,
    check_noise,
    check_out,
    check_planes,
    check_seen,
    check_state,
    check_weights,
)


def stage(
    u: torch.Tensor | None,
    outputs: Sequence[torch.Tensor] = (),
    history: Sequence[torch.Tensor] = (),
    weights: torch.Tensor | None = None,
    *,
    noise: Noise = NoiseAddress(),  # noqa: B008, the type is immutable
    out: torch.Tensor | None = None,
    seen_planes: int = 0,
    seen_dtype: torch.dtype | None = None,
    backend: str | Backend = "auto",
) -> StageResult:
    """`(x', v', h ..., y ...) = W (x, v, o ..., h ..., z_x, z_v)` at every coordinate, in one pass.

    u: state (B, 2d) or (B, 2C, H, W), float32 or float64, x half then v half; None where the stage
        reads none, then outputs[0] is (B, C, ...) in the state's dtype and gives the shape.
    outputs: network outputs (B, rC, ...) with r planes, any float dtype.
    history: earlier history rows (B, qC, ...).
    weights: float64 (R, 2 + q + s, n), columns in that order, the two noise columns last; R = 1 (on
        the CPU) shares one matrix, R = B gives each row its own.
    noise: the address of the normals z, whose first sample is row 0; or (B, 2C, ...) normals.
    out: where to write u', may be u itself.
    seen_planes: s = 0, 1 or 2 planes y that the network sees next, the last rows of W; seen_dtype:
        theirs, the state's if None.
    backend: "auto" (the fastest there is), or the name of a registered backend: "cpu", "cuda",
        "triton", "reference" or one of your own.

    Returns (u', history row (B, qC, ...) or None, y (B, sC, ...) or None). Differentiable in u,
    outputs, history and weights. Raises ValueError or TypeError before anything is written.
    """
    if u is not None:
        check_state("u", u)
        like, channels = u, u.shape[1] // 2
        columns = 4
    else:
        if not outputs:
            raise ValueError("a stage without state u needs at least one output, got none")
        like = check_data("outputs[0] of a stage without state", outputs[0])
        channels = like.shape[1]
        columns = 2
    for j, tensor in enumerate(outputs):
        columns += check_planes(f"outputs[{j}]", tensor, like, channels)
    for j, tensor in enumerate(history):
        columns += check_planes(f"history[{j}]", tensor, like, channels)
    if seen_planes or seen_dtype is not None:
        check_seen(seen_planes, seen_dtype)
    weights = check_weights(weights, like.shape[0], columns, like.device, seen_planes)
    shape = (like.shape[0], 2 * channels, *like.shape[2:])
    given = check_noise(noise, shape, like)
    if out is not None:
        check_out(out, shape, like, u, [*outputs, *history, *([] if given is None else [given])])
    found = resolve_backend(backend, like.device)
    if torch.compiler.is_compiling() or _needs_grad(u, outputs, history, weights):
        if out is not None:
            raise ValueError("out= cannot be used with gradients or under torch.compile")
        words = (0, 0, 0, 0)
        if isinstance(noise, NoiseAddress):
            seed = signed_seed(noise.seed)
            words = seed, noise.first_index, noise.stage_index, int(noise.stream)
        state, row, seen = torch.ops.cldfast.stage(
            u, list(outputs), list(history), weights, *words, given, seen_planes,
            like.dtype if seen_dtype is None else seen_dtype, found.name,
        )  # fmt: skip
        has_row = weights.shape[1] > 2 + seen_planes
        return StageResult(state, row if has_row else None, seen if seen_planes else None)
    return found.stage(
        u, outputs, history, weights, noise, out=out, seen_planes=seen_planes, seen_dtype=seen_dtype
    )


def _needs_grad(
    u: torch.Tensor | None,
    outputs: Sequence[torch.Tensor],
    history: Sequence[torch.Tensor],
    weights: torch.Tensor,
) -> bool:
    if not torch.is_grad_enabled():
        return False
    if weights.requires_grad or (u is not None and u.requires_grad):
        return True
    # A generator for `any` would take longer than all the rest.
    for tensors in (outputs, history):
        for tensor in tensors:
            if tensor.requires_grad:
                return True
    return False


# --- the registered operator -------------------------------------------------------------------
# An operator returns tensors only: missing planes are an empty tensor.

library = torch.library.Library("cldfast", "DEF")  # of all operators
library.define(
    "stage(Tensor? u, Tensor[] outputs, Tensor[] history, Tensor weights, int seed, "
    "int first_index, int stage_index, int stream, Tensor? noise, int seen_planes, "
    "ScalarType seen_dtype, str backend) -> (Tensor, Tensor, Tensor)"
)


def _implementation(  # type: ignore[no-untyped-def]
    u, outputs, history, weights, seed, first_index, stage_index, stream, noise, seen_planes,
    seen_dtype, backend,
):  # fmt: skip
    if noise is None:
        noise = NoiseAddress(seed % SEED_LIMIT, first_index, stage_index, stream)
    like = u if u is not None else outputs[0]
    found = get_backend(backend, like.device.type)
    made = found.stage(
        u, outputs, history, weights, noise, seen_planes=seen_planes, seen_dtype=seen_dtype
    )
    return tuple(made.state.new_empty(0) if planes is None else planes for planes in made)


def _fake(  # type: ignore[no-untyped-def]
    u, outputs, history, weights, seed, first_index, stage_index, stream, noise, seen_planes,
    seen_dtype, backend,
):  # fmt: skip
    like = u if u is not None else outputs[0]
    channels = like.shape[1] // 2 if u is not None else like.shape[1]

    def planes(count: int, dtype: torch.dtype) -> torch.Tensor:
        if not count:
            return like.new_empty(0)
        shape = (like.shape[0], count * channels, *like.shape[2:])
        return torch.empty(shape, dtype=dtype, device=like.device, memory_format=layout(like))

    history_planes = weights.shape[1] - 2 - seen_planes
    return (
        planes(2, like.dtype), planes(history_planes, like.dtype), planes(seen_planes, seen_dtype)
    )  # fmt: skip


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    u, outputs, history, weights, *ctx.address, noise, _, _, ctx.backend = inputs
    ctx.has_state, ctx.given = u is not None, noise is not None
    ctx.dtypes = [t.dtype for t in [*outputs, *history]]
    channels = u.shape[1] // 2 if u is not None else outputs[0].shape[1]
    ctx.planes = [t.shape[1] // channels for t in [*outputs, *history]]
    ctx.channels, ctx.outputs = channels, len(outputs)
    # The planes that the stage has read are needed for the gradient of its weights alone.
    read = [t for t in (u, *outputs, *history, noise) if t is not None]
    ctx.save_for_backward(weights, *(read if weights.requires_grad else ()))


def _backward(ctx, *grads_of_results):  # type: ignore[no-untyped-def]
    """Gradients of a stage are a stage with the transposed matrix and no noise.

    Its planes are the gradients of (u', history row, seen planes); its rows the gradients of (u,
    outputs, history), so the first two rows come back as the state and the rest as the history row.
    The gradient of the weights is a sum of products over pairs, `dW_rm = sum g_r p_m`.
    """
    weights, *read = ctx.saved_tensors
    transposed = weights.transpose(1, 2)[:, :-2, :]
    if not ctx.has_state:
        transposed = torch.cat(
            [transposed.new_zeros(weights.shape[0], 2, weights.shape[1]), transposed], 1
        )
    no_noise = transposed.new_zeros(transposed.shape[0], transposed.shape[1], 2)
    matrix = torch.cat([transposed, no_noise], 2).contiguous()
    grad_state, *others = grads_of_results
    others = [grad for grad in others if grad.numel()]  # missing planes are empty
    state, rows, _ = torch.ops.cldfast.stage(
        grad_state, others, [], matrix, 0, 0, 0, 0, None, 0, grad_state.dtype, ctx.backend
    )
    sizes = [count * ctx.channels for count in ctx.planes]
    parts = list(rows.split(sizes, dim=1)) if sizes else []
    grads = [part.to(dtype) for part, dtype in zip(parts, ctx.dtypes, strict=True)]
    return (
        state if ctx.has_state else None,
        grads[: ctx.outputs],
        grads[ctx.outputs :],
        _weight_gradient(ctx, weights, read, [grad_state, *others]) if read else None,
        *[None] * 8,
    )  # fmt: skip


def _weight_gradient(ctx, weights, read, grads):  # type: ignore[no-untyped-def]
    """`dW_rm = sum over pairs of g_r p_m`, like the weights; per row where these are.

    read: the tensors of planes that the stage has read, given normals among them. grads: of the
    planes that it has made. Addressed normals are made again.
    """
    like = grads[0]
    if not ctx.given:
        unit = torch.eye(2, 4, dtype=weights.dtype, device="cpu").roll(2, 1)[None]
        normals, _, _ = torch.ops.cldfast.stage(
            like, [], [], unit, *ctx.address, None, 0, like.dtype, ctx.backend
        )
        read = [*read, normals]

    def planes(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        rows = [t.to(like.dtype).reshape(len(t), t.shape[1] // ctx.channels, -1) for t in tensors]
        return torch.cat(rows, dim=1)

    of_rows = "rm" if weights.shape[0] == 1 else "brm"
    product = torch.einsum(f"brp,bmp->{of_rows}", planes(grads), planes(read))
    return product.reshape(weights.shape).to(weights)


library.impl("stage", _implementation, "CompositeExplicitAutograd")
torch.library.register_fake("cldfast::stage", _fake)
torch.library.register_autograd("cldfast::stage", _backward, setup_context=_setup_context)
