"""How a solver makes itself known to `make_plan`: the decorator `solver`."""

from __future__ import annotations

import inspect
import math
import types
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar, get_origin

import numpy as np

from cldfast.planner.stage import Stage

Build = TypeVar("Build", bound=Callable[..., Iterable[Stage]])


@dataclass(frozen=True)
class Solver:
    """A registered solver.

    name: by which `make_plan` and `sample` know the solver. build: its function.
    order: of convergence in law, a number or a function of the options.
    evaluations_per_step: network calls of a step in the middle of a run.
    quadratic_from: steps from which the grid "auto" is quadratic; with fewer, "auto" is logistic. A
        number or a function of the options.
    options: the keyword-only parameters of `build`, with evaluated annotations.
    """

    name: str
    build: Callable[..., Iterable[Stage]]
    order: int | Callable[..., int]
    evaluations_per_step: int
    quadratic_from: float | Callable[..., float]
    options: Mapping[str, inspect.Parameter]

    def settings(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """All options: those given, and the defaults of the others.

        Raises TypeError for an unknown option or a value of another type than the annotation's.
        """
        for name, value in given.items():
            if name not in self.options:
                known = ", ".join(map(str, self.options.values())) or "none"
                raise TypeError(f"solver {self.name!r} takes no option {name!r}; it takes {known}")
            if not _fits(value, self.options[name].annotation):
                raise TypeError(
                    f"option {name!r} of solver {self.name!r} is declared as "
                    f"'{self.options[name]}', got {value!r} ({type(value).__name__})"
                )
        defaults = {name: option.default for name, option in self.options.items()}
        return {**{k: v for k, v in defaults.items() if v is not inspect.Parameter.empty}, **given}

    def order_in_law(self, settings: Mapping[str, Any]) -> int:
        """The order with these `settings`."""
        return int(_value(self.order, settings))

    def auto_grid(self, steps: int, settings: Mapping[str, Any]) -> str:
        """The grid that `grid="auto"` stands for, with these `settings`.

        The last step of a logistic grid is a leap. With many steps the leap costs more than the
        first steps gain.
        """
        return "quadratic" if steps >= _value(self.quadratic_from, settings) else "logistic"


SOLVERS: dict[str, Solver] = {}
# What `make_plan` and `sample` take for themselves, so that no solver would see it.
RESERVED = {
    "sde", "solver", "steps", "grid", "t_min", "parameterization", "denoise", "guidance_scale",
    "guidance_term", "rho", "net", "shape", "seed", "first_index", "generator",
    "batch_size", "device", "dtype", "backend", "noise", "init", "guidance", "inpaint", "callback",
    "progress", "return_velocity", "graph", "nonfinite", "nfe", "conditions",
    "null",
}  # fmt: skip


def solver(
    name: str,
    *,
    order: int | Callable[..., int],
    evaluations_per_step: int = 1,
    quadratic_from: float | Callable[..., float] = math.inf,
    table: dict[str, Solver] = SOLVERS,
) -> Callable[[Build], Build]:
    """Register a function `(sde, grid, parameterization, *, options) -> stages` as a solver.

    grid: (steps + 1,) times, descending; the stages lead from `grid[0]` to `grid[-1]`. The
    keyword-only parameters of the function are the solver's options. Once the file is imported,
    `cldfast.make_plan(sde, name)` and `cldfast.sample(..., solver=name)` know the solver.
    docs/architecture.md has examples.

    order, evaluations_per_step, quadratic_from: see `Solver`; functions of the options are called
    with all options by name, defaults included. table: where the solver is entered; that of
    phase-space processes, or of another kind of process.

    Raises ValueError for a name that another function has, or an option that `make_plan` or
    `sample` would take for itself.
    """

    def register(build: Build) -> Build:
        known = table.get(name)
        if known is not None and _origin(known.build) != _origin(build):
            raise ValueError(f"the name {name!r} is taken by the solver {_origin(known.build)}")
        options = _options(build)
        if taken := RESERVED & options.keys():
            raise ValueError(
                f"solver {name!r} may not call its options {', '.join(sorted(taken))}: arguments "
                "of make_plan and sample have these names"
            )
        table[name] = Solver(name, build, order, evaluations_per_step, quadratic_from, options)
        return build

    return register


def _value(rule: float | Callable[..., float], settings: Mapping[str, Any]) -> float:
    return rule(**settings) if callable(rule) else rule


def _origin(build: Callable[..., Any]) -> str:
    """Where a function is from; a file that is imported again has the same."""
    return f"{build.__module__}.{build.__qualname__}"


def _options(build: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    result = {}
    for name, parameter in inspect.signature(build).parameters.items():
        if parameter.kind is not parameter.KEYWORD_ONLY:
            continue
        hint = parameter.annotation
        if isinstance(hint, str):
            # An annotation that cannot be evaluated stays a string, and is not checked.
            with suppress(Exception):
                hint = eval(hint, getattr(build, "__globals__", {}))
        result[name] = parameter.replace(annotation=hint)
    return result


# What passes for an annotation beside its own instances.
_ALSO: dict[object, tuple[type, ...]] = {
    float: (int, np.integer, np.floating), int: (np.integer,), bool: (np.bool_,),
}  # fmt: skip


def _fits(value: object, hint: Any) -> bool:
    """Whether a value is of the annotated type; True for annotations that say no plain type."""
    if isinstance(hint, types.UnionType):
        return any(_fits(value, part) for part in hint.__args__)
    if not isinstance(hint, type) or get_origin(hint) or hint is inspect.Parameter.empty:
        return True
    if isinstance(value, bool) and hint in (int, float):
        return False
    return isinstance(value, (hint, *_ALSO.get(hint, ())))
