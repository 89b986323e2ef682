"""What every operation asks of its arguments, before any memory is touched."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from cldfast.kernels.address import NoiseAddress
from cldfast.kernels.backends.registry import CPU

STATE_DTYPES = (torch.float32, torch.float64)
# Samples from here on may leave the numbers of a seed; earlier ones would need 2^32 pairs each.
_FAR = 2**31
OUTPUT_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def describe(tensor: torch.Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')} on {tensor.device}"


def check_tensor(name: str, tensor: object) -> torch.Tensor:
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
    return tensor


def check_state(name: str, u: object) -> torch.Tensor:
    """A state (B, 2C, ...) of float32 or float64, not empty."""
    tensor = check_tensor(name, u)
    if tensor.dtype not in STATE_DTYPES:
        raise TypeError(f"{name} must be float32 or float64, got {describe(tensor)}")
    if tensor.dim() < 2 or tensor.shape[1] % 2:
        raise ValueError(
            f"{name} must be (B, 2d) or (B, 2C, H, W), x half then v half, got {describe(tensor)}"
        )
    if tensor.numel() == 0:
        raise ValueError(f"{name} must not be empty, got {describe(tensor)}")
    return tensor


def check_data(name: str, data: object) -> torch.Tensor:
    """Data (B, C, ...) of float32 or float64, not empty."""
    tensor = check_tensor(name, data)
    if tensor.dtype not in STATE_DTYPES:
        raise TypeError(f"{name} must be float32 or float64, got {describe(tensor)}")
    if tensor.dim() < 2 or tensor.numel() == 0:
        raise ValueError(f"{name} must be non-empty (B, C, ...), got {describe(tensor)}")
    return tensor


def check_planes(name: str, tensor: object, like: torch.Tensor, channels: int) -> int:
    """The number of planes of an output or history row beside a state; raises if it misfits."""
    got = check_tensor(name, tensor)
    shape, wanted = got.shape, like.shape
    planes, rest = divmod(shape[1], channels) if len(shape) == len(wanted) else (0, 0)
    # Slices of shapes take time, and rows of coordinates have nothing behind.
    inner = len(shape) == 2 or shape[2:] == wanted[2:]
    if rest or not planes or shape[0] != wanted[0] or not inner:
        tail = "".join(f", {n}" for n in wanted[2:])
        raise ValueError(
            f"{name} must be ({wanted[0]}, r * {channels}{tail}) with r = 1 or 2 planes, "
            f"got {describe(got)}"
        )
    if got.dtype not in OUTPUT_DTYPES:
        raise TypeError(f"{name} must be a float tensor, got {describe(got)}")
    if got.device != like.device:
        raise ValueError(f"{name} must be on {like.device} like the state, got {describe(got)}")
    return planes


def check_output(
    name: str, output: object, like: torch.Tensor, channels: int, planes: int, parameterization: str
) -> None:
    """ValueError or TypeError unless a network's output has so many planes beside a state."""
    got = check_planes(name, output, like, channels)
    if got != planes:
        raise ValueError(
            f"parameterization {parameterization!r} needs {name} to have {planes * channels} "
            f"along dimension 1, got {got * channels}"
        )


def check_noise(noise: object, shape: tuple[int, ...], like: torch.Tensor) -> torch.Tensor | None:
    """Normals that are given, None for an address; TypeError or ValueError for anything else."""
    if isinstance(noise, NoiseAddress):
        if noise.first_index >= _FAR:
            noise.check_room(shape[0], math.prod(shape[1:]) // 2)
        return None
    if not isinstance(noise, torch.Tensor):
        raise TypeError(f"noise must be a NoiseAddress or a tensor, got {type(noise).__name__}")
    if noise.requires_grad and torch.is_grad_enabled():
        raise NotImplementedError("gradients with respect to noise are not supported: detach it")
    return check_like("noise", noise, shape, like)


def check_weights(
    weights: object, rows: int, columns: int, device: torch.device, seen_planes: int = 0
) -> torch.Tensor:
    tensor = check_tensor("weights", weights)
    if tensor.dtype != torch.float64 or tensor.dim() != 3:
        raise TypeError(f"weights must be float64 (R, 2 + q, n), got {describe(tensor)}")
    shape = tensor.shape
    if shape[0] not in (1, rows) or shape[1] < 2 + seen_planes or shape[2] != columns:
        seen = f" + {seen_planes}" if seen_planes else ""
        raise ValueError(
            f"weights must be (1 or {rows}, 2 + q{seen}, {columns}): a column per plane of state, "
            f"outputs, history and the 2 of noise, got {tuple(shape)}"
        )
    if shape[0] == 1:
        # With a single row the matrix of all rows is that row's own: it may lie on either device.
        if tensor.device != CPU and not (rows == 1 and tensor.device == device):
            raise ValueError(f"shared weights (R = 1) must be on the CPU, got {describe(tensor)}")
    elif tensor.device != device:
        raise ValueError(f"weights per row must be on {device}, got {describe(tensor)}")
    return tensor


def check_seen(planes: object, dtype: object) -> None:
    """That a stage can make so many planes for a network, in that dtype."""
    if type(planes) is not int or not 0 <= planes <= 2:
        raise ValueError(f"seen_planes must be 0, 1 or 2, got {planes!r}")
    if dtype is not None and (dtype not in OUTPUT_DTYPES or not planes):
        raise TypeError(
            "seen_dtype must be a float dtype, and is that of 1 or 2 seen_planes, "
            f"got {dtype} of {planes}"
        )


def check_like(
    name: str, tensor: object, shape: tuple[int, ...], like: torch.Tensor
) -> torch.Tensor:
    got = check_tensor(name, tensor)
    if got.shape != shape or got.dtype != like.dtype or got.device != like.device:
        wanted = f"{shape} {str(like.dtype).removeprefix('torch.')} on {like.device}"
        raise ValueError(f"{name} must be {wanted}, got {describe(got)}")
    return got


def _span(tensor: torch.Tensor) -> tuple[int, int]:
    """First and last byte of a tensor's memory."""
    last = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    start = tensor.data_ptr()
    return start, start + (last + 1) * tensor.element_size()


def _overlaps_itself(tensor: torch.Tensor) -> bool:
    """Whether elements may share memory: a stride that does not go past what shorter ones span."""
    reach = 0
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1:
            if stride <= reach:
                return True
            reach += stride * (size - 1)
    return False


def check_out(
    out: object,
    shape: tuple[int, ...],
    like: torch.Tensor,
    u: torch.Tensor | None,
    inputs: Sequence[torch.Tensor],
) -> None:
    target = check_like("out", out, shape, like)
    if not target.is_contiguous() and _overlaps_itself(target):
        raise ValueError(
            f"out has several elements in one place (strides {target.stride()}), as an expanded "
            "tensor has: give memory of its own, such as torch.empty_like(u)"
        )
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
