"""The stage operation for users and for `torch.compile`: checks, choice of backend, gradients.

`stage` calls a backend directly in eager mode without gradients; otherwise it goes through the
registered operator `torch.ops.cldfast.stage`, which has a fake kernel and an autograd formula.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence

import torch

from cldfast import reference

try:
    from cldfast.backends import cpu
except ImportError as error:  # the compiled core was not built
    _core_missing = str(error)
else:
    _core_missing = ""

BACKENDS = ("auto", "cpu", "reference")
STATE_DTYPES = (torch.float32, torch.float64)
OUTPUT_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# Seeds are 64-bit words; the operator's schema carries them as signed integers.
_SEED_LIMIT = 2**64

StageResult = tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]


class BackendWarning(UserWarning):
    """The compiled core is missing and the reference runs instead."""


_warned = False


def resolve_backend(backend: str, device: torch.device) -> str:
    """The backend that serves `device`: "cpu" or "reference" for "auto", else the name checked.

    Raises ValueError for an unknown name or one that cannot serve the device or is not built.
    """
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}; expected one of {', '.join(BACKENDS)}")
    if backend == "reference":
        return backend
    if backend == "cpu":
        if device.type != "cpu":
            raise ValueError(f"backend 'cpu' needs tensors on the CPU, got device {device}")
        if _core_missing:
            raise ValueError(f"backend 'cpu' is not available: {_core_missing}")
        return backend
    if device.type != "cpu":
        return "reference"
    if _core_missing:
        _warn_once()
        return "reference"
    return "cpu"


def missing_core() -> str:
    """Why the compiled core could not be loaded, or an empty string."""
    return _core_missing


def _warn_once() -> None:
    global _warned
    if not _warned:
        _warned = True
        warnings.warn(
            f"cldfast: the compiled core is missing ({_core_missing}); the slower plain PyTorch "
            "reference runs instead. Reinstall with a C++17 compiler at hand to build it.",
            BackendWarning,
            stacklevel=4,
        )


def _describe(tensor: torch.Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')} on {tensor.device}"


def _check_tensor(name: str, tensor: object) -> torch.Tensor:
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
    return tensor


def check_seed(seed: object) -> int:
    """The seed as an int in [0, 2^64), or TypeError / ValueError."""
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"seed must be an integer, got {type(seed).__name__}")
    if not 0 <= seed < _SEED_LIMIT:
        raise ValueError(f"seed must lie in [0, 2^64), got {seed}")
    return seed


def check_state(name: str, u: object) -> torch.Tensor:
    """A state (B, 2C, ...) of float32 or float64, not empty."""
    tensor = _check_tensor(name, u)
    if tensor.dtype not in STATE_DTYPES:
        raise TypeError(f"{name} must be float32 or float64, got {_describe(tensor)}")
    if tensor.dim() < 2 or tensor.shape[1] % 2:
        raise ValueError(
            f"{name} must be (B, 2d) or (B, 2C, H, W), x half then v half, got {_describe(tensor)}"
        )
    if tensor.numel() == 0:
        raise ValueError(f"{name} must not be empty, got {_describe(tensor)}")
    return tensor


def check_planes(name: str, tensor: object, like: torch.Tensor, channels: int) -> int:
    """The number of planes of an output or history row beside a state; raises if it misfits."""
    got = _check_tensor(name, tensor)
    shape, wanted = got.shape, like.shape
    planes, rest = divmod(shape[1], channels) if len(shape) > 1 else (0, 0)
    if rest or not planes or shape[0] != wanted[0] or shape[2:] != wanted[2:]:
        tail = "".join(f", {n}" for n in wanted[2:])
        raise ValueError(
            f"{name} must be ({wanted[0]}, r * {channels}{tail}) with r = 1 or 2 planes, "
            f"got {_describe(got)}"
        )
    if got.dtype not in OUTPUT_DTYPES:
        raise TypeError(f"{name} must be a float tensor, got {_describe(got)}")
    if got.device != like.device:
        raise ValueError(f"{name} must be on {like.device} like the state, got {_describe(got)}")
    return planes


def _check_weights(weights: object, rows: int, columns: int, device: torch.device) -> torch.Tensor:
    tensor = _check_tensor("weights", weights)
    if tensor.dtype != torch.float64 or tensor.dim() != 3:
        raise TypeError(f"weights must be float64 (R, 2 + q, n), got {_describe(tensor)}")
    shape = tensor.shape
    if shape[0] not in (1, rows) or shape[1] < 2 or shape[2] != columns:
        raise ValueError(
            f"weights must be (1 or {rows}, 2 + q, {columns}): a column per plane of state, "
            f"outputs, history and the 2 of noise, got {tuple(shape)}"
        )
    if shape[0] == 1:
        if tensor.device.type != "cpu":
            raise ValueError(f"shared weights (R = 1) must be on the CPU, got {_describe(tensor)}")
    elif tensor.device != device:
        raise ValueError(f"weights per row must be on {device}, got {_describe(tensor)}")
    if tensor.requires_grad:
        raise NotImplementedError("gradients with respect to the stage weights are not supported")
    return tensor


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
    backend: "auto", "cpu" or "reference".

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
        like = _check_tensor("outputs[0]", outputs[0])
        if like.dtype not in STATE_DTYPES or like.dim() < 2 or like.numel() == 0:
            raise ValueError(
                "outputs[0] of a stage without state must be a non-empty (B, C, ...) tensor of "
                f"float32 or float64, got {_describe(like)}"
            )
        channels = like.shape[1]
        columns = 2
    for j, tensor in enumerate(outputs):
        columns += check_planes(f"outputs[{j}]", tensor, like, channels)
    for j, tensor in enumerate(history):
        columns += check_planes(f"history[{j}]", tensor, like, channels)
    weights = _check_weights(weights, like.shape[0], columns, like.device)
    check_seed(seed)
    if first_index < 0 or not 0 <= stage_index < 2**32 or not 0 <= stream < 2**32:
        raise ValueError(
            "first_index must be >= 0, stage_index and stream in [0, 2^32), "
            f"got {first_index}, {stage_index}, {stream}"
        )
    state_shape = (like.shape[0], 2 * channels, *like.shape[2:])
    if noise is not None:
        _check_like("noise", noise, state_shape, like)
    if out is not None:
        _check_out(
            out, state_shape, like, u, [*outputs, *history, *([] if noise is None else [noise])]
        )
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


def residual(
    output: torch.Tensor,
    u: torch.Tensor,
    weights: torch.Tensor,
    *,
    seed: int = 0,
    first_index: int = 0,
    stage_index: int = 0,
    stream: int = 0,
    noise: torch.Tensor | None = None,
    backend: str = "auto",
) -> torch.Tensor:
    """`loss_i = sum |R_o o + R_u u + R_z z|^2` of each row, (B,), differentiable in the output.

    output: (B, rC, ...), r planes, any float dtype. u: state (B, 2C, ...), float32 or float64.
    weights: float64 (B, q, r + 4): per row the blocks R_o, R_u, R_z of q residual planes.
    seed, first_index, stage_index, stream: the address at which z was made, as in `stage`.
    noise: z (B, 2C, ...) itself, instead.

    Raises ValueError or TypeError before anything is computed.
    """
    check_state("u", u)
    channels = u.shape[1] // 2
    planes = check_planes("output", output, u, channels)
    shape = _check_tensor("weights", weights).shape
    if weights.dtype != torch.float64 or len(shape) != 3:
        raise TypeError(f"weights must be float64 (B, q, r + 4), got {_describe(weights)}")
    if shape[0] != u.shape[0] or shape[2] != planes + 4 or weights.device != u.device:
        raise ValueError(
            f"weights must be ({u.shape[0]}, q, {planes + 4}) on {u.device}, "
            f"got {_describe(weights)}"
        )
    check_seed(seed)
    if noise is not None:
        _check_like("noise", noise, tuple(u.shape), u)
    resolve_backend(backend, u.device)
    return reference.residual(
        output, u, weights, seed=seed, first_index=first_index, stage_index=stage_index,
        stream=stream, noise=noise,
    )  # fmt: skip


def _needs_grad(
    u: torch.Tensor | None, outputs: Sequence[torch.Tensor], history: Sequence[torch.Tensor]
) -> bool:
    if not torch.is_grad_enabled():
        return False
    if u is not None and u.requires_grad:
        return True
    return any(t.requires_grad for t in outputs) or any(t.requires_grad for t in history)


def _check_like(
    name: str, tensor: object, shape: tuple[int, ...], like: torch.Tensor
) -> torch.Tensor:
    got = _check_tensor(name, tensor)
    if got.shape != shape or got.dtype != like.dtype or got.device != like.device:
        wanted = f"{shape} {str(like.dtype).removeprefix('torch.')} on {like.device}"
        raise ValueError(f"{name} must be {wanted}, got {_describe(got)}")
    return got


def _span(tensor: torch.Tensor) -> tuple[int, int]:
    """First and last byte of a tensor's memory."""
    last = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    start = tensor.data_ptr()
    return start, start + (last + 1) * tensor.element_size()


