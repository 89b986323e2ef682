"""Run in a process of its own by test_triton.py, under Triton's interpreter: numerics on the CPU."""

from __future__ import annotations

import sys

import pytest
import torch
from test_core import assert_close, channels_last, matrix, planes, swapped

from cldfast.kernels.backends import reference, triton, triton_tables
from cldfast.kernels.backends.triton.residual import residual
from cldfast.kernels.philox import pair_normals, pair_words
from cldfast.kernels.time_tables import make_table

BFLOAT16, FLOAT16, FLOAT32, FLOAT64 = torch.bfloat16, torch.float16, torch.float32, torch.float64


@pytest.mark.parametrize(
    ("seed", "first_pair", "stage_index", "stream"),
    [
        (0, 0, 0, 0),
        (2**64 - 1, 2**40 + 3, 2**32 - 1, 5),
        (2**63 + 7, 2**63 - 3001, 4, 1),
        (1, 1, 1, 1),
    ],
)
def test_words_are_the_references(
    seed: int, first_pair: int, stage_index: int, stream: int
) -> None:
    made = triton.philox_words(seed, first_pair, 1501, stage_index, stream, torch.device("cpu"))
    expected = pair_words(seed, first_pair, 1501, stage_index, stream)
    assert torch.equal(made[0], expected[0]) and torch.equal(made[1], expected[1])


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64])
def test_normals_are_the_references(dtype: torch.dtype) -> None:
    weights = torch.tensor([[[0.0, 0, 1, 0], [0, 0, 0, 1]]], dtype=FLOAT64)
    u = torch.zeros(3, 2 * 1001, dtype=dtype)
    state = triton.stage(u, [], [], weights, seed=9, first_index=7, stage_index=2, stream=1)[0]
    z_x, z_v = pair_normals(9, 7 * 1001, 3003, 2, 1, dtype)
    expected = torch.cat([z_x.reshape(3, -1), z_v.reshape(3, -1)], 1)
    # The interpreter rounds a product before it adds, so the corrections of the angle's and the
    # root's rounding are lost: some 4 units in the last place of numbers up to 6.76.
    assert float((state - expected).abs().max()) <= 32 * torch.finfo(dtype).eps


