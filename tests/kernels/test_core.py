"""The compiled stage kernel against the reference: layouts, dtypes, skips, threads, every level."""

from __future__ import annotations

import math

import pytest
import torch
from backend_calls import REFERENCE, at_level
from core_calls import LEVELS

from cldfast import _core
from cldfast.kernels import NoiseAddress, noise_planes

BFLOAT16, FLOAT16, FLOAT32, FLOAT64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
# Some 5 terms of size up to about 10, each rounded.
TOLERANCE = {FLOAT32: 2e-5, FLOAT64: 5e-14}
# Rows below and above the width that is worked on in place, odd widths, one row, one coordinate.
SHAPES = [
    (1, 2), (5, 2), (700, 4), (129, 6), (40, 10), (33, 16), (11, 2 * 37), (9, 2 * 63), (9, 2 * 65),
    (7, 2 * 100), (3, 2 * 1031), (2, 2, 5), (4, 6, 5, 7), (2, 6, 33, 41), (2, 4, 3, 4, 5),
    (2, 2 * 24, 6, 5), (3, 2, 4, 4), (6, 8, 1, 1),
]  # fmt: skip


def planes(shape: tuple[int, ...], count: int, dtype: torch.dtype) -> torch.Tensor:
    """`count` random planes to go with a state of this shape."""
    return torch.randn(shape[0], count * shape[1] // 2, *shape[2:], dtype=FLOAT64).to(dtype)


def matrix(rows: int, outs: int, ins: int, noise: str = "both") -> torch.Tensor:
    """Random weights; `noise` says which of the last two columns are not zero."""
    weights = torch.randn(rows, outs, ins + 2, dtype=FLOAT64)
    if noise in ("none", "v"):
        weights[:, :, -2] = 0.0
    if noise in ("none", "x"):
        weights[:, :, -1] = 0.0
    return weights


def assert_close(made: torch.Tensor | None, expected: torch.Tensor | None) -> None:
    if expected is None:
        assert made is None
        return
    assert made is not None and made.shape == expected.shape and made.dtype == expected.dtype
    assert float((made - expected).abs().max()) <= TOLERANCE[expected.dtype]


def channels_last(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.dim() == 5:
        return tensor.contiguous(memory_format=torch.channels_last_3d)
    return tensor.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_the_reference(shape: tuple[int, ...], dtype: torch.dtype, level: str) -> None:
    cpu = at_level(level)
    u = planes(shape, 2, dtype)
    outputs, history = [planes(shape, 1, dtype)], [planes(shape, 2, dtype)]
    for noise in ("both", "x", "v", "none"):
        for rows in {1, shape[0]}:
            weights = matrix(rows, 4, 5, noise)
            keys = {"seed": -3, "first_index": 17, "stage_index": 4, "stream": 2}
            made = cpu.stage(u, outputs, history, weights, **keys)
            expected = REFERENCE.stage(u, outputs, history, weights, **keys)
            assert_close(made[0], expected[0])
            assert_close(made[1], expected[1])
            assert made[2] is None


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("outs", [1, 2, 3, 4, 5, 12])
@pytest.mark.parametrize("ins", [0, 1, 2, 3, 4, 5, 6, 7, 8, 14])
def test_any_numbers_of_planes(ins: int, outs: int, level: str) -> None:
    cpu = at_level(level)
    # The backend gives out two state planes at least; fewer are the core's own affair.
    u = torch.randn(7, 2 * 19)
    history = [torch.randn(7, 19) for _ in range(ins)]
    weights = matrix(1, max(outs, 2), 2 + ins)
    if outs == 1:
        weights[:, 1] = 0.0
    made = cpu.stage(u, [], history, weights, seed=1)
    expected = REFERENCE.stage(u, [], history, weights, seed=1)
    assert_close(made[0], expected[0])
    assert_close(made[1], expected[1])


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("output_dtype", [FLOAT32, FLOAT64, BFLOAT16, FLOAT16])
@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64])
@pytest.mark.parametrize("shape", [(50, 4), (9, 22), (5, 2 * 70), (3, 6, 5, 5)], ids=str)
def test_dtypes(
    shape: tuple[int, ...], dtype: torch.dtype, output_dtype: torch.dtype, level: str
) -> None:
    u, output = planes(shape, 2, dtype), planes(shape, 2, output_dtype)
    weights = matrix(1, 2, 4)
    state, _, copy = at_level(level).stage_and_copy(u, [output], [], weights, output_dtype)
    assert_close(state, REFERENCE.stage(u, [output], [], weights)[0])
    assert copy is not None and copy.dtype == output_dtype
    assert torch.equal(copy, state.to(output_dtype))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("half", [BFLOAT16, FLOAT16])
