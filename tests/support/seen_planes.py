"""What a stage writes for the network to see, against float64 and against its own rounding."""

from __future__ import annotations

import torch
from backend_calls import REFERENCE, Calls

from cldfast.kernels import NoiseAddress, noise_planes

F64 = torch.float64
SEEN_DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
# Narrow rows, odd widths, rows of several blocks, quads of a GPU's thread, images.
SEEN_SHAPES = [
    (5, 2), (37, 6), (3, 2 * 65), (4, 2 * 32), (2, 2 * 1031), (3, 2, 5), (4, 6, 5, 7), (3, 6, 8, 8),
    (2, 4, 3, 4, 5),
]  # fmt: skip


def channels_last(tensor: torch.Tensor) -> torch.Tensor:
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return tensor.contiguous(memory_format=formats.get(tensor.dim(), torch.contiguous_format))


def every_second_row(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.repeat_interleave(2, dim=0)[::2]


LAYOUTS = [torch.clone, channels_last, every_second_row]


def check_seen_planes(
    calls: Calls, shape: tuple[int, ...], dtype: torch.dtype, seen_dtype: torch.dtype
) -> None:
    """Of 1 and 2 seen planes, with and without a history row, by one matrix and by rows' own."""
    u = torch.randn(shape, dtype=dtype)
    output = torch.randn(shape[0], shape[1] // 2, *shape[2:]).to(seen_dtype)
    address = NoiseAddress(3, 5, 7, 2)
    parts = {"seed": 3, "first_index": 5, "stage_index": 7, "stream": 2}
    normals = torch.cat(noise_planes(output.shape, dtype, "cpu", address), dim=1)
    # Five terms of up to about 10, each rounded; then a unit of the seen dtype.
    tolerance = 1e2 * torch.finfo(dtype).eps
    for rows in {1, shape[0]}:
        for history, seen in ((0, 1), (0, 2), (1, 1), (2, 2)):
            weights = torch.randn(rows, 2 + history + seen, 5, dtype=F64)
            exact = REFERENCE.stage(
                u.to(F64), [output], [], weights, noise=normals.to(F64), seen_planes=seen
            ).seen
            # The same rows as a history row: what is seen before it is rounded.
            plain = calls.stage(u, [output], [], weights, **parts)
            for layout in LAYOUTS:
                made = calls.stage(
                    layout(u), [layout(output)], [], weights, seen_planes=seen,
                    seen_dtype=seen_dtype, **parts,
                )  # fmt: skip
                assert torch.equal(made.state, plain.state)
                channels = shape[1] // 2
                kept, seen_plain = plain.history.split([history * channels, seen * channels], dim=1)
                assert torch.equal(kept, made.history) if history else made.history is None
                assert made.seen.dtype == seen_dtype and made.seen.shape == exact.shape
                assert torch.equal(made.seen, seen_plain.to(seen_dtype))
                assert made.seen.is_contiguous() == made.state.is_contiguous()
                error = (made.seen.to(F64) - exact).abs()
                unit = torch.finfo(seen_dtype).eps * exact.abs() + 6e-8  # a subnormal float16's
                assert bool((error <= tolerance + unit).all())