SHAPES = [
    (1, 2),
    (5, 2),
    (33, 6),
    (11, 2 * 37),
    (7, 2 * 100),
    (3, 2 * 1031),
    (2, 2, 5),
    (4, 6, 5, 7),
]


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_stage(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    u = planes(shape, 2, dtype)
    outputs, history = [planes(shape, 1, dtype)], [planes(shape, 2, dtype)]
    keys = {"seed": -3, "first_index": 17, "stage_index": 4, "stream": 2}
    for noise, rows, outs in (("both", 1, 2), ("v", shape[0], 3), ("none", 1, 5), ("x", 1, 4)):
        weights = matrix(rows, outs, 5, noise)
        made = triton.stage(u, outputs, history, weights, **keys)
        expected = reference.stage(u, outputs, history, weights, **keys)
        assert_close(made[0], expected[0])
        assert_close(made[1], expected[1])


def assert_narrowed(made: torch.Tensor, exact: torch.Tensor) -> None:
    """A GPU rounds to the nearest; the interpreter cuts a bfloat16 off, by a unit at most."""
    if made.dtype == BFLOAT16:
        assert torch.allclose(made.double(), exact.double(), rtol=2.0**-7)
    else:
        assert torch.equal(made, exact.to(made.dtype))


@pytest.mark.parametrize("half", [BFLOAT16, FLOAT16])
def test_half_precision_outputs_and_copies(half: torch.dtype) -> None:
    u, output = torch.randn(9, 2 * 22), planes((9, 2 * 22), 2, half)
    weights = matrix(1, 2, 4)
    state, _, copy = triton.stage(u, [output], [], weights, cast=half)
    assert_close(state, reference.stage(u, [output], [], weights)[0])
    assert copy is not None and copy.dtype == half
    assert_narrowed(copy, state)


def test_layouts() -> None:
    u, output = planes((4, 6, 5, 7), 2, FLOAT32), planes((4, 6, 5, 7), 1, FLOAT32)
    weights = matrix(1, 3, 3)
    expected = triton.stage(u, [output], [], weights, seed=5)
    for layout in (channels_last, swapped):
        made = triton.stage(layout(u), [layout(output)], [], weights, seed=5)
        assert torch.equal(made[0], expected[0]) and torch.equal(made[1], expected[1])


def test_in_place_and_out() -> None:
    u, output, weights = torch.randn(7, 2 * 37), torch.randn(7, 37), matrix(1, 3, 3)
    expected = triton.stage(u, [output], [], weights)
    same = u.clone()
    assert triton.stage(same, [output], [], weights, out=same)[0] is same
    assert torch.equal(same, expected[0])
    row = torch.empty(7, 37)
    assert triton.stage(u, [output], [], weights, row_out=row)[1] is row
    assert torch.equal(row, expected[1])


def test_a_column_of_zeros_is_not_read() -> None:
    u, output = torch.randn(9, 4), torch.full((9, 2), float("nan"))
    weights = matrix(9, 2, 3)
    weights[:, :, 2] = 0.0
    for rows in (weights[:1], weights):
        assert torch.isfinite(triton.stage(u, [output], [], rows)[0]).all()
    weights[2, 0, 2] = 1.0
    finite = torch.isfinite(triton.stage(u, [output], [], weights)[0]).all(dim=1)
    assert torch.equal(finite, torch.arange(9) != 2)


def test_a_table_and_its_step() -> None:
    u, output, table = torch.randn(7, 2 * 37), torch.randn(7, 37), matrix(5, 3, 3)
    step, times, time = torch.tensor(2), torch.rand(4), torch.zeros(())
    for number in (2, 3, 4):
        made = triton.stage(u, [output], [], table, step=step, stage_index=6, seed=3)
        expected = reference.stage(
            u, [output], [], table[number : number + 1], stage_index=6 + number, seed=3
        )
        assert_close(made[0], expected[0])
        assert_close(made[1], expected[1])
        triton.advance(step, times, time)
        assert int(step) == number + 1 and float(time) == float(times[min(number + 1, 3)])


def test_given_noise() -> None:
    u, output, noise = torch.randn(30, 6), torch.randn(30, 3), torch.randn(30, 6)
    weights = matrix(1, 3, 3)
    made = triton.stage(u, [output], [], weights, noise=noise)
    assert_close(made[0], reference.stage(u, [output], [], weights, noise=noise)[0])


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64])
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("shape", [(5, 2), (11, 2 * 37), (3, 2 * 1031), (4, 6, 5, 7)], ids=str)
def test_residual(shape: tuple[int, ...], count: int, dtype: torch.dtype) -> None:
    output, u = planes(shape, count, dtype), planes(shape, 2, dtype)
    weights = torch.randn(shape[0], count, count + 4, dtype=FLOAT64)
    scale = torch.rand(shape[0], dtype=FLOAT64)
    keys = {"seed": 5, "first_index": 3, "stage_index": 2, "stream": 1}
    for noise in (None, planes(shape, 2, dtype)):
        leaf = output.to(FLOAT64, copy=True).requires_grad_()
        given = noise
        if noise is None:
            # The normals of the state's dtype, so that float64 tells what the sums ought to be.
            given = torch.cat(reference.noise_planes(
                (shape[0], shape[1] // 2, *shape[2:]), dtype, "cpu", **keys
            ), dim=1)  # fmt: skip
        wanted = reference.residual(leaf, u.to(FLOAT64), weights, noise=given.to(FLOAT64)) * scale
        (wanted.sum() / 7).backward()
        made, gradient = residual(
            output, u, weights, scale=scale, factor=1 / 7, noise=noise, **keys
        )
        # A coordinate's residual errs by some 8 roundings of terms up to about 10, the interpreter's
        # normals by 4 units more; a loss by that relative to its size.
        eps = torch.finfo(dtype).eps
        assert torch.allclose(made.to(FLOAT64), wanted / 7, rtol=200 * eps)
        assert float((gradient.to(FLOAT64) - leaf.grad).abs().max()) < 400 * eps * (1 + scale.max())
        total, none = residual(
            output, u, weights, scale=scale, factor=1 / 7, noise=noise, reduce=True,
            gradient=False, **keys,
        )  # fmt: skip
        assert none is None and total.shape == ()
        assert torch.allclose(total.to(FLOAT64), wanted.sum() / 7, rtol=200 * eps)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("shape", [(5, 2), (3, 2 * 1031), (4, 6, 5, 7)], ids=str)
def test_residual_of_other_planes(shape: tuple[int, ...], count: int) -> None:
    """The second half of a loss: an offset with the output's planes, and no noise."""
    output, offset = planes(shape, count, FLOAT32), planes(shape, count, FLOAT32)
    weights = torch.randn(shape[0], count, 2 * count + 2, dtype=FLOAT64)
    weights[:, :, -2:] = 0.0
    leaf = output.to(FLOAT64, copy=True).requires_grad_()
    wanted = reference.residual(leaf, offset.to(FLOAT64), weights)
    wanted.sum().backward()
    made, gradient = residual(output, offset, weights)
    # Of up to 4 terms up to about 10.
    assert torch.allclose(made.to(FLOAT64), wanted, rtol=1e-5)
    assert float((gradient.to(FLOAT64) - leaf.grad).abs().max()) < 5e-5


@pytest.mark.parametrize("half", [BFLOAT16, FLOAT16])
def test_gradient_in_the_outputs_dtype(half: torch.dtype) -> None:
    output, u = planes((9, 44), 1, half), torch.randn(9, 44)
    weights = torch.randn(9, 1, 5, dtype=FLOAT64)
    gradient = residual(output, u, weights, seed=1)[1]
    assert gradient is not None and gradient.dtype == half
    exact = residual(output.float(), u, weights, seed=1)[1]
    assert exact is not None
    assert_narrowed(gradient, exact)


def test_the_gradient_in_the_offsets_memory() -> None:
    output, offset = torch.randn(5, 74), torch.randn(5, 74)
    weights = torch.randn(5, 2, 6, dtype=FLOAT64)
    weights[:, :, -2:] = 0.0
    kept, expected = residual(output, offset, weights)
    loss, gradient = residual(output, offset, weights, overwrite=True)
    assert gradient is offset and torch.equal(offset, expected) and torch.equal(loss, kept)


@pytest.mark.parametrize("shape", [(1, 1), (3, 5)])
def test_matrices_of_a_table(shape: tuple[int, int]) -> None:
    count = shape[0] * shape[1]
    table = make_table(
        lambda t: torch.stack([(1 + t) * t ** (k / 2 - 3) for k in range(count)], 1).reshape(
            -1, *shape
        ),
        3.7,
    )
    assert table is not None
    for rows in (1, 7, 300):
        t = 3.7 * torch.rand(rows, dtype=FLOAT64) ** 6 + 1e-8
        t[:1] = 3.7 * (1.0 + 2.0**-24)  # the rounding of a float32
        # Two Horner's rules of 16 terms.
        assert torch.allclose(triton_tables.matrices(table.at(t)), table(t), rtol=1e-14, atol=0.0)
    assert triton_tables.matrices(table.at(torch.tensor([1.0, 3.8]))) is None


def test_too_many_residual_planes_are_refused() -> None:
    with pytest.raises(NotImplementedError, match="2 planes at most, got 3"):
        residual(torch.zeros(2, 2), torch.zeros(2, 4), torch.zeros(2, 3, 5, dtype=FLOAT64))


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-q", "-x", "-p", "no:cacheprovider"]))