def test_half_precision_conversions_are_torchs(half: torch.dtype, level: str) -> None:
    every = torch.arange(2**16, dtype=torch.int32).to(torch.uint16).view(half).reshape(1, -1)
    u = torch.zeros(1, 2 * 2**16)
    weights = torch.tensor([[[0.0, 0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0, 0.0]]], dtype=FLOAT64)
    state, _, copy = at_level(level).stage_and_copy(u, [every], [], weights, half)
    widened, narrowed = state[:, : 2**16], copy[:, : 2**16]
    assert torch.equal(widened.nan_to_num(nan=7e4), every.float().nan_to_num(nan=7e4))
    assert torch.equal(narrowed.isnan(), every.isnan())
    assert torch.equal(narrowed.nan_to_num(nan=1.0), every.nan_to_num(nan=1.0))

    # Narrowing: values between, at and next to the midpoints, and beyond the range.
    finite = every[every.isfinite()].float().sort().values
    middle = (finite[1:] + finite[:-1]) / 2
    inf = torch.tensor(math.inf)
    largest = torch.tensor([65504.0, 65519.9, 65520.0, 65536.0, 1e38, math.inf])
    above, below = torch.nextafter(middle, inf), torch.nextafter(middle, -inf)
    tiny = torch.randn(1001) * 1e-6
    values = torch.cat([middle, above, below, largest, -largest, tiny]).reshape(1, -1)
    state, _, copy = at_level(level).stage_and_copy(None, [values], [], weights[:, :, 2:], half)
    assert torch.equal(state[:, : values.shape[1]], values)
    assert torch.equal(copy[:, : values.shape[1]], values.to(half))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("rows", ["shared", "own"])
@pytest.mark.parametrize(
    "shape", [(4, 6, 5, 7), (3, 4, 31, 33), (2, 2 * 24, 6, 5), (2, 6, 3, 4, 5)], ids=str
)
def test_channels_last_changes_nothing_but_the_layout(
    shape: tuple[int, ...], rows: str, level: str
) -> None:
    u = planes(shape, 2, FLOAT32)
    outputs = [planes(shape, 1, FLOAT32), planes(shape, 2, BFLOAT16)]
    history = [planes(shape, 2, FLOAT32)]
    weights = matrix(1 if rows == "shared" else shape[0], 3, 7)
    cpu = at_level(level)
    expected = cpu.stage_and_copy(u, outputs, history, weights, FLOAT16, seed=5)
    images = [channels_last(tensor) for tensor in (u, *outputs, *history)]
    made = cpu.stage_and_copy(images[0], images[1:3], images[3:], weights, FLOAT16, seed=5)
    for tensor, other in zip(made, expected, strict=True):
        assert torch.equal(tensor, other)
        assert channels_last(tensor).stride() == tensor.stride()
    # One plane in another layout than the rest.
    mixed = cpu.stage(images[0], outputs, images[3:], weights, seed=5)
    assert torch.equal(mixed[0], expected[0])


def swapped(image: torch.Tensor) -> torch.Tensor:
    """The same image with its last two dimensions swapped in memory, a layout that is copied."""
    return image.transpose(-1, -2).contiguous().transpose(-1, -2)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("shape", [(12, 4), (12, 2 * 70), (12, 6, 5, 7)], ids=str)
