"""A sampler as data: a `Plan` is a list of affine `Stage` rows, made on the host in float64."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from cldfast.files import PathLike, located, write_json
from cldfast.planner.error_budget import ErrorBudget, error_budget
from cldfast.planner.law import GaussianLaw, gaussian_law
from cldfast.planner.parameterization import Parameterization, same_parameterization
from cldfast.planner.plan_file import plan_config, plan_fields, read_config, same_process
from cldfast.planner.stage import Stage
from cldfast.process.path import Process


@dataclass(frozen=True, eq=False)
class Plan:
    """A sampler on a fixed grid: stages in order, from the law at T to that at `grid[-1]`.

    stages: the affine updates. sde, solver, parameterization: what the stages were made from.
    order: of convergence in law, 0 for fitted coefficients. grid: (steps + 1,) descending times.
    guidance_term: whether the last output is a term added to the score, not a network's.
    guidance_scale: of classifier-free guidance, None for none; stages have it folded in.
    """

    stages: tuple[Stage, ...]
    sde: Process
    solver: str
    order: int
    parameterization: Parameterization
    grid: np.ndarray
    guidance_term: bool = False
    guidance_scale: float | None = None

    def __post_init__(self) -> None:
        if not self.stages:
            raise ValueError("a plan needs at least one stage, got none")
        kept: list[int] = []  # planes of the history rows so far, newest first
        for index, stage in enumerate(self.stages):
            _validate(index, stage, kept)
            if stage.B is not None:
                kept.insert(0, stage.B.shape[0])
        matrices = tuple(stage_matrices(self.stages))
        object.__setattr__(self, "_matrices", matrices)
        flat = np.concatenate([m.ravel() for m in matrices])
        if not np.all(np.isfinite(flat)):
            bad = next(i for i, m in enumerate(matrices) if not np.all(np.isfinite(m)))
            raise ValueError(
                f"stage {bad} of {self.solver} has non-finite coefficients (NaN or infinity)"
            )

    @property
    def evaluations(self) -> int:
        """Network calls of one run."""
        return sum(stage.evaluates for stage in self.stages)

    @property
    def steps(self) -> int:
        """Grid intervals."""
        return len(self.grid) - 1

    @property
    def output_planes(self) -> tuple[int, ...]:
        """Planes per coordinate of each network output (x0 or a velocity score: 1; full: 2)."""
        for stage in self.stages:
            if stage.evaluates:
                return tuple(e.shape[1] for e in stage.E)
        return ()

    @property
    def pair(self) -> bool:
        """Whether stages read two outputs of a network: conditional and unconditional."""
        return len(self.output_planes) == 2 + self.guidance_term

    @property
    def history_length(self) -> int:
        """History rows that a run must keep."""
        return max(len(stage.H) for stage in self.stages)

    def matrices(self) -> tuple[np.ndarray, ...]:
        """The matrices that a run executes, one (2 + q + s, n) a stage, float64; made once.

        The last s rows are the planes that the network of the next stage sees, where it sees them.
        """
        return self._matrices  # type: ignore[attr-defined, no-any-return]

    def gaussian_law(
        self,
        mean0: np.ndarray | None = None,
        var0: np.ndarray | None = None,
        data_mean: float = 0.0,
        data_var: float = 1.0,
    ) -> GaussianLaw:
        """Exact output mean (2,) and covariance (2, 2) for data `N(data_mean, data_var)`.

        mean0, var0: initial law at T, (2,) and (2, 2); None is the stationary law. No sampling:
        with Gaussian data the exact score is linear, and so is every stage.

        Raises ValueError for a plan with a guidance term, which may be any function.
        """
        return gaussian_law(*self._linear, mean0, var0, data_mean, data_var)

    def error_budget(
        self,
        data_mean: float = 0.0,
        data_var: float = 1.0,
        score_error: float = 0.0,
        over: str = "x",
        of: str = "velocity",
    ) -> ErrorBudget:
        """Wasserstein-2 errors on data `N(data_mean, data_var)` by their source, without sampling.

        score_error: M >= 0, the size of a constant added to the score. of: "velocity" for an error
        of the velocity score, "full" for one of both rows. over: "x", or "phase" for (x, v). See
        `cldfast.planner.error_budget.error_budget`.
        """
        start = float(self.grid[0])
        return error_budget(*self._linear, start, data_mean, data_var, score_error, over, of)

    def config(self, figures: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The plan as plain data, of which `from_config` makes it again.

        figures: plain data about the plan, kept with it.

        Raises ValueError for a process whose rate is a function of one's own.
        """
        return plan_config({f.name: getattr(self, f.name) for f in fields(self)}, figures or {})

    @classmethod
    def from_config(cls, values: Mapping[str, Any]) -> Plan:
        """The inverse of `config`; ValueError for what is no plan."""
        return cls(**plan_fields(values))

    def save(self, path: PathLike, figures: Mapping[str, Any] | None = None) -> None:
        """Write the plan as JSON, with plain figures about it; ValueError as for `config`."""
        write_json(path, self.config(figures))

    @classmethod
    def load(
        cls,
        path: PathLike,
        sde: Process | None = None,
        parameterization: Parameterization | None = None,
    ) -> Plan:
        """Read what `save` wrote.

        sde, parameterization: what the plan must be for; None takes those of the file.

        Raises ValueError, in one line that names the file, for a file that is missing or no plan,
        and for a plan for another process or parameterisation.
        """
        try:
            plan = cls.from_config(read_config(path))
            plan.check_made_for(plan.sde if sde is None else sde, parameterization)
        except (ValueError, TypeError) as error:
            raise located(Path(path), error) from error
        return plan

    @staticmethod
    def figures(path: PathLike) -> dict[str, Any]:
        """The figures that a plan was saved with; ValueError as for `load`."""
        figures: dict[str, Any] = read_config(path).get("figures", {})
        return figures

    def check_made_for(
        self, sde: Process, parameterization: Parameterization | None = None
    ) -> None:
        """ValueError for a plan of another process or, unless None, another parameterisation."""
        if not same_process(self.sde, sde):
            raise ValueError(f"the plan is for another process: for {self.sde!r}, not {sde!r}")
        if parameterization is None:
            return
        if not same_parameterization(parameterization, self.parameterization):
            raise ValueError(
                f"the plan is for networks of the parameterization {str(self.parameterization)!r}, "
                f"not {str(parameterization)!r}"
            )

    @property
    def _linear(self) -> tuple[tuple[Stage, ...], Process, Parameterization]:
        """What the exact law of the output needs; ValueError where that law is not linear."""
        if self.guidance_term:
            raise ValueError(
                "the law of a plan with a guidance term depends on that term: "
                "make the plan with guidance_term=False"
            )
        return self.stages, self.sde, self.parameterization


