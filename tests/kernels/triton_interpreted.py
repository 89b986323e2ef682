"""Run in a process of its own by test_triton.py, under Triton's interpreter: numerics on the CPU."""

from __future__ import annotations

import sys

import pytest
import torch
from backend_calls import REFERENCE, Calls
from test_core import assert_close, channels_last, matrix, planes, swapped

from cldfast import CLD, make_plan
from cldfast.kernels import NoiseAddress, recorded_step
from cldfast.kernels.backends.reference import ReferenceBackend
from cldfast.kernels.backends.triton.backend import TritonBackend
from cldfast.kernels.philox import pair_normals, pair_words
from cldfast.kernels.time_tables import make_table
from cldfast.sampling.steps import Steps, look, plan_tables, planes_seen

BACKEND = TritonBackend()
triton = Calls(BACKEND)
residual = BACKEND.residual

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
    address = NoiseAddress(seed, first_pair, stage_index, stream)
    made = BACKEND.words(address, 1501, torch.device("cpu"))
    expected = pair_words(address, 1501)
    assert torch.equal(made[0], expected[0]) and torch.equal(made[1], expected[1])


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64])
def test_normals_are_the_references(dtype: torch.dtype) -> None:
    weights = torch.tensor([[[0.0, 0, 1, 0], [0, 0, 0, 1]]], dtype=FLOAT64)
    u = torch.zeros(3, 2 * 1001, dtype=dtype)
    state = triton.stage(u, [], [], weights, seed=9, first_index=7, stage_index=2, stream=1)[0]
    z_x, z_v = pair_normals(NoiseAddress(9, 7 * 1001, 2, 1), 3003, dtype)
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
        expected = REFERENCE.stage(u, outputs, history, weights, **keys)
        assert_close(made[0], expected[0])
        assert_close(made[1], expected[1])


def assert_narrowed(made: torch.Tensor, exact: torch.Tensor) -> None:
    """A GPU rounds to the nearest; the interpreter cuts a bfloat16 off, by a unit at most."""
    if made.dtype == BFLOAT16:
        assert torch.allclose(made.double(), exact.double(), rtol=2.0**-7)
    else:
        assert torch.equal(made, exact.to(made.dtype))


@pytest.mark.parametrize("half", [BFLOAT16, FLOAT16])
def test_half_precision_outputs_and_seen_planes(half: torch.dtype) -> None:
    for shape in ((9, 2 * 22), (4, 6, 5, 7)):
        u, output = torch.randn(shape), planes(shape, 2, half)
        for rows, outs in ((1, 2), (shape[0], 3)):
            weights = matrix(rows, outs, 4)
            wanted = REFERENCE.stage(u, [output], [], weights)
            for layout in [torch.clone] + [channels_last] * (len(shape) == 4):
                made = triton.stage_and_copy(layout(u), [layout(output)], [], weights, half)
                assert_close(made.state, wanted.state)
                assert_close(made.history, wanted.history)
                assert made.seen is not None and made.seen.dtype == half
                assert_narrowed(made.seen, made.state)


@pytest.mark.parametrize("form", ["denoiser", "edm"])
@pytest.mark.parametrize("solver", ["em", "sscs", "multistep"])
def test_runs_of_networks_that_see_y(solver: str, form: str) -> None:
    """State and what the next network sees, stage by stage, against the reference: to 1e-6."""
    plan = make_plan(CLD(x_noise=0.2), solver, 5, t_min=0.02, parameterization=form)
    start, ends = torch.randn(9, 2 * 5), []
    for backend in (BACKEND, REFERENCE.backend):
        tables, seen_planes = plan_tables(plan), planes_seen(plan.stages)
        steps = Steps(tables, plan.history_length, seen_planes, backend, FLOAT32)
        u, first = start, plan.stages[0].seen
        seen = None if first is None else look(first, u, FLOAT32)
        for index, stage in enumerate(plan.stages):
            outputs = [0.8 * torch.tanh(seen)] if stage.evaluates else []
            u, _, seen = steps.take(index, stage, u, outputs, NoiseAddress(3, 0, index))
        ends.append(u)
    assert float((ends[0] - ends[1]).norm()) < 1e-6 * float(ends[1].norm())


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
    address = NoiseAddress(2**64 - 3, 2**40 + 7, 6, 1)
    recorded, (_, *more) = recorded_step(address)
    step, times, time = torch.tensor([2, *more]), torch.rand(4), torch.zeros(())
    for number in (2, 3, 4):
        made = BACKEND.stage(u, [output], [], table, recorded, step=step)
        expected = REFERENCE.backend.stage(
            u, [output], [], table[number : number + 1], address.at_stage(6 + number)
        )
        assert_close(made[0], expected[0])
        assert_close(made[1], expected[1])
        BACKEND.advance(step, times, time)
        assert int(step[0]) == number + 1 and float(time) == float(times[min(number + 1, 3)])


