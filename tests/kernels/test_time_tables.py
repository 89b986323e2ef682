"""Tables of small matrices: what is smooth enough, accuracy, times outside, every level."""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import replace
from threading import Barrier, Thread

import pytest
import torch
from backend_calls import at_level
from core_calls import LEVELS, some_times

import cldfast
from cldfast import kernels
from cldfast.kernels import NoiseAddress
from cldfast.kernels.backends.reference import ReferenceBackend, noise_planes
from cldfast.kernels.time_tables import OCTAVES, make_table

F64 = torch.float64


def perturbation(t: torch.Tensor) -> torch.Tensor:
    """Smooth (n, 2, 3) matrices of no process."""
    a, b = torch.exp(-t), t.sqrt()
    zero = torch.zeros_like(t)
    return torch.stack([a, b, zero, t * a, b * t, 1.0 / (1.0 + b)], 1).reshape(-1, 2, 3)


@pytest.fixture(scope="module")
def table():
    made = make_table(perturbation, 3.7)
    assert made is not None
    return made


@pytest.mark.parametrize(
    "function",
    [
        lambda t: (t - 0.3).abs(),
        lambda t: 1.0 + 1e-10 * (t > 0.01).to(F64),
        lambda t: torch.sin(1e5 * t),
        lambda t: 1.0 / (t - 0.6).abs(),
        lambda t: t * math.nan,
        lambda t: t + torch.rand(t.shape) * 1e-9,
    ],
)
def test_what_is_not_smooth_is_refused(function):
    assert make_table(lambda t: function(t).reshape(-1, 1, 1), 1.0) is None


def test_powers_and_large_exponents():
    def function(t):
        rows = [t**-1.5, t**2.5, torch.exp(-300.0 * t), torch.zeros_like(t)]
        return torch.stack(rows, 1)[:, None]

    t = some_times(2.0)
    table = make_table(function, 2.0)
    made, wanted = kernels.matrices(table.at(t)), function(t)
    # exp(-300 t) is asked for to its size on the panel, t / 2 wide at most.
    assert bool(((made - wanted)[:, 0, :2].abs() <= 1e-13 * wanted[:, 0, :2]).all())
    error = (made - wanted)[:, 0, 2].abs() / wanted[:, 0].amax(1)
    assert float(error.max()) < 1e-13 and not made[:, 0, 3].any()


def test_times_outside_are_refused(table, backend):
    inside = torch.tensor([1.0, 3.7, 3.7 * 2.0**-OCTAVES * 1.001], dtype=F64)
    assert kernels.matrices(table.at(inside), backend).shape == (3, 2, 3)
    # The float32 next to 3.7 lies above it.
    near = kernels.matrices(table.at(torch.tensor([3.7])), backend)
    assert torch.allclose(near, perturbation(torch.tensor([3.7]).to(F64)), rtol=1e-13)
    for bad in (0.0, -1.0, 3.71, math.nan, math.inf, 3.7 * 2.0**-OCTAVES):
        with pytest.raises(kernels.OutsideTableError, match=r"times must lie in \(.*, 3.7\]"):
            kernels.matrices(table.at(torch.tensor([1.0, bad], dtype=F64)), backend)
        assert not kernels.covers(table.at(torch.tensor([1.0, bad], dtype=F64)), backend)
    assert kernels.covers(table.at(inside), backend)
    for bad in (torch.zeros(2, 1), torch.ones(3, dtype=torch.int64)):
        with pytest.raises(TypeError, match="t must be a float tensor"):
            table.at(bad)
    with pytest.raises(TypeError, match="t must be a tensor, got float"):
        table.at(1.0)
    with pytest.raises(NotImplementedError, match="detach t"):
        table.at(torch.ones(2, requires_grad=True))


