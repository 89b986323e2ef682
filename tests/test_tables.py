"""Tables of small matrices: what is smooth enough, accuracy, times outside, every level."""

from __future__ import annotations

import math

import pytest
import torch
from core_calls import LEVELS, some_times

from cldfast import ops
from cldfast.backends import cpu_tables
from cldfast.tables import OCTAVES, make_table

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
    made, wanted = ops.matrices(table, t), function(t)
    # exp(-300 t) is asked for to its size on the panel, t / 2 wide at most.
    assert bool(((made - wanted)[:, 0, :2].abs() <= 1e-13 * wanted[:, 0, :2]).all())
    error = (made - wanted)[:, 0, 2].abs() / wanted[:, 0].amax(1)
    assert float(error.max()) < 1e-13 and not made[:, 0, 3].any()


def test_times_outside_are_refused(table, backend):
    inside = torch.tensor([1.0, 3.7, 3.7 * 2.0**-OCTAVES * 1.001], dtype=F64)
    assert ops.matrices(table, inside, backend).shape == (3, 2, 3)
    # The float32 next to 3.7 lies above it.
    near = ops.matrices(table, torch.tensor([3.7]), backend)
    assert torch.allclose(near, perturbation(torch.tensor([3.7]).to(F64)), rtol=1e-13)
    for bad in (0.0, -1.0, 3.71, math.nan, math.inf, 3.7 * 2.0**-OCTAVES):
        with pytest.raises(ops.OutsideTableError, match=r"times must lie in \(.*, 3.7\]"):
            ops.matrices(table, torch.tensor([1.0, bad], dtype=F64), backend)
    for bad in (torch.zeros(2, 1), torch.ones(3, dtype=torch.int64)):
        with pytest.raises(TypeError, match="t must be a float tensor"):
            ops.matrices(table, bad, backend)


def test_threads_change_nothing(table):
    t = some_times(3.7, 3001)
    before = torch.get_num_threads()
    try:
        made = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            made.append(ops.matrices(table, t))
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
    assert torch.allclose(cpu_tables.matrices(made, t, level), made(t), rtol=1e-14, atol=0.0)
    assert torch.allclose(made(t), function(t), rtol=1e-13, atol=0.0)


def test_perturb_is_a_stage(table, backend):
    t = some_times(3.7)[:6]
    for shape in ((6, 3), (6, 2, 4, 5)):
        x0 = torch.randn(shape)
        weights = perturbation(t)
        for more in ({}, {"noise": torch.randn(6, 2 * shape[1], *shape[2:])}):
            made = ops.perturb(
                (x0,), t, table, seed=3, first_index=2, stream=7, backend=backend, **more
            )
            wanted, _, _ = ops.stage(
                None, (x0,), (), weights, seed=3, first_index=2, stream=7, backend=backend, **more
            )
            # The weights agree to float64's precision, their float32 may differ by a rounding.
            assert torch.allclose(made, wanted, rtol=1e-6, atol=1e-6)
    x0 = torch.randn(6, 3, dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: ops.perturb((x,), t, table, backend=backend), (x0,))


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"data": (torch.zeros(2, 2), torch.zeros(2, 2))}, ValueError, "must be of 2 x 4 matrices, got 2 x 3"),
        ({"data": (torch.zeros(2, 2), torch.zeros(2, 3))}, ValueError, "data[1] must be (2, 2)"),
        ({"data": (torch.zeros(0, 2),)}, ValueError, "non-empty (B, C, ...)"),
        ({"data": (torch.zeros(2, 2).half(),)}, TypeError, "float32 or float64"),
        ({"data": (None,)}, TypeError, "data[0] must be a tensor"),
        ({"t": torch.ones(3)}, ValueError, "t must be (2,) on cpu, got (3,)"),
        ({"t": torch.zeros(2)}, ValueError, "times must lie in"),
        ({"t": 1.0}, TypeError, "t must be a tensor, got float"),
        ({"noise": torch.zeros(2, 2)}, ValueError, "noise must be (2, 4) float32"),
        ({"seed": -1}, ValueError, "[0, 2^64)"),
        ({"first_index": -1}, ValueError, "first_index must be >= 0"),
        ({"backend": "gpu"}, ValueError, "unknown backend 'gpu'"),
    ],
)  # fmt: skip
def test_bad_arguments_are_refused(table, arguments, error, words):
    call = {"data": (torch.zeros(2, 2),), "t": torch.ones(2), "table": table, **arguments}
    with pytest.raises(error) as caught:
        ops.perturb(call.pop("data"), call.pop("t"), call.pop("table"), **call)
    assert words in str(caught.value)
