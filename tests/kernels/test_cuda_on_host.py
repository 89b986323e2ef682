"""The CUDA sources run on the host: launches, shuffles and sums; layouts, dtypes, tables, tails."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from pathlib import Path

import cuda_on_host
import pytest
import torch
from backend_calls import REFERENCE, Calls
from seen_planes import SEEN_DTYPES, SEEN_SHAPES, check_seen_planes
from test_core import SHAPES, assert_close, channels_last, matrix, planes, swapped

from cldfast.kernels import NoiseAddress, recorded_step
from cldfast.kernels.backends.reference import ReferenceBackend
from cldfast.kernels.philox import pair_words
from cldfast.kernels.time_tables import make_table

Residual = Callable[..., tuple[torch.Tensor, torch.Tensor | None]]
BFLOAT16, FLOAT16, FLOAT32, FLOAT64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
# Rows of quads, of eights, and of neither; several tiles of 256 pairs, full ones and ends.
QUAD_SHAPES = [(1, 8), (1, 16), (3, 8), (5, 2 * 20), (7, 2 * 100), (33, 2 * 16), (2, 2 * 512),
               (3, 6, 8, 8), (2, 2 * 258 * 2)]  # fmt: skip
# The host stands for one multiprocessor: 32 blocks, which take 65,536 pairs of quads at a time and
# 16,384 of twos. Each takes several turns, the last of them in part.
LONG_SHAPES = [(5, 2 * 32772), (3, 2 * 23333), (2, 6, 131, 90)]


@pytest.fixture(scope="module")
def cuda() -> Calls:
    return Calls(cuda_on_host.backend())


@pytest.fixture(scope="module")
def residual(cuda: Calls) -> Residual:
    return cuda.residual


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64])
@pytest.mark.parametrize("shape", SHAPES + QUAD_SHAPES, ids=str)
def test_matches_the_reference(cuda: Calls, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    u = planes(shape, 2, dtype)
    outputs, history = [planes(shape, 1, dtype)], [planes(shape, 2, dtype)]
    for noise in ("both", "x", "v", "none"):
        for rows in {1, shape[0]}:
            for outs in (2, 3, 4):
                weights = matrix(rows, outs, 5, noise)
                keys = {"seed": -3, "first_index": 17, "stage_index": 4, "stream": 2}
                made = cuda.stage(u, outputs, history, weights, **keys)
                expected = REFERENCE.stage(u, outputs, history, weights, **keys)
                assert_close(made[0], expected[0])
                assert_close(made[1], expected[1])


@pytest.mark.parametrize("outs", [2, 3, 4, 5])
@pytest.mark.parametrize(
    "shape", [(3, 256), (70, 260), (2, 1028), (2, 3, 32, 32), (300, 1024), (2, 252)], ids=str
)
def test_perturbed_rows(cuda: Calls, shape: tuple[int, ...], outs: int) -> None:
    """Pieces of rows with matrices of their own: full ones, ends, more than blocks take at once."""
    x0, v0 = torch.randn(shape), torch.randn(shape)
    for data in ([x0], [x0, v0]):
        weights = matrix(shape[0], outs, len(data))
        weights[0, :, 0] = 0.0
        data[0][0] = math.nan  # a column of zeros is not read
        for first_index in (0, 4):
            keys = {"seed": -1, "first_index": first_index, "stage_index": 3, "stream": 2}
            made = cuda.stage(None, data, [], weights, **keys)
            clean = [tensor.nan_to_num() for tensor in data]
            expected = REFERENCE.stage(None, clean, [], weights, **keys)
            assert_close(made[0], expected[0])
            assert_close(made[1], expected[1])


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64])
@pytest.mark.parametrize("shape", LONG_SHAPES, ids=str)
def test_blocks_take_several_turns(cuda: Calls, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    u, output = planes(shape, 2, dtype), planes(shape, 1, BFLOAT16)
    for rows in {1, shape[0]}:
        weights = matrix(rows, 2, 3)
        made = cuda.stage_and_copy(u, [output], [], weights, FLOAT16, seed=4)
        expected = REFERENCE.stage(u, [output], [], weights, seed=4)
        assert_close(made[0], expected[0])
        assert torch.equal(made[2], made[0].to(FLOAT16))


def test_one_launch_each(cuda: Calls, residual: Residual) -> None:
    launches = cuda_on_host.launches(cuda.backend)
    for shape in ((5, 2 * 32772), (64, 4), (9, 6, 131, 10)):
        u, output = planes(shape, 2, FLOAT32), planes(shape, 1, FLOAT32)
        before = launches()
        cuda.stage(u, [output], [planes(shape, 1, FLOAT32)], matrix(1, 4, 4))
        assert launches() == before + 1
        cuda.stage(u, [output], [], matrix(1, 4, 3), seen_planes=2, seen_dtype=BFLOAT16)
        assert launches() == before + 2
        weights = torch.randn(shape[0], 1, 3, dtype=FLOAT64)
        for reduce in (False, True):
            residual(output, u, weights, reduce=reduce)
        assert launches() == before + 4


@pytest.mark.parametrize(
    "shape", [(3, 8), (5, 2 * 20), (2, 2 * 512), (3, 6, 8, 8), (9, 22)], ids=str
)
@pytest.mark.parametrize("half", [BFLOAT16, FLOAT16, FLOAT64, FLOAT32])
def test_dtypes(cuda: Calls, shape: tuple[int, ...], half: torch.dtype) -> None:
    u, output = planes(shape, 2, FLOAT32), planes(shape, 2, half)
    for rows in {1, shape[0]}:
        weights = matrix(rows, 2, 4)
        state, _, copy = cuda.stage_and_copy(u, [output], [], weights, half)
        assert_close(state, REFERENCE.stage(u, [output], [], weights)[0])
        assert torch.equal(copy, state.to(half))


@pytest.mark.parametrize("half", [BFLOAT16, FLOAT16])
@pytest.mark.parametrize("noise", ["both", "none"])
def test_a_samplers_step_under_autocast(cuda: Calls, noise: str, half: torch.dtype) -> None:
    """State in float32, a velocity score of 16 bits: rows of quads, in and out of a recorded step."""
    for shape in ((1, 8), (5, 2 * 20), (2, 2 * 512), (3, 6, 8, 8)):
        u, output = planes(shape, 2, FLOAT32), planes(shape, 1, half)
        weights, address = matrix(1, 2, 3, noise), NoiseAddress(5, 6, 1, 2)
        expected = REFERENCE.backend.stage(u, [output], [], weights, address).state
        made = cuda.backend.stage(u, [output], [], weights, address, out=u.clone()).state
        assert_close(made, expected)
        recorded, numbers = recorded_step(address)
        step = torch.tensor(numbers)
        again = cuda.backend.stage(u, [output], [], weights, recorded, step=step).state
        assert torch.equal(again, made)


# What NVIDIA says of the hardware's functions is in csrc/cuda/fast_normals.h; the host's own, which stand
# for them here, err by 2^-24. So this is the part of the distance that is ours: the rounding of the angle,
# up to pi, by 2^-25 pi, of the root by 2^-24, and of the logarithm before it. Radii go up to 6.8.
def test_fast_normals(cuda: Calls) -> None:
    fast = cuda_on_host.OnHost(cuda.backend.kernels, fast_normals=True)
    weights = torch.tensor([[[0.0, 0, 1, 0], [0, 0, 0, 1]]], dtype=FLOAT64)
    for shape in ((40, 2 * 1000), (3, 2 * 35)):  # quads, and one by one
        u, address = torch.zeros(shape), NoiseAddress(11, 4)
        exact = REFERENCE.backend.stage(u.double(), [], [], weights, address).state
        made = fast.stage(u, [], [], weights, address).state
        x, v = exact.chunk(2, 1)
        radius = torch.hypot(x, v).repeat(1, 2)
        error = (made - exact).abs()
        assert float((error / (radius * 2.0**-21 + 2.0**-23 / radius)).max()) <= 1.0
        assert not torch.equal(made, cuda.backend.stage(u, [], [], weights, address).state)
        # float64 has no such functions.
        same = fast.stage(u.double(), [], [], weights, address).state
        assert_close(same, exact)


def test_half_precision_conversions_are_torchs(cuda: Calls) -> None:
    weights = torch.tensor([[[0.0, 0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0, 0.0]]], dtype=FLOAT64)
    for half in (BFLOAT16, FLOAT16):
        bits = torch.arange(2**16, dtype=torch.int32).to(torch.uint16).view(half).reshape(1, -1)
        state, _, copy = cuda.stage_and_copy(torch.zeros(1, 2**17), [bits], [], weights, half)
        assert torch.equal(state[:, : 2**16].nan_to_num(nan=7e4), bits.float().nan_to_num(nan=7e4))
        assert torch.equal(copy[:, : 2**16].nan_to_num(nan=1.0), bits.nan_to_num(nan=1.0))


@pytest.mark.parametrize("seen_dtype", SEEN_DTYPES)
@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64])
@pytest.mark.parametrize("shape", [*SEEN_SHAPES, (2, 2 * 1028)], ids=str)
def test_seen_planes(
    cuda: Calls, shape: tuple[int, ...], dtype: torch.dtype, seen_dtype: torch.dtype
) -> None:
    check_seen_planes(cuda, shape, dtype, seen_dtype)


def test_many_planes(cuda: Calls) -> None:
    for shape in ((3, 8), (7, 2 * 19)):
        for ins, outs in ((0, 2), (1, 5), (6, 7), (14, 12)):
            u = planes(shape, 2, FLOAT32)
            history = [planes(shape, 1, FLOAT32) for _ in range(ins)]
            weights = matrix(1, outs, 2 + ins)
            made = cuda.stage(u, [], history, weights, seed=1)
            expected = REFERENCE.stage(u, [], history, weights, seed=1)
            assert_close(made[0], expected[0])
            assert_close(made[1], expected[1])
            same = u.clone()
            assert cuda.stage(same, [], history, weights, seed=1, out=same)[0] is same
            assert torch.equal(same, made[0])


@pytest.mark.parametrize(
    "shape", [(4, 6, 5, 7), (2, 2 * 24, 6, 5), (3, 6, 8, 8), (2, 6, 3, 4, 5)], ids=str
)
def test_layouts(cuda: Calls, shape: tuple[int, ...]) -> None:
    u, outputs = planes(shape, 2, FLOAT32), [planes(shape, 1, FLOAT32), planes(shape, 2, BFLOAT16)]
    for rows in {1, shape[0]}:
        weights = matrix(rows, 3, 5)
        expected = REFERENCE.stage(u, outputs, [], weights, seed=5, first_index=3)
        layouts = [channels_last] if len(shape) == 5 else [channels_last, swapped]
        for layout in layouts:
            images = [layout(tensor) for tensor in (u, *outputs)]
            made = cuda.stage(images[0], images[1:], [], weights, seed=5, first_index=3)
            assert_close(made[0], expected[0])
            assert_close(made[1], expected[1])
            mixed = cuda.stage(u, images[1:], [], weights, seed=5, first_index=3)
            assert_close(mixed[0], expected[0])
            same = layout(u.clone())
            assert (
                cuda.stage(same, outputs, [], weights, seed=5, first_index=3, out=same)[0] is same
            )
            assert_close(same, expected[0])


@pytest.mark.parametrize("shape", [(9, 4), (6, 8), (5, 2 * 72)], ids=str)
def test_a_column_of_zeros_is_not_read(cuda: Calls, shape: tuple[int, ...]) -> None:
    u, output = planes(shape, 2, FLOAT32), planes(shape, 1, FLOAT32)
    bad = torch.full_like(output, math.nan)
    weights = matrix(shape[0], 2, 4)
    weights[:, :, 3] = 0.0
    for rows in (weights[:1], weights):
        assert torch.isfinite(cuda.stage(u, [output], [bad], rows)[0]).all()
    weights[2, 0, 3] = 1.0
    finite = torch.isfinite(cuda.stage(u, [output], [bad], weights)[0]).all(dim=1)
    assert torch.equal(finite, torch.arange(shape[0]) != 2)
    table = weights[3:5].contiguous()
    step = torch.tensor([1, 0, 0])
    assert torch.isfinite(cuda.stage(u, [output], [bad], table, step=step, used=0b110111)[0]).all()


@pytest.mark.parametrize("shape", [(6, 8), (7, 2 * 37), (2, 2 * 512)], ids=str)
def test_a_table_and_its_step(cuda: Calls, shape: tuple[int, ...]) -> None:
    u, output, table = planes(shape, 2, FLOAT32), planes(shape, 1, FLOAT32), matrix(5, 3, 3)
    for dtype in (FLOAT32, FLOAT64):
        address = NoiseAddress(2**64 - 3, 2**40 + 7, 6, 1)
        recorded, (_, *more) = recorded_step(address)
        step, times = torch.tensor([2, *more]), torch.rand(4, dtype=dtype)
        time = torch.zeros((), dtype=dtype)
        for number in (2, 3, 4):
            made = cuda.backend.stage(u, [output], [], table, recorded, step=step)
            expected = REFERENCE.backend.stage(
                u, [output], [], table[number : number + 1], address.at_stage(6 + number)
            )
            assert_close(made[0], expected[0])
            assert_close(made[1], expected[1])
            cuda.backend.advance(step, times, time)
            assert int(step[0]) == number + 1 and time == times[min(number + 1, 3)]


def test_a_history_row_may_be_written_over_the_oldest(cuda: Calls) -> None:
    u, output = torch.randn(4, 2 * 20), torch.randn(4, 20)
    history, weights = [torch.randn(4, 20), torch.randn(4, 20)], matrix(1, 3, 5)
    expected = REFERENCE.stage(u, [output], history, weights)
    row = cuda.stage(u, [output], history, weights, out=u, row_out=history[1])[1]
    assert row is history[1]
    assert_close(u, expected[0])
    assert_close(row, expected[1])


@pytest.mark.parametrize("first_index", [0, 2**31, 2**40 + 3, (2**63 - 1) // 37 - 50])
@pytest.mark.parametrize("width", [37, 40])
def test_splitting_a_batch_changes_nothing(cuda: Calls, width: int, first_index: int) -> None:
    u, output, weights = torch.randn(50, 2 * width), torch.randn(50, width), matrix(1, 2, 3)
    keys = {"seed": 2**64 - 1, "stage_index": 2**32 - 1, "stream": 3}
    if width == 40 and first_index > 2**50:
        first_index //= 2
    whole = cuda.stage(u, [output], [], weights, first_index=first_index, **keys)[0]
    assert_close(
        whole, REFERENCE.stage(u, [output], [], weights, first_index=first_index, **keys)[0]
    )
    start = 0
    for rows in (1, 2, 7, 40):
        part = slice(start, start + rows)
        where = first_index + start
        made = cuda.stage(u[part], [output[part]], [], weights, first_index=where, **keys)[0]
        assert torch.equal(made, whole[part])
        start += rows


def test_words(cuda: Calls) -> None:
    for parts, count in (((2**64 - 1, 2**40 + 3, 7, 5), 999), ((1, 0, 2**32 - 1, 0), 4)):
        made = cuda.backend.words(NoiseAddress(*parts), count, torch.device("cpu"))
        expected = pair_words(NoiseAddress(*parts), count)
        assert torch.equal(made[0], expected[0]) and torch.equal(made[1], expected[1])


def test_matrices_of_a_table(cuda: Calls) -> None:
    tables = cuda.backend
    for shape in ((1, 1), (3, 5)):
        table = make_table(lambda t, s=shape: powers(t, math.prod(s)).reshape(-1, *s), 3.7)
        assert table is not None
        for rows in (1, 7, 9000):  # the last makes blocks take several turns
            t = 3.7 * torch.rand(rows, dtype=FLOAT64) ** 6 + 1e-8
            t[:1] = 3.7 * (1.0 + 2.0**-24)  # the rounding of a float32
            made = tables.matrices(table.at(t))
            # Two Horner's rules of 16 terms, one of them without fused products.
            assert torch.allclose(made, table(t), rtol=1e-14, atol=0.0)
            assert torch.equal(tables.matrices(table.at(t, (1e-8, 3.7))), made)
        assert tables.matrices(table.at(torch.tensor([1.0, 3.8]))) is None


def powers(t: torch.Tensor, count: int) -> torch.Tensor:
    return torch.stack([(1.0 + t) * t ** (0.5 * k - 3.0) for k in range(count)], 1)


def test_given_noise_and_no_state(cuda: Calls) -> None:
    for width in (8, 7):
        u, output, noise = (
            torch.randn(30, 2 * width),
            torch.randn(30, width),
            torch.randn(30, 2 * width),
        )
        for rows in (1, 30):
            weights = matrix(rows, 3, 3)
            made = cuda.stage(u, [output], [], weights, noise=noise)
            assert_close(made[0], REFERENCE.stage(u, [output], [], weights, noise=noise)[0])
            weights = matrix(rows, 2, 1)
            made = cuda.stage(None, [output], [], weights, seed=2)
            assert_close(made[0], REFERENCE.stage(None, [output], [], weights, seed=2)[0])


def test_bad_weights_are_refused(cuda: Calls) -> None:
    weights = torch.full((1, 2, 4), math.nan, dtype=FLOAT64)
    with pytest.raises(ValueError, match="weights must be finite"):
        cuda.stage(torch.zeros(2, 4), [], [], weights)
    with pytest.raises(ValueError, match="the weights do not fit the planes"):
        cuda.stage(torch.zeros(2, 4), [], [], weights[:, :, :3])


# Rows of one piece and of several, up to 70 of them; many rows.
RESIDUAL_SHAPES = [
    (5, 2), (33, 6), (7, 2 * 37), (4, 2 * 256), (3, 2 * 1031), (2, 2 * 1028), (3, 2 * 3072),
    (4, 6, 5, 7), (3, 6, 16, 16), (1, 2 * 70_001), (2, 2 * 70_004), (2, 6, 67, 150), (3001, 6),
]  # fmt: skip


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64])
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("shape", RESIDUAL_SHAPES, ids=str)
def test_residual(
    residual: Residual,
    shape: tuple[int, ...],
    count: int,
    dtype: torch.dtype,
) -> None:
    """Of as many offsets as outputs, as losses have them, and of another number."""
    scale = torch.rand(shape[0], dtype=FLOAT64)
    layouts = [torch.clone] + [channels_last] * (len(shape) == 4)
    for offsets in {count, 2}:
        output, offset = planes(shape, count, dtype), planes(shape, offsets, dtype)
        weights = torch.randn(shape[0], count, count + offsets, dtype=FLOAT64)
        leaf = output.to(FLOAT64, copy=True).requires_grad_()
        wanted, _ = ReferenceBackend().residual(leaf, offset.to(FLOAT64), weights, scale=scale)
        (wanted.sum() / 7).backward()
        # A residual errs by some 7 roundings of terms up to about 10.
        eps = torch.finfo(dtype).eps
        for layout in layouts:
            tensors = (layout(output), layout(offset), weights)
            made, gradient = residual(*tensors, scale=scale, factor=1 / 7)
            assert torch.allclose(made.to(FLOAT64), wanted / 7, rtol=100 * eps)
            assert float((gradient.to(FLOAT64) - leaf.grad).abs().max()) < 400 * eps
            total, none = residual(*tensors, scale=scale, factor=1 / 7, reduce=True, gradient=False)
            assert none is None
            assert torch.allclose(total.to(FLOAT64), wanted.sum() / 7, rtol=100 * eps)


@pytest.mark.parametrize("half", [BFLOAT16, FLOAT16])
@pytest.mark.parametrize("shape", [(9, 44), (3, 2 * 512), (3, 2 * 516), (4, 6, 5, 7)], ids=str)
def test_residual_of_half_precision_outputs(
    residual: Residual,
    shape: tuple[int, ...],
    half: torch.dtype,
) -> None:
    for count in (1, 2):
        for offsets in {count, 2}:
            output, offset = planes(shape, count, half), planes(shape, offsets, FLOAT32)
            weights = torch.randn(shape[0], count, count + offsets, dtype=FLOAT64)
            loss, gradient = residual(output, offset, weights)
            exact_loss, exact = residual(output.float(), offset, weights)
            assert torch.allclose(loss, exact_loss, rtol=1e-5) and gradient.dtype == half
            # A unit of the half.
            assert torch.allclose(gradient.float(), exact, rtol=1e-2, atol=1e-3)


def test_a_sum_over_more_rows_than_blocks_take_at_once(residual: Residual) -> None:
    """32 blocks of each processor at most, and 64 rows of four pairs to each."""
    rows = 4096 * 64 + 300
    output, offset = torch.randn(rows, 4), torch.randn(rows, 4)
    weights = torch.randn(rows, 1, 2, dtype=FLOAT64)
    total = residual(output, offset, weights, reduce=True, gradient=False)[0]
    wanted, _ = ReferenceBackend().residual(output, offset, weights, reduce=True)
    assert torch.allclose(total, wanted, rtol=1e-5)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("shape", [(5, 2 * 40), (5, 2 * 37), (3, 2 * 1028), (4, 6, 5, 7)], ids=str)
def test_the_gradient_in_the_offsets_memory(
    residual: Residual, shape: tuple[int, ...], count: int
) -> None:
    output, offset = planes(shape, count, FLOAT32), planes(shape, count, FLOAT32)
    weights = torch.randn(shape[0], count, 2 * count, dtype=FLOAT64)
    kept, expected = residual(output, offset, weights)
    assert expected is not None and not torch.equal(expected, offset)
    version = offset._version
    loss, gradient = residual(output, offset, weights, overwrite=True)
    assert torch.equal(loss, kept) and gradient is not None and torch.equal(gradient, expected)
    assert (gradient is offset) == (count <= 2) == (offset._version > version)
    # Memory that the output's gradient does not fit is left alone.
    before = offset.clone()
    halves = output.bfloat16()
    assert residual(halves, offset, weights, overwrite=True)[1].dtype == BFLOAT16
    assert torch.equal(offset, before)


def test_residual_does_not_depend_on_the_batch(residual: Residual) -> None:
    for width in (37, 2000, 20_000):
        for offsets in (1, 2):
            output, offset = torch.randn(9, width), torch.randn(9, offsets * width)
            weights = torch.randn(9, 1, 1 + offsets, dtype=FLOAT64)
            loss, gradient = residual(output, offset, weights)
            for part in (slice(0, 1), slice(1, 4), slice(4, 9)):
                some = residual(output[part], offset[part], weights[part])
                assert torch.equal(some[0], loss[part]) and torch.equal(some[1], gradient[part])


PARTING = """
__global__ void in_step(int* seen) {
  __syncthreads();
  __syncwarp();
  atomicAdd(reinterpret_cast<unsigned*>(seen), __shfl_xor_sync(0xFFFFFFFFu, 1, 1));
}
__global__ void some_leave_before_a_barrier(int*) {
  if (threadIdx.x >= 32) return;
  __syncthreads();
}
__global__ void some_do_another_exchange(int*) {
  if (threadIdx.x % 2) __syncwarp();
  else __shfl_sync(0xFFFFFFFFu, 1, 0);
}
__global__ void some_are_not_in_the_mask(int*) { __shfl_sync(0xFFFFu, 1, 0); }
__global__ void some_wait_for_ever(int*) {
  if (threadIdx.x % 2) __syncwarp();
}
extern "C" int launch(int which, int* seen) {
  void (*kernels[])(int*) = {in_step, some_leave_before_a_barrier, some_do_another_exchange,
                             some_are_not_in_the_mask, some_wait_for_ever};
  void* arguments[] = {&seen};
  return cudaLaunchKernel(kernels[which], dim3(3), dim3(64), arguments, 0, nullptr);
}
"""


def test_threads_that_part_ways_fail_their_launch(tmp_path: Path) -> None:
    home = cuda_on_host.needs_cuda_toolkit()
    source, module = tmp_path / "parting.cu", tmp_path / "parting.so"
    source.write_text(PARTING)
    cuda_on_host.compile_all([source], module, home, [])
    launch, seen = ctypes.CDLL(str(module)).launch, ctypes.c_int(0)
    failure = 719  # cudaErrorLaunchFailure
    assert [launch(which, ctypes.byref(seen)) for which in range(5)] == [0] + [failure] * 4
    assert seen.value == 3 * 64