def test_known_bounds_spare_a_look_at_the_times(table, backend):
    t = torch.tensor([0.5, 3.7], dtype=F64)
    least = 3.7 * 2.0**-OCTAVES
    for bounds, known in [
        ((0.1, 3.7), True), ((0.1, 3.8), False), ((least, 3.7), False), (None, False),
        ((least * 1.001, 3.7 * (1.0 + 2.0**-24)), True),
    ]:  # fmt: skip
        weights = table.at(t, bounds)
        assert weights.inside == weights[:1].inside == known
        assert torch.equal(
            kernels.matrices(weights, backend), kernels.matrices(table.at(t), backend)
        )
        assert kernels.covers(weights, backend)


def test_losses_know_the_bounds_of_the_times_they_draw(monkeypatch):
    def look(weights, backend="auto"):
        raise AssertionError("the host looked at times")

    monkeypatch.setattr(kernels, "covers", look)
    x0 = torch.randn(5, 3)
    cldfast.hsm_loss(lambda u, t: u[:, :3], cldfast.CLD(), x0, seed=1)
    with pytest.raises(AssertionError, match="looked"):
        cldfast.hsm_loss(lambda u, t: u[:, :3], cldfast.CLD(), x0, seed=1, t=torch.rand(5))


def test_a_residual_by_a_table_compiles_whole(table):
    t, output, u = torch.rand(4, dtype=F64) + 0.1, torch.randn(4, 3), torch.randn(4, 3)
    one = make_table(lambda t: perturbation(t).reshape(-1, 1, 6)[:, :, :2], 3.7)

    def loss(output, u, t):
        return kernels.residual(output, u, one.at(t), reduction="mean")

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(output, u, t), loss(output, u, t), rtol=1e-6)


def test_threads_change_nothing(table):
    t = some_times(3.7, 3001)
    before = torch.get_num_threads()
    try:
        made = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            made.append(kernels.matrices(table.at(t)))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(made[0], made[1]) and torch.equal(made[0], made[2])


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("entries", [1, 5, 8, 12, 17])
def test_levels_agree_with_the_specification(entries, level):
    def function(t):
        return torch.stack([torch.exp(-t / (k + 1.0)) for k in range(entries)], 1)[:, None]

    made, t = make_table(function, 1.0), some_times(1.0)
    # Horner's rule with and without fused products.
    assert torch.allclose(
        at_level(level).backend.matrices(made.at(t)), made(t), rtol=1e-14, atol=0.0
    )
    assert torch.allclose(made(t), function(t), rtol=1e-13, atol=0.0)


def test_perturb_is_a_stage(table, backend):
    t = some_times(3.7)[:6]
    for shape in ((6, 3), (6, 2, 4, 5)):
        x0 = torch.randn(shape)
        weights = perturbation(t)
        for noise in (NoiseAddress(3, 2, stream=7), torch.randn(6, 2 * shape[1], *shape[2:])):
            made, none = kernels.perturb((x0,), table.at(t), noise=noise, backend=backend)
            wanted, _, _ = kernels.stage(None, (x0,), (), weights, noise=noise, backend=backend)
            assert none is None
            # The weights agree to float64's precision, their float32 may differ by a rounding.
            assert torch.allclose(made, wanted, rtol=1e-6, atol=1e-6)
    x0 = torch.randn(6, 3, dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x: kernels.perturb((x,), table.at(t), backend=backend)[0], (x0,)
    )


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"data": (torch.zeros(2, 2), torch.zeros(2, 2))}, ValueError, "must give (2, 2 + q, 4) matrices on cpu, got (2, 2, 3)"),
        ({"data": (torch.zeros(2, 2), torch.zeros(2, 3))}, ValueError, "data[1] must be (2, 2)"),
        ({"data": (torch.zeros(0, 2),)}, ValueError, "non-empty (B, C, ...)"),
        ({"data": (torch.zeros(2, 2).half(),)}, TypeError, "float32 or float64"),
        ({"data": (None,)}, TypeError, "data[0] must be a tensor"),
        ({"t": torch.ones(3)}, ValueError, "must give (2, 2 + q, 3) matrices on cpu, got (3, 2, 3)"),
        ({"t": torch.zeros(2)}, ValueError, "times must lie in"),
        ({"data": (torch.zeros(2, 2),) * 3}, ValueError, "data must be (x0,) or (x0, v0), got 3 tensors"),
        ({"weights": torch.zeros(2, 1, 3, dtype=F64)}, ValueError, "weights must be (1 or 2, 2 + q, 3)"),
        ({"weights": torch.zeros(2, 2, 3)}, TypeError, "weights must be float64"),
        ({"weights": None}, TypeError, "weights must be a tensor"),
        ({"noise": torch.zeros(2, 2)}, ValueError, "noise must be (2, 4) float32"),
        ({"noise": 3}, TypeError, "noise must be a NoiseAddress or a tensor, got int"),
        ({"backend": "gpu"}, ValueError, "unknown backend 'gpu'"),
    ],
)  # fmt: skip
def test_bad_arguments_are_refused(table, arguments, error, words):
    call = {"data": (torch.zeros(2, 2),), "t": torch.ones(2), **arguments}
    weights = call.pop("weights", table.at(call.pop("t")))
    with pytest.raises(error) as caught:
        kernels.perturb(call.pop("data"), weights, **call)
    assert words in str(caught.value)


