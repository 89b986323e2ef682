"""What is free in a plan, as one vector of numbers, and the plan that a vector stands for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from cldfast.kernels.limits import MOST_PLANES
from cldfast.planner.make_plan import with_inputs
from cldfast.planner.parameterization import data_form, seen_by
from cldfast.planner.plan import Plan
from cldfast.planner.stage import Stage


class FreePlan:
    """A base plan and its free numbers: a vector (size,), float64 on the host, zero for the base.

    Free are the coefficients of the state, the outputs and the history rows of every stage, the
    entries of its noise factor that are not zero, and the times of the evaluations. A stage may
    read all earlier history rows, as far as kernels take so many planes.

    Raises ValueError for a base whose evaluations do not descend in time.
    """

    def __init__(self, base: Plan) -> None:
        self.base = base
        self.stages = _with_full_history(base.stages)
        self.matrices = [torch.from_numpy(stage.matrix()) for stage in self.stages]
        self._free = [_free_entries(stage) for stage in self.stages]
        self._scales = [torch.ones_like(matrix) for matrix in self.matrices]
        times = [stage.t for stage in self.stages if stage.t is not None]
        self._knots = np.array([base.sde.T, *times, base.grid[-1]])
        self._gaps = torch.from_numpy(-np.diff(self._knots))
        if bool((self._gaps < 0.0).any()):
            raise ValueError(
                f"a base must evaluate at descending times, {base.solver} evaluates at {times}"
            )
        self._sizes = [int(free.sum()) for free in self._free]
        self.size = sum(self._sizes) + len(self._gaps)

    def scale(self, scales: Sequence[Tensor]) -> None:
        """Set what one unit of a free coefficient changes, a matrix for each stage's own."""
        self._scales = [s.double() for s in scales]

    def zeros(self) -> Tensor:
        """The vector of the base."""
        return torch.zeros(self.size, dtype=torch.float64, device="cpu")

    def tables(self, vector: Tensor) -> list[Tensor]:
        """The matrices (1, 2 + q, n) of all stages, differentiable in the vector."""
        parts = vector[: sum(self._sizes)].split(self._sizes)
        rows = zip(self.matrices, self._free, self._scales, parts, strict=True)
        return [
            (matrix + scale * torch.zeros_like(matrix).masked_scatter(free, part))[None]
            for matrix, free, scale, part in rows
        ]

    def times(self, vector: Tensor) -> Tensor:
        """The times of the evaluations (evaluations,), descending, differentiable in the vector.

        A free number is the log of the factor on the gap between two times, before all gaps are
        scaled to lead from T to the end of the grid. Gaps of zero stay zero.
        """
        way = (self._gaps * vector[sum(self._sizes) :].exp()).cumsum(0)
        share = way[:-1] / way[-1]
        return (1.0 - share) * self._knots[0] + share * self._knots[-1]

    def inputs(self, times: Tensor) -> tuple[Tensor | None, Tensor]:
        """What the network sees at times (n,): rows (n, s, 2) of the state, or None, and arguments.

        Differentiable in the times.
        """
        form = data_form(self.base.parameterization)
        if form is None or not form.sees_y:
            return None, times
        rows, arguments = seen_by(form, self.base.sde.marginal(times))
        return rows, arguments

    def plan(self, vector: Tensor) -> Plan:
        """The plan of a vector; ValueError where its coefficients are not finite."""
        tables = [table[0].detach().numpy() for table in self.tables(vector)]
        times = self.times(vector).detach().numpy()
        knots = np.array([self._knots[0], *times, self._knots[-1]])
        known, first = np.unique(self._knots, return_index=True)

        def moved(t: float | np.ndarray) -> np.ndarray:
            result: np.ndarray = np.interp(t, known, knots[first])
            return result

        evaluated = iter(times)
        made = tuple(
            _with_matrix(
                stage,
                matrix,
                float(next(evaluated)) if stage.evaluates else None,
                float(moved(stage.t_next)),
            )
            for stage, matrix in zip(self.stages, tables, strict=True)
        )
        stages = with_inputs(made, self.base.sde, self.base.parameterization)
        grid = moved(self.base.grid)
        name = self.base.solver.removeprefix("fitted ")
        return replace(self.base, stages=stages, solver=f"fitted {name}", order=0, grid=grid)


def _with_full_history(stages: Sequence[Stage]) -> tuple[Stage, ...]:
    """The stages with zero blocks for the history rows that they do not read."""
    kept: list[int] = []
    result = []
    for stage in stages:
        blocks = list(stage.H)
        room = MOST_PLANES - 4 - sum(e.shape[1] for e in stage.E) - sum(h.shape[1] for h in blocks)
        for planes in kept[len(blocks) :]:
            room -= planes
            if room < 0:
                break
            blocks.append(np.zeros((2, planes)))
        result.append(replace(stage, H=tuple(blocks)))
        if stage.B is not None:
            kept.insert(0, stage.B.shape[0])
    return tuple(result)


def _free_entries(stage: Stage) -> Tensor:
    """Which entries of a stage's matrix are free, a mask of its shape."""
    matrix = stage.matrix()
    free = np.ones(matrix.shape, dtype=bool)
    noise = matrix.shape[1] - 2
    free[:, noise:] = matrix[:, noise:] != 0.0
    # A history row is made before the stage, of state and outputs alone.
    free[2:, noise - sum(h.shape[1] for h in stage.H) :] = False
    return torch.from_numpy(free)


def _with_matrix(stage: Stage, matrix: np.ndarray, t: float | None, t_next: float) -> Stage:
    """The stage with other coefficients and times."""
    widths = [2, *(b.shape[1] for b in (*stage.E, *stage.H)), 2]
    P, *blocks, L = np.split(matrix[:2], np.cumsum(widths)[:-1], axis=1)
    outputs = len(stage.E)
    A, B = stage.A, stage.B
    if B is not None:
        B, *rows = np.split(matrix[2:], np.cumsum(widths)[:-1], axis=1)
        A = tuple(rows[:outputs])
    E, H = tuple(blocks[:outputs]), tuple(blocks[outputs:])
    return Stage(t, t_next, P, E, H, L, A, B)