def looks(stages: Sequence[Stage]) -> list[np.ndarray | None]:
    """For each stage the rows (s, 2) by which the network of the next stage sees the state."""
    return [*(stage.seen for stage in stages[1:]), None]


def stage_matrices(stages: Sequence[Stage]) -> list[np.ndarray]:
    """The matrices that a run of these stages executes; each makes what the next network sees."""
    return [stage.matrix(look) for stage, look in zip(stages, looks(stages), strict=True)]


def _validate(index: int, stage: Stage, kept: list[int]) -> None:
    def expect(name: str, array: np.ndarray, rows: int | None, columns: int | None) -> None:
        shape = np.shape(array)
        if len(shape) != 2 or shape[0] != (rows or shape[0]) or shape[1] != (columns or shape[1]):
            wanted = f"({rows or '*'}, {columns or '*'})"
            raise ValueError(f"stage {index}: {name} must have shape {wanted}, got {shape}")

    for name in ("E", "H", "A"):
        blocks = getattr(stage, name)
        if not isinstance(blocks, tuple) and not (name == "A" and blocks is None):
            raise TypeError(
                f"stage {index}: {name} must be a tuple of blocks, got {type(blocks).__name__}"
            )
    expect("P", stage.P, 2, 2)
    expect("L", stage.L, 2, 2)
    if stage.L[0, 1] != 0.0:
        raise ValueError(f"stage {index}: L must be lower triangular, got {stage.L.tolist()}")
    if bool(stage.E) != stage.evaluates:
        raise ValueError(
            f"stage {index}: a stage has network coefficients E exactly when it has a time t, "
            f"got t = {stage.t} and {len(stage.E)} blocks"
        )
    for j, e in enumerate(stage.E):
        expect(f"E[{j}]", e, 2, None)
    if stage.seen is not None:
        expect("seen", stage.seen, None, 2)
        if not stage.evaluates:
            raise ValueError(f"stage {index}: seen planes belong to a stage with a time t")
    if len(stage.H) > len(kept):
        raise ValueError(f"stage {index} reads {len(stage.H)} history rows, {len(kept)} are kept")
    for k, h in enumerate(stage.H):
        expect(f"H[{k}]", h, 2, kept[k])
    if (stage.A is None) != (stage.B is None):
        raise ValueError(f"stage {index}: A and B come together")
    if stage.A is not None and stage.B is not None:
        expect("B", stage.B, None, 2)
        if len(stage.A) != len(stage.E):
            raise ValueError(
                f"stage {index}: A needs a block per output, got {len(stage.A)} for {len(stage.E)}"
            )
        for j, (a, e) in enumerate(zip(stage.A, stage.E, strict=True)):
            expect(f"A[{j}]", a, stage.B.shape[0], e.shape[1])