def several(t):
    """Smooth (n, 4, 3) matrices: a perturbation and two more rows, the last column of none used."""
    more = torch.stack([t, 1.0 + t, t * 0, torch.exp(t), t * t, t * 0], 1).reshape(-1, 2, 3)
    return torch.cat([perturbation(t) * torch.tensor([1.0, 1.0, 0.0], dtype=F64), more], 1)


# Widths below and above a vector, of whole blocks and over them; rows over the sixteen made together.
SHAPES = [(1, 1), (5, 1), (700, 2), (129, 3), (33, 8), (40, 15), (17, 16), (20, 31), (9, 65), (53, 100),
          (3, 512), (4, 513), (2, 1031), (4, 3, 5, 7), (2, 1, 33, 41), (2, 2, 3, 4, 5)]  # fmt: skip


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_kernels_evaluate_tables_of_rows_themselves(shape, dtype, level):
    """The same bits as with the matrices made first, in both kernels."""
    t = torch.rand(shape[0], dtype=F64) * 0.99 + 0.01
    x0 = torch.randn(shape, dtype=F64).to(dtype)
    cpu, address = at_level(level).backend, NoiseAddress(4, 3)
    for function in (perturbation, several):
        weights = make_table(function, 1.0).at(t)
        made = cpu.stage(None, (x0,), (), weights, address)
        wanted = cpu.stage(None, (x0,), (), cpu.matrices(weights), address)
        assert torch.equal(made[0], wanted[0])
        assert function is perturbation or torch.equal(made[1], wanted[1])
        noise = torch.cat(noise_planes(shape, dtype, "cpu", address), 1)
        exact, more, _ = ReferenceBackend().stage(None, (x0.to(F64),), (), function(t), noise)
        bound = 64 * torch.finfo(dtype).eps
        assert torch.allclose(made[0].to(F64), exact, rtol=bound, atol=bound)
        assert function is perturbation or torch.allclose(
            made[1].to(F64), more, rtol=bound, atol=bound
        )
    if len(shape) == 2:  # rows of an output and two more planes
        table = make_table(lambda t: several(t).reshape(-1, 2, 6)[:, :, :3].contiguous(), 1.0)
        weights, offset = table.at(t), torch.cat([x0, x0 * x0], 1)
        scale = torch.rand(shape[0], dtype=F64)
        made = cpu.residual(x0, offset, weights, scale=scale)
        wanted = cpu.residual(x0, offset, cpu.matrices(weights), scale=scale)
        assert torch.equal(made[0], wanted[0]) and torch.equal(made[1], wanted[1])


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_images_with_tables(layout):
    t = torch.rand(6, dtype=F64) + 1e-3
    x0 = torch.randn(6, 3, 5, 7).contiguous(memory_format=layout)
    weights = make_table(several, 2.0).at(t)
    u, more = kernels.perturb((x0,), weights, noise=NoiseAddress(2))
    wanted, rest, _ = kernels.stage(None, (x0,), (), several(t), noise=NoiseAddress(2))
    assert u.is_contiguous(memory_format=layout) and more.is_contiguous(memory_format=layout)
    assert torch.allclose(u, wanted, atol=1e-5) and torch.allclose(more, rest, atol=1e-5)


