"""Time grids: their formulas, their end points, and what they refuse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cldfast.planner.grids import DEFAULT_STEPS, GRIDS, make_grid


def test_formulas() -> None:
    """Dockhorn et al. (2022) square the position; Karras et al. (2022), eq. 5 with sigma = t."""
    s = np.array([1.0, 0.75, 0.5, 0.25, 0.0])
    options: dict[str, Any] = {"T": 2.0, "t_min": 0.1, "steps": 4}
    assert np.allclose(make_grid("linear", **options), 0.1 + 1.9 * s, rtol=1e-15)
    assert np.allclose(make_grid("quadratic", **options), 0.1 + 1.9 * s**2, rtol=1e-15)
    i = np.arange(5)
    karras = (2.0 ** (1 / 3) + i / 4 * (0.1 ** (1 / 3) - 2.0 ** (1 / 3))) ** 3
    assert np.allclose(make_grid("power", **options, rho=3.0), karras, rtol=1e-14)
    assert np.allclose(
        make_grid("power", **options, rho=1.0), make_grid("linear", **options), rtol=1e-14
    )


@given(
    st.sampled_from(GRIDS),
    st.integers(1, 300),
    st.floats(0.5, 10.0),
    st.sampled_from([0.0, 1e-5, 1e-3, 0.1]),
)
def test_every_grid_descends_between_its_ends(
    grid: str, steps: int, T: float, t_min: float
) -> None:
    times = make_grid(grid, T=T, t_min=t_min, steps=steps)
    assert times.shape == (steps + 1,) and times.dtype == np.float64
    assert times[0] == T and times[-1] == t_min
    assert np.all(np.diff(times) < 0.0)


def test_default_steps_and_own_times() -> None:
    assert len(make_grid("linear", T=1.0, t_min=0.1)) == DEFAULT_STEPS + 1
    own = [0.9, 0.5, 0.0]
    times = make_grid(own, T=1.0, t_min=1e-3)
    assert np.array_equal(times, own)
    assert np.array_equal(make_grid(np.array(own), T=1.0, t_min=0.5, steps=2), own)
    # A copy: what the caller does to his array later does not reach the plan.
    array = np.array(own)
    times = make_grid(array, T=1.0, t_min=0.0)
    array[0] = 7.0
    assert times[0] == 0.9


@pytest.mark.parametrize(
    ("grid", "options", "error", "message"),
    [
        ("cubic", {}, ValueError, "unknown grid 'cubic'; expected linear, quadratic, power, or a"),
        ("linear", {"steps": 0}, ValueError, "steps must be at least 1, got 0"),
        ("linear", {"steps": 2.0}, TypeError, "steps must be an integer, got float"),
        ("linear", {"steps": True}, TypeError, "steps must be an integer, got bool"),
        ("linear", {"t_min": 1.0}, ValueError, r"t_min must lie in \[0, T\) with T = 1.0, got 1.0"),
        ("linear", {"t_min": -0.1}, ValueError, "t_min must lie in"),
        ("linear", {"t_min": float("nan")}, ValueError, "t_min must lie in"),
        ("power", {"rho": 0.0}, ValueError, "rho must be finite and > 0, got 0.0"),
        ("power", {"steps": 1000, "rho": 200.0, "t_min": 0.0}, ValueError, "closer together than"),
        ([0.1, 0.5], {}, ValueError, r"must descend strictly from T to t_min .* got 0.1 ... 0.5"),
        ([1.0, 0.5, 0.5], {}, ValueError, "must descend strictly"),
        ([1.0], {}, ValueError, r"flat array of at least 2 times, got shape \(1,\)"),
        ([[1.0, 0.5]], {}, ValueError, r"flat array of at least 2 times, got shape \(1, 2\)"),
        ([1.0, float("nan")], {}, ValueError, "must be finite"),
        ([1.5, 0.5], {}, ValueError, r"must lie in \[0, T = 1.0\], got \[0.5, 1.5\]"),
        ([1.0, -0.5], {}, ValueError, "must lie in"),
        ([1.0, 0.5], {"steps": 3}, ValueError, "steps = 3, but the grid given has 1 intervals"),
    ],
)
def test_refusals(grid: Any, options: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make_grid(grid, **{"T": 1.0, "t_min": 1e-3, "steps": None, **options})
