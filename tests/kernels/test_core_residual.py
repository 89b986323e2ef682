"""The compiled residual kernel against the reference: layouts, dtypes, sums, threads, every level."""

from __future__ import annotations

import math
from typing import NamedTuple

import pytest
import torch
from backend_calls import at_level
from core_calls import LEVELS

from cldfast import _core
from cldfast.kernels.backends.reference import ReferenceBackend

BFLOAT16, FLOAT16, FLOAT32, FLOAT64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
# Rows below a vector, below and above a piece of 512, odd widths, one row, one coordinate.
SHAPES = [
    (1, 2), (5, 2), (700, 4), (129, 6), (40, 10), (33, 16), (20, 2 * 31), (11, 2 * 37), (9, 2 * 65),
    (7, 2 * 100), (3, 2 * 512), (3, 2 * 513), (3, 2 * 1031), (2, 2, 5), (4, 6, 5, 7), (2, 6, 33, 41),
    (2, 4, 3, 4, 5), (2, 2 * 24, 6, 5), (3, 2, 4, 4), (6, 8, 1, 1),
]  # fmt: skip
Tensors = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def case(
    shape: tuple[int, ...],
    outputs: int = 1,
    q: int = 1,
    dtype: torch.dtype = FLOAT32,
    offsets: int | None = None,
) -> Tensors:
    """A random output, offset and weights per row, of so many planes; q offsets by default."""
    channels = shape[1] // 2

    def planes(count: int) -> torch.Tensor:
        return torch.randn(shape[0], count * channels, *shape[2:], dtype=FLOAT64).to(dtype)

    offsets = q if offsets is None else offsets
    weights = torch.randn(shape[0], q, outputs + offsets, dtype=FLOAT64)
    return planes(outputs), planes(offsets), weights


class Expected(NamedTuple):
    """In float64: losses, gradients, and the same sums with every term taken positive."""

    loss: torch.Tensor
    gradient: torch.Tensor
    loss_size: torch.Tensor
    gradient_size: torch.Tensor


def expected(tensors: Tensors) -> Expected:
    """By the reference in float64."""

    def both(o: torch.Tensor, *others: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        o = o.detach().requires_grad_()
        loss, _ = ReferenceBackend().residual(o, *others)
        return loss.detach(), torch.autograd.grad(loss.sum(), o)[0]

    planes = [tensor.to(FLOAT64) for tensor in tensors]
    return Expected(*both(*planes), *both(*[tensor.nan_to_num().abs() for tensor in planes]))


def assert_close(
    made: tuple[torch.Tensor, torch.Tensor | None], wanted: Expected, tensors: Tensors
) -> None:
    """Each product and sum of a residual's few terms rounds once, a half-precision gradient again."""
    output, offset, weights = tensors
    bound = (weights.shape[2] + 2) * torch.finfo(offset.dtype).eps
    loss, gradient = made
    assert loss.dtype == offset.dtype and loss.shape == (offset.shape[0],)
    assert bool(((loss - wanted.loss).abs() <= bound * wanted.loss_size).all())
    assert gradient is not None
    assert gradient.dtype == output.dtype and gradient.shape == output.shape
    error = (gradient.to(FLOAT64) - wanted.gradient).abs()
    # Below float16's normal numbers an error is absolute.
    rounding = torch.finfo(output.dtype).eps * wanted.gradient.abs() + 6e-8 * (
        output.dtype == FLOAT16
    )
    assert bool((error <= bound * wanted.gradient_size + rounding).all())


def channels_last(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.dim() == 5:
        return tensor.contiguous(memory_format=torch.channels_last_3d)
    return tensor.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_the_reference(shape: tuple[int, ...], dtype: torch.dtype, level: str) -> None:
    residual = at_level(level).residual
    for outputs, q, offsets in ((1, 1, 1), (2, 2, 2), (1, 2, 2), (2, 1, 1), (2, 3, 4), (4, 2, 1)):
        tensors = case(shape, outputs, q, dtype, offsets)
        made = residual(*tensors)
        assert_close(made, expected(tensors), tensors)
        loss, none = residual(*tensors, gradient=False)
        assert none is None and torch.equal(loss, made[0])


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("shape", [(50, 4), (9, 2 * 70)], ids=str)
def test_unused_columns_are_not_read(shape: tuple[int, ...], level: str) -> None:
    """Each column of the offset left out in turn; the offset holds NaN there."""
    residual = at_level(level).residual
    for planes in (1, 2):
        for column in range(2):
            output, offset, weights = case(shape, planes, planes, offsets=2)
            weights[:, :, planes + column] = 0.0
            wanted = expected((output, offset, weights))
            offset.chunk(2, 1)[column].fill_(math.nan)
            made = residual(output, offset, weights)
            assert_close(made, wanted, (output, offset, weights))
    output, offset, weights = case(shape)
    weights.zero_()
    loss, gradient = residual(output, offset, weights)
    assert gradient is not None and not loss.any() and not gradient.any()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("half", [BFLOAT16, FLOAT16, FLOAT32, FLOAT64])
@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64])
@pytest.mark.parametrize("shape", [(50, 4), (9, 22), (5, 2 * 70), (3, 6, 5, 5)], ids=str)
def test_dtypes(shape: tuple[int, ...], dtype: torch.dtype, half: torch.dtype, level: str) -> None:
    output, offset, weights = case(shape, 2, 2, dtype)
    tensors = (output.to(half), offset, weights)
    assert_close(at_level(level).residual(*tensors), expected(tensors), tensors)