@pytest.mark.parametrize("operation", ["stage", "residual"])
def test_nothing_is_written_where_a_time_lies_outside(operation):
    weights = make_table(lambda t: several(t)[:, :2], 1.0).at(torch.tensor([0.5, 2.0], dtype=F64))
    with pytest.raises(kernels.OutsideTableError, match="times must lie in"):
        if operation == "stage":
            out = torch.full((2, 6), 7.0)
            at_level().stage(None, (torch.randn(2, 3),), (), weights, out=out)
        else:
            out = torch.full((2, 3), 7.0)
            one = make_table(lambda t: several(t)[:, :1, :2], 1.0).at(weights.t)
            at_level().residual(torch.randn(2, 3), out, one, overwrite=True)
    assert bool((out == 7.0).all())


@pytest.mark.parametrize("shape", [(601, 61), (9001, 3), (20_000, 1)], ids=str)
def test_threads_do_not_matter_with_tables(shape):
    t, x0 = torch.rand(shape[0], dtype=F64) + 1e-3, torch.randn(shape)
    first = make_table(several, 2.0).at(t)
    second = make_table(lambda t: several(t)[:, 2:3], 2.0).at(t)
    before = torch.get_num_threads()
    try:
        made = []
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            u, more = kernels.perturb((x0,), first, noise=NoiseAddress(2))
            made.append((u, more, *at_level().residual(x0, u, second)))
    finally:
        torch.set_num_threads(before)
    for others in made[1:]:
        assert all(map(torch.equal, others, made[0]))


def test_tables_are_copied_with_their_numbers():
    table, t = make_table(perturbation, 1.0), torch.tensor([0.3], dtype=F64)
    before = kernels.matrices(table.at(t))
    twice = replace(table, coefficients=2.0 * table.coefficients)
    assert torch.equal(kernels.matrices(twice.at(t)), 2.0 * before)
    assert torch.equal(kernels.matrices(deepcopy(table).at(t)), before)


def test_a_table_is_first_used_by_many_threads():
    t = torch.tensor([0.3, 0.7], dtype=F64)
    for _ in range(20):
        table, barrier, made = make_table(perturbation, 1.0), Barrier(4), []

        def use(table=table, barrier=barrier, made=made):
            barrier.wait()
            made.append(kernels.matrices(table.at(t)))

        threads = [Thread(target=use) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(made) == 4 and all(torch.equal(each, made[0]) for each in made)


def test_a_table_for_one_matrix_is_not_a_table_for_all_rows():
    one = make_table(perturbation, 1.0).at(torch.tensor([0.3], dtype=F64))
    with pytest.raises(ValueError, match="weights must hold 1 matrix, or one for each row"):
        at_level().stage(None, (torch.randn(2, 3),), (), one)


def test_slices_of_rows():
    weights = make_table(perturbation, 2.0).at(torch.rand(10, dtype=F64) + 1e-3)
    for rows in (slice(2, 5), slice(0, 10, 3)):
        part = weights[rows]
        assert part.shape == (len(range(10)[rows]), 2, 3)
        assert torch.equal(kernels.matrices(part), kernels.matrices(weights)[rows])
