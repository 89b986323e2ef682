"""Plans and stages: tables, counts, and what they refuse."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from cldfast.planner.make_plan import make_plan
from cldfast.planner.plan import Plan
from cldfast.planner.stage import Stage
from cldfast.process.sde import CLD

I2 = np.eye(2)
COLUMN = np.ones((2, 1))
ROW = np.ones((1, 2))
ONE = np.ones((1, 1))


def plan_of(*stages: Stage) -> Plan:
    return Plan(stages, CLD(), "test", 1, "score", np.linspace(1.0, 0.1, len(stages) + 1))


def test_matrix_holds_the_blocks_in_order() -> None:
    """Columns (u, outputs, history newest first, z); rows (u', h)."""
    P, L = np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[5.0, 0.0], [6.0, 7.0]])
    first, second = np.array([[8.0], [9.0]]), np.array([[10.0, 11.0], [12.0, 13.0]])
    row = np.array([[14.0], [15.0]])
    A = (np.array([[16.0]]), np.array([[17.0, 18.0]]))
    B = np.array([[19.0, 20.0]])
    stage = Stage(0.5, 0.4, P, (first, second), (row,), L, A, B)
    assert stage.evaluates and stage.history_planes == 1
    assert np.array_equal(
        stage.matrix(),
        [
            [1, 2, 8, 10, 11, 14, 5, 0],
            [3, 4, 9, 12, 13, 15, 6, 7],
            [19, 20, 16, 17, 18, 0, 0, 0],
        ],
    )
    plain = Stage(None, 0.4, P)
    assert not plain.evaluates and plain.history_planes == 0
    assert np.array_equal(plain.matrix(), [[1, 2, 0, 0], [3, 4, 0, 0]])


def test_counts() -> None:
    keep = Stage(0.9, 0.5, I2, (COLUMN,), A=(ONE,), B=ROW)
    read = Stage(0.5, 0.3, I2, (COLUMN,), (COLUMN,), A=(ONE,), B=ROW)
    last = Stage(None, 0.1, I2, H=(COLUMN, COLUMN))
    plan = plan_of(keep, read, last)
    assert plan.evaluations == 2 and plan.steps == 3 and plan.history_length == 2
    assert plan.output_planes == (1,)
    assert [m.shape for m in plan.matrices()] == [(3, 5), (3, 6), (2, 6)]
    assert plan_of(Stage(None, 0.1, I2)).output_planes == ()
    default = make_plan(CLD())
    assert (default.solver, default.steps) == ("stochastic_multistep", 20)
    assert default.evaluations == 20
    assert default.grid[0] == 1.0 and default.grid[-1] == 1e-3


GOOD = Stage(0.5, 0.4, I2, (COLUMN,), L=I2, A=(ONE,), B=ROW)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"P": np.eye(3)}, r"stage 0: P must have shape \(2, 2\), got \(3, 3\)"),
        ({"L": np.zeros(2)}, r"stage 0: L must have shape \(2, 2\), got \(2,\)"),
        ({"L": np.ones((2, 2))}, "stage 0: L must be lower triangular"),
        ({"E": (np.ones((3, 1)),)}, r"stage 0: E\[0\] must have shape \(2, \*\), got \(3, 1\)"),
        ({"E": ()}, "has network coefficients E exactly when it has a time t, got t = 0.5 and 0"),
        ({"t": None}, "exactly when it has a time t, got t = None and 1"),
        ({"H": (COLUMN,)}, "stage 0 reads 1 history rows, 0 are kept"),
        ({"A": None}, "stage 0: A and B come together"),
        ({"B": None}, "stage 0: A and B come together"),
        ({"B": np.ones((1, 3))}, r"stage 0: B must have shape \(\*, 2\), got \(1, 3\)"),
        ({"A": (ONE, ONE)}, "stage 0: A needs a block per output, got 2 for 1"),
        ({"A": (ROW,)}, r"stage 0: A\[0\] must have shape \(1, 1\), got \(1, 2\)"),
        ({"P": np.array([[1.0, np.nan], [0.0, 1.0]])}, "stage 0 of test has non-finite"),
        ({"E": (np.array([[np.inf], [0.0]]),)}, "stage 0 of test has non-finite coefficients"),
    ],
)
def test_refusals(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan_of(replace(GOOD, **change))


def test_more_refusals() -> None:
    with pytest.raises(ValueError, match="a plan needs at least one stage, got none"):
        Plan((), CLD(), "test", 1, "score", np.array([1.0, 0.5]))
    with pytest.raises(ValueError, match=r"stage 1: H\[0\] must have shape \(2, 1\), got \(2, 2\)"):
        plan_of(GOOD, replace(GOOD, H=(I2,)))
    bad = replace(GOOD, L=np.array([[np.nan, 0.0], [0.0, 0.0]]))
    with pytest.raises(ValueError, match="stage 1 of test has non-finite"):
        plan_of(GOOD, bad)