@pytest.mark.parametrize("level", LEVELS)
def test_scale_factor_and_sum(level: str) -> None:
    residual = at_level(level).residual
    for shape in ((40, 6), (7, 2 * 700)):
        output, offset, weights = case(shape)
        scale = torch.rand(shape[0], dtype=FLOAT64)
        loss, gradient = residual(output, offset, weights, scale=scale, factor=0.25)
        other = weights * (0.25 * scale).sqrt()[:, None, None]
        plain = residual(output, offset, other)
        assert torch.equal(loss, plain[0])
        assert gradient is not None and torch.equal(gradient, plain[1])
        total, _ = residual(output, offset, weights, scale=scale, factor=0.25, reduce=True)
        # The rows are rounded to float32, their sum only once.
        assert total.shape == () and torch.allclose(total.double(), loss.double().sum(), rtol=2e-7)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("planes", [1, 2])
@pytest.mark.parametrize(
    "shape", [(4, 6, 5, 7), (3, 4, 31, 33), (2, 2 * 24, 6, 5), (2, 6, 3, 4, 5)], ids=str
)
def test_channels_last(shape: tuple[int, ...], planes: int, level: str) -> None:
    residual = at_level(level).residual
    output, offset, weights = case(shape, planes, planes)
    wanted = expected((output, offset, weights))
    plain = residual(output, offset, weights)
    for tensors in (
        (channels_last(output), channels_last(offset)),
        (output, channels_last(offset)),
    ):
        made = residual(*tensors, weights)
        assert_close(made, wanted, (output, offset, weights))
        assert made[1] is not None and torch.equal(made[1], plain[1])
        assert made[1].stride() == tensors[0].stride()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("shape", [(12, 4), (12, 2 * 70), (12, 6, 5, 7)], ids=str)
def test_views(shape: tuple[int, ...], level: str) -> None:
    """Batch slices, channel slices, expanded rows, and layouts that are no progression."""
    residual = at_level(level).residual
    big, wide = torch.randn(24, *shape[1:]), torch.randn(12, 3 * shape[1], *shape[2:])
    c = shape[1] // 2
    views = [
        (wide[:, c : 2 * c], big[::2]),
        (wide[:1, :c].expand(12, *wide[0, :c].shape), big[1:13]),
        (wide[:, 3 * c : 5 * c], big[:12].expand(12, *shape[1:])),
    ]
    if len(shape) == 4:
        turned = wide.transpose(-1, -2).contiguous().transpose(-1, -2)
        views.append((turned[:, :c], channels_last(big)[::2]))
    for output, offset in views:
        planes = output.shape[1] // c
        weights = torch.randn(12, planes, planes + 2, dtype=FLOAT64)
        made = residual(output, offset, weights)
        plain = residual(output.contiguous(), offset.contiguous(), weights)
        assert torch.equal(made[0], plain[0])
        assert made[1] is not None and torch.equal(made[1], plain[1])
        # Weights may be any view too.
        stored = weights.transpose(1, 2).contiguous().transpose(1, 2)
        assert torch.equal(residual(output, offset, stored)[0], made[0])


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("width", [1, 2, 7, 37, 300, 1031])
def test_splitting_a_batch_changes_nothing(width: int, level: str) -> None:
    residual = at_level(level).residual
    output, offset, weights = case((50, 2 * width))
    whole = residual(output, offset, weights)
    start = 0
    for rows in (1, 2, 7, 40):
        part = slice(start, start + rows)
        made = residual(output[part], offset[part], weights[part])
        assert whole[1] is not None and made[1] is not None
        assert torch.equal(made[0], whole[0][part]) and torch.equal(made[1], whole[1][part])
        start += rows


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    "shape", [(20_001, 2), (10_001, 6), (301, 202), (1, 6, 101, 103), (40, 6, 21, 23)], ids=str
)
def test_threads_change_nothing(shape: tuple[int, ...], level: str) -> None:
    residual = at_level(level).residual
    output, offset, weights = case(shape)
    assert offset.numel() >= _core.SERIAL_PAIRS
    before = torch.get_num_threads()
    try:
        layouts = [(output, offset)]
        if len(shape) == 4:
            layouts.append((channels_last(output), channels_last(offset)))
        for tensors in layouts:
            made = []
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                rows = residual(*tensors, weights)
                total = residual(*tensors, weights, reduce=True)
                made.append((*rows, total[0]))
            for other in made[1:]:
                assert all(map(torch.equal, made[0], other))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("level", LEVELS)
def test_a_million_coordinates_are_summed_exactly(level: str) -> None:
    """Against `math.fsum` of the squares of the residuals, which the gradient is twice."""
    residual = at_level(level).residual
    output, offset, weights = case((2, 2, 1000, 1000))
    loss, gradient = residual(output, offset, weights)
    assert gradient is not None
    for i in range(2):
        r = (gradient[i].double() / (2 * weights[i, 0, 0].float().double())).flatten()
        exact = math.fsum((r * r).tolist())
        # The gradient is rounded once more, the loss once.
        assert float(loss[i]) == pytest.approx(exact, rel=2e-7)


def test_a_misfit_of_planes_and_weights_is_refused() -> None:
    residual = at_level().residual
    output, offset, weights = case((4, 4))
    with pytest.raises(ValueError, match="the weights do not fit the planes"):
        residual(output, offset, weights[:, :, :1].contiguous())
    for planes in (40, 32):
        wide = torch.randn(4, planes * 2)
        with pytest.raises(ValueError, match="at most 32 planes"):
            residual(wide, offset, torch.randn(4, 1, planes + 1, dtype=FLOAT64))
