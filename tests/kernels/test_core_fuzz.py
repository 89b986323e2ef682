"""Descriptions that are none: the core refuses them, and crashes on none of them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

_core = pytest.importorskip("cldfast._core", reason="the compiled core was not built")

EXAMPLES = int(os.environ.get("CLDFAST_FUZZ_EXAMPLES", "150"))
many = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])

ROWS, CHANNELS, INNER = 3, 2, 4
STRIDES = (2 * CHANNELS * INNER, CHANNELS * INNER, INNER, 1)
# Room for what any dtype and any number of planes reads or writes: the callers in Python answer for
# memory, and the core for numbers that do not fit each other.
ROOM = 1 << 12
PLANES, MADE, OFFSETS, LOSSES, SCALE, MATRIX, OF_ROWS, COEFFICIENTS = torch.ones(
    8, ROOM, dtype=torch.float64
)
OCTAVES = torch.zeros(64, 2, dtype=torch.int64)
TIMES = torch.tensor([0.5, 0.25, 1.0], dtype=torch.float64)

# No pointer, and no more rows or positions than there are: the callers in Python answer for those.
numbers = st.one_of(
    st.sampled_from(
        [-1, 0, 1, 2, 3, 4, 5, 7, 31, 32, 33, 64, 65, 2**31, 2**63 - 1, 2**63, 2**64 - 1]
    ),
    st.integers(),
)
strange = st.one_of(st.none(), st.text(max_size=3), st.floats(), st.booleans(), st.tuples())


def described(tensor: torch.Tensor) -> tuple[int, ...]:
    return (tensor.data_ptr(), 2, 0, *STRIDES)


def table(used: int = 255) -> tuple[Any, ...]:
    return (COEFFICIENTS.data_ptr(), OCTAVES.data_ptr(), 4, 3, 8, 1.0, used)


SHAPE = (ROWS, CHANNELS, INNER, 0)
STAGE: Sequence[Any] = (
    SHAPE, described(PLANES), described(MADE), (MATRIX.data_ptr(), 1, 2, 4), None, 0, (1, 0, 0, 0), 1, "",
)  # fmt: skip
RESIDUAL: Sequence[Any] = (
    SHAPE, described(PLANES), described(OFFSETS), described(MADE), (OF_ROWS.data_ptr(), ROWS, 1, 4), None,
    0, SCALE.data_ptr(), 1.0, LOSSES.data_ptr(), False, 1, "",
)  # fmt: skip
# Entries of the tuples that may be any number, and are refused if they do not fit: (argument, entry).
FREE_OF_STAGE = [
    (0, 3),
    (1, 1),
    (1, 2),
    (2, 2),
    (3, 1),
    (3, 2),
    (3, 3),
    (6, 0),
    (6, 1),
    (6, 2),
    (6, 3),
]
FREE_OF_RESIDUAL = [(0, 3), (1, 1), (2, 1), (3, 1), (4, 1), (4, 2), (4, 3)]


def broken(draw: st.DrawFn, call: Sequence[Any], free: Sequence[tuple[int, int]]) -> list[Any]:
    """The arguments of a call, some of them others."""
    arguments = list(call)
    for _ in range(draw(st.integers(1, 3))):
        argument, entry = draw(st.sampled_from(free))
        if not isinstance(arguments[argument], tuple) or len(arguments[argument]) <= entry:
            continue
        values = list(arguments[argument])
        kind = draw(st.sampled_from(["number", "type", "shorter", "longer", "none"]))
        if kind == "number":
            values[entry] = draw(numbers)
        elif kind == "type":
            values[entry] = draw(strange)
        elif kind == "shorter":
            del values[entry]
        elif kind == "longer":
            values.append(draw(numbers))
        arguments[argument] = draw(strange) if kind == "none" else tuple(values)
    return arguments


@many
@given(st.data())
def test_stages(data: st.DataObject) -> None:
    call = broken(data.draw, STAGE, FREE_OF_STAGE)
    if data.draw(st.booleans()):
        call[8] = data.draw(st.sampled_from([*_core.levels(), "sse", "\0", "x" * 1000]))
    try:
        _core.stage(*call)
    except (ValueError, TypeError):
        return
    # What was taken is a call of the same planes.
    assert call[3][1:] == STAGE[3][1:] or call[6] is None


@many
@given(st.data())
def test_residuals(data: st.DataObject) -> None:
    try:
        _core.residual(*broken(data.draw, RESIDUAL, FREE_OF_RESIDUAL))
    except (ValueError, TypeError):
        return


@many
@given(st.data())
def test_tables(data: st.DataObject) -> None:
    values = list(table())
    entry = data.draw(st.sampled_from([3, 4, 5, 6]))
    values[entry] = data.draw(st.one_of(st.sampled_from([-1, 0, 1, 2, 3, 7]), strange))
    if data.draw(st.booleans()):
        values.append(0)
    made = torch.zeros(ROWS, 8, dtype=torch.float64)
    try:
        _core.matrices(tuple(values), TIMES.data_ptr(), ROWS, 8, made.data_ptr(), 1, "")
        _core.covers(tuple(values), TIMES.data_ptr(), ROWS)
    except (ValueError, TypeError):
        return


@many
@given(st.floats())
def test_times(t: float) -> None:
    """Any time at all is inside a table or outside, NaN and infinity too."""
    times, made = torch.full((1,), t, dtype=torch.float64), torch.zeros(8, dtype=torch.float64)
    inside = _core.matrices(table(), times.data_ptr(), 1, 8, made.data_ptr(), 1, "")
    assert inside == _core.covers(table(), times.data_ptr(), 1) and isinstance(inside, bool)
    assert not inside or 0.0 <= t <= 1.0
