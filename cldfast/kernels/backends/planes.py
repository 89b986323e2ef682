"""Tensors as the compiled kernels see them: an address, planes and strides. Nothing is computed."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

# Dtype codes of csrc/shared/call.h.
CODES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
WORD = 2**64 - 1

Description = tuple[int, ...]


def strided(tensor: torch.Tensor, channels: int) -> Description | None:
    """The kernels' description of a tensor that is not contiguous, or None where it has none.

    The positions of a channel must form one arithmetic progression of addresses, as they do in
    batch slices, channel slices and channels-last tensors.
    """
    shape, strides = tensor.shape, tensor.stride()
    inner_stride = expected = None
    for size, stride in zip(reversed(shape[2:]), reversed(strides[2:]), strict=True):
        if size == 1:
            continue
        if inner_stride is None:
            inner_stride = stride
        elif stride != expected:
            return None
        expected = stride * size
    return (
        tensor.data_ptr(), shape[1] // channels, CODES[tensor.dtype],
        strides[0], strides[1] * channels, strides[1], inner_stride or 0,
    )  # fmt: skip


def describe(
    tensor: torch.Tensor, channels: int, inner: int, keep: list[torch.Tensor]
) -> Description:
    """What a kernel wants to know of an input; `keep` holds a copy that it needs to live."""
    if not tensor.is_contiguous():
        described = strided(tensor, channels)
        if described is not None:
            return described
        tensor = tensor.contiguous()
        keep.append(tensor)
    planes, width = tensor.shape[1] // channels, channels * inner
    return (tensor.data_ptr(), planes, CODES[tensor.dtype], planes * width, width, inner, 1)


def layout(like: torch.Tensor) -> torch.memory_format:
    """The memory format of new planes beside `like`'s."""
    if not like.is_contiguous():
        for dims, other in ((4, torch.channels_last), (5, torch.channels_last_3d)):
            if like.dim() == dims and like.is_contiguous(memory_format=other):
                return other
    return torch.contiguous_format


def room(planes: int, channels: int, dtype: torch.dtype, like: torch.Tensor) -> torch.Tensor:
    """Room for planes of the shape of `like`'s, in its memory format."""
    size, old, *rest = like.shape
    count = planes * channels
    if like.dtype == dtype and like.is_contiguous():  # the usual case, by the calls that cost least
        return torch.empty_like(like) if old == count else like.new_empty(size, count, *rest)
    return torch.empty(
        (size, count, *rest), dtype=dtype, device=like.device, memory_format=layout(like)
    )


def writable(out: torch.Tensor, channels: int) -> torch.Tensor:
    """`out`, or room to be copied to it where the kernels cannot describe its layout."""
    if out.is_contiguous() or strided(out, channels) is not None:
        return out
    return torch.empty_like(out, memory_format=torch.contiguous_format)


def gradient_room(output: torch.Tensor, channels: int, memory: torch.Tensor | None) -> torch.Tensor:
    """Room for the gradient of an output, in its layout: `memory` where that is such, else new."""
    # Autograd saves no tensors of inference mode.
    if (
        memory is not None
        and memory.dtype == output.dtype
        and memory.shape == output.shape
        and not memory.is_inference()
        and memory.is_contiguous(memory_format=layout(output))
    ):
        torch.autograd.graph.increment_version(memory)  # for whoever has saved it for a backward
        return memory
    return room(output.shape[1] // channels, channels, output.dtype, output)


def current(device: torch.device) -> AbstractContextManager[Any]:
    """Makes a GPU PyTorch's current one, which is what kernels' runtimes go by."""
    if device.type != "cuda" or device.index in (None, torch.cuda.current_device()):
        return nullcontext()
    return torch.cuda.device(device)