def _check_out(
    out: object,
    shape: tuple[int, ...],
    like: torch.Tensor,
    u: torch.Tensor | None,
    inputs: Sequence[torch.Tensor],
) -> None:
    target = _check_like("out", out, shape, like)
    if target.requires_grad:
        raise ValueError("out must not require gradients")
    start, end = _span(target)
    same = u is not None and u.data_ptr() == start and u.stride() == target.stride()
    for tensor in [*inputs, *([u] if u is not None and not same else [])]:
        low, high = _span(tensor)
        if low < end and start < high:
            raise ValueError(
                "out overlaps an input in memory; it may be u itself or memory of its own"
            )


def backend_stage(name: str) -> Callable[..., StageResult]:
    """The stage function of a resolved backend; it takes its arguments as valid."""
    return cpu.stage if name == "cpu" else _reference_stage


def _reference_stage(
    u: torch.Tensor | None,
    outputs: Sequence[torch.Tensor],
    history: Sequence[torch.Tensor],
    weights: torch.Tensor,
    *,
    seed: int = 0,
    first_index: int = 0,
    stage_index: int = 0,
    stream: int = 0,
    noise: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
    cast: torch.dtype | None = None,
) -> StageResult:
    if weights.shape[0] == 1 and not all(map(math.isfinite, weights.flatten().tolist())):
        raise ValueError("weights must be finite, got NaN or infinity")
    state, row = reference.stage(
        u, outputs, history, weights,
        seed=seed, first_index=first_index, stage_index=stage_index, stream=stream, noise=noise,
    )  # fmt: skip
    if out is not None:
        state = out.copy_(state)
    return state, row, None if cast is None else state.to(cast)


# --- the registered operator -------------------------------------------------------------------
# An operator returns tensors only: a missing history row or cast is an empty tensor.

_library = torch.library.Library("cldfast", "DEF")
_library.define(
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
    signed = seed - _SEED_LIMIT if seed >= _SEED_LIMIT // 2 else seed
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
        u, outputs, history, weights, seed=seed % _SEED_LIMIT, first_index=first_index,
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
        channels_last = (
            like.dim() == 4
            and not like.is_contiguous()
            and like.is_contiguous(memory_format=torch.channels_last)
        )
        layout = torch.channels_last if channels_last else torch.contiguous_format
        return torch.empty(shape, dtype=dtype, device=like.device, memory_format=layout)

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


_library.impl("stage", _implementation, "CompositeExplicitAutograd")
torch.library.register_fake("cldfast::stage", _fake)
torch.library.register_autograd("cldfast::stage", _backward, setup_context=_setup_context)