def test_views(shape: tuple[int, ...], level: str) -> None:
    """Batch slices, channel slices, expanded rows, and layouts that are no progression."""
    cpu = at_level(level)
    big = planes((2 * shape[0], *shape[1:]), 2, FLOAT32)
    wide = planes(shape, 6, FLOAT32)
    c = shape[1] // 2
    one_row = wide[:1, :c].expand(12, *wide[0, :c].shape)
    views = [
        (big[::2], wide[:, c : 2 * c], wide[:, 3 * c : 5 * c]),
        (big[1 : shape[0] + 1], wide[:, :c], one_row),
    ]
    if len(shape) == 4:
        views.append((swapped(big[::2]), swapped(wide[:, :c]), channels_last(wide)[:, :c]))
        views.append((channels_last(big)[::2], channels_last(wide)[:, :c], wide[:, :c]))
    for tensors in views:
        u, output, row = tensors
        dense = [tensor.contiguous() for tensor in tensors]
        for rows in (1, 12):
            weights = matrix(rows, 3, 2 + 1 + row.shape[1] // c)
            made = cpu.stage(u, [output], [row], weights, seed=1)
            expected = cpu.stage(dense[0], dense[1:2], dense[2:], weights, seed=1)
            assert torch.equal(made[0], expected[0])
            assert torch.equal(made[1], expected[1])


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_out_and_in_place(shape: tuple[int, ...], level: str) -> None:
    cpu = at_level(level)
    u, output = planes(shape, 2, FLOAT32), planes(shape, 1, FLOAT32)
    for rows in {1, shape[0]}:
        weights = matrix(rows, 2, 3)
        expected = cpu.stage(u, [output], [], weights)[0]
        out = torch.full_like(u, math.nan)
        assert cpu.stage(u, [output], [], weights, out=out)[0] is out
        assert torch.equal(out, expected)
        for same in (u.clone(), u.repeat_interleave(2, dim=0)[::2]):
            assert cpu.stage(same, [output], [], weights, out=same)[0] is same
            assert torch.equal(same, expected)
        if len(shape) in (4, 5):
            same = channels_last(u.clone())
            cpu.stage(same, [output], [], weights, out=same)
            assert torch.equal(same, expected)
            same = swapped(u)
            assert cpu.stage(same, [output], [], weights, out=same)[0] is same
            assert torch.equal(same, expected)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("shape", [(9, 4), (5, 2 * 70)], ids=str)
def test_a_column_of_zeros_is_not_read(shape: tuple[int, ...], level: str) -> None:
    cpu = at_level(level)
    u, output = planes(shape, 2, FLOAT32), planes(shape, 1, FLOAT32)
    bad = torch.full_like(output, math.inf)
    bad[0, 0] = math.nan
    weights = matrix(shape[0], 2, 4)
    weights[:, :, 3] = 0.0
    weights[1, :, :] = 0.0
    made = cpu.stage(u, [output], [bad], weights)[0]
    assert torch.isfinite(made).all()
    assert not made[1].any()
    # Where one row uses it, it is read in all, and multiplied by zeros in others.
    weights[2, 0, 3] = 1.0
    fine = torch.randn_like(output)
    made = cpu.stage(u, [output], [fine], weights)[0]
    assert not torch.isfinite(cpu.stage(u, [output], [bad], weights)[0][2]).all()
    weights[2, 0, 3] = 0.0
    wanted = cpu.stage(u, [output], [bad], weights)[0]
    others = torch.arange(shape[0]) != 2
    assert torch.equal(made[others], wanted[others])
    shared = cpu.stage(u, [output], [bad], weights[:1])[0]
    assert torch.isfinite(shared).all()


@pytest.mark.parametrize("level", LEVELS)
def test_given_noise_replaces_the_addressed(level: str) -> None:
    cpu = at_level(level)
    u, output, noise = torch.randn(30, 6), torch.randn(30, 3), torch.randn(30, 6)
    for weights in (matrix(1, 3, 3), matrix(30, 3, 3)):
        made = cpu.stage(u, [output], [], weights, noise=noise)
        expected = REFERENCE.stage(u, [output], [], weights, noise=noise)
        assert_close(made[0], expected[0])
        assert_close(made[1], expected[1])
    addressed = torch.cat(noise_planes((30, 3), FLOAT32, "cpu", NoiseAddress(6, 2)), dim=1)
    made = cpu.stage(u, [output], [], weights, noise=addressed)
    assert_close(made[0], cpu.stage(u, [output], [], weights, seed=6, first_index=2)[0])


@pytest.mark.parametrize("level", LEVELS)
def test_without_a_state(level: str) -> None:
    cpu = at_level(level)
    output, row = torch.randn(20, 3, 4, 4), torch.randn(20, 6, 4, 4)
    for tensors in ((output, row), (channels_last(output), channels_last(row))):
        weights = matrix(20, 2, 3)
        made = cpu.stage(None, [tensors[0]], [tensors[1]], weights, seed=2)[0]
        assert_close(made, REFERENCE.stage(None, [output], [row], weights, seed=2)[0])
        assert made.is_contiguous() == tensors[0].is_contiguous()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("first_index", [0, 2**31, 2**32 + 1, 2**40 + 3, (2**63 - 1) // 37 - 50])
def test_splitting_a_batch_changes_nothing(first_index: int, level: str) -> None:
    cpu = at_level(level)
    # An odd width: every second row begins at the second pair of a counter.
    u, output, weights = torch.randn(50, 2 * 37), torch.randn(50, 37), matrix(1, 2, 3)
    keys = {"seed": 2**64 - 1, "stage_index": 2**32 - 1, "stream": 3}
    whole = cpu.stage(u, [output], [], weights, first_index=first_index, **keys)[0]
    start = 0
    for rows in (1, 2, 7, 40):
        part = slice(start, start + rows)
        made = cpu.stage(
            u[part], [output[part]], [], weights, first_index=first_index + start, **keys
        )[0]
        assert torch.equal(made, whole[part])
        start += rows
    expected = REFERENCE.stage(u, [output], [], weights, first_index=first_index, **keys)[0]
    assert_close(whole, expected)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    "shape", [(20_001, 2), (10_001, 6), (301, 202), (1, 6, 101, 103), (40, 6, 21, 23)], ids=str
)
def test_threads_change_nothing(shape: tuple[int, ...], level: str) -> None:
    cpu = at_level(level)
    u, output = planes(shape, 2, FLOAT32), planes(shape, 1, FLOAT32)
    assert u.numel() // 2 >= _core.SERIAL_PAIRS
    before = torch.get_num_threads()
    try:
        for rows in {1, shape[0]}:
            weights = matrix(rows, 3, 3)
            layouts = [[u, output]]
            if len(shape) == 4:
                layouts.append([channels_last(u), channels_last(output)])
            for images in layouts:
                made = []
                for threads in (1, 2, 3):
                    torch.set_num_threads(threads)
                    made.append(cpu.stage(images[0], images[1:], [], weights, seed=9))
                assert torch.equal(made[0][0], made[1][0]) and torch.equal(made[0][0], made[2][0])
                assert torch.equal(made[0][1], made[1][1]) and torch.equal(made[0][1], made[2][1])
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("level", LEVELS)
def test_large_planes_are_written_past_the_cache(level: str) -> None:
    cpu = at_level(level)
    # 20 bytes a pair: more than the kernel takes the caches to hold; odd rows are not aligned.
    for shape in ((2, 2 * 900_001), (1, 2 * 1_800_000)):
        u, output, weights = planes(shape, 2, FLOAT32), planes(shape, 1, FLOAT32), matrix(1, 2, 3)
        made = cpu.stage(u, [output], [], weights)[0]
        same = u.clone()
        assert torch.equal(cpu.stage(same, [output], [], weights, out=same)[0], made)


def test_a_misfit_of_planes_and_weights_is_refused() -> None:
    cpu = at_level()
    u, weights = torch.randn(4, 4), matrix(1, 2, 3)
    with pytest.raises(ValueError, match="the weights do not fit the planes"):
        cpu.stage(u, [], [], weights)
    with pytest.raises(ValueError, match="weights must hold 1 matrix, or one for each row"):
        cpu.stage(u, [], [], matrix(3, 2, 2))
    with pytest.raises(ValueError, match="at most 32 planes"):
        cpu.stage(u, [torch.randn(4, 80)], [], matrix(1, 2, 42))