def test_given_noise() -> None:
    u, output, noise = torch.randn(30, 6), torch.randn(30, 3), torch.randn(30, 6)
    weights = matrix(1, 3, 3)
    made = triton.stage(u, [output], [], weights, noise=noise)
    assert_close(made[0], REFERENCE.stage(u, [output], [], weights, noise=noise)[0])


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64])
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("shape", [(5, 2), (11, 2 * 37), (3, 2 * 1031), (4, 6, 5, 7)], ids=str)
def test_residual(shape: tuple[int, ...], count: int, dtype: torch.dtype) -> None:
    """Of as many offsets as outputs, as losses have them, and of another number."""
    scale = torch.rand(shape[0], dtype=FLOAT64)
    for offsets in {count, 2}:
        output, offset = planes(shape, count, dtype), planes(shape, offsets, dtype)
        weights = torch.randn(shape[0], count, count + offsets, dtype=FLOAT64)
        leaf = output.to(FLOAT64, copy=True).requires_grad_()
        wanted, _ = ReferenceBackend().residual(leaf, offset.to(FLOAT64), weights, scale=scale)
        (wanted.sum() / 7).backward()
        made, gradient = residual(output, offset, weights, scale=scale, factor=1 / 7)
        # A coordinate's residual errs by some 5 roundings of terms up to about 10; a loss by that
        # relative to its size.
        eps = torch.finfo(dtype).eps
        assert torch.allclose(made.to(FLOAT64), wanted / 7, rtol=200 * eps)
        assert gradient is not None
        assert float((gradient.to(FLOAT64) - leaf.grad).abs().max()) < 400 * eps * (1 + scale.max())
        total, none = residual(
            output, offset, weights, scale=scale, factor=1 / 7, reduce=True, gradient=False
        )
        assert none is None and total.shape == ()
        assert torch.allclose(total.to(FLOAT64), wanted.sum() / 7, rtol=200 * eps)


@pytest.mark.parametrize("half", [BFLOAT16, FLOAT16])
def test_gradient_in_the_outputs_dtype(half: torch.dtype) -> None:
    output, offset = planes((9, 44), 1, half), torch.randn(9, 22)
    weights = torch.randn(9, 1, 2, dtype=FLOAT64)
    gradient = residual(output, offset, weights)[1]
    assert gradient is not None and gradient.dtype == half
    exact = residual(output.float(), offset, weights)[1]
    assert exact is not None
    assert_narrowed(gradient, exact)


def test_the_gradient_in_the_offsets_memory() -> None:
    output, offset = torch.randn(5, 74), torch.randn(5, 74)
    weights = torch.randn(5, 2, 4, dtype=FLOAT64)
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
        assert torch.allclose(BACKEND.matrices(table.at(t)), table(t), rtol=1e-14, atol=0.0)
    assert BACKEND.matrices(table.at(torch.tensor([1.0, 3.8]))) is None


def test_too_many_residual_planes_are_refused() -> None:
    with pytest.raises(NotImplementedError, match="2 planes at most, got 3"):
        residual(torch.zeros(2, 2), torch.zeros(2, 4), torch.zeros(2, 3, 3, dtype=FLOAT64))


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-q", "-x", "-p", "no:cacheprovider"]))
