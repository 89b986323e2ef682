"""What a fit makes small: distances between samples of a plan and what they should be."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from cldfast.fitting.energy import directions, sliced_energy

OBJECTIVES = ("energy", "paths")
# An error at one standard deviation counts three times as much as one in the middle.
TAILS = 1.0
Features = Callable[[Tensor], Tensor]


def objective_weights(objective: str | Mapping[str, float]) -> dict[str, float]:
    """The weights of the parts of an objective, by name; ValueError for what is none."""
    weights = {objective: 1.0} if isinstance(objective, str) else dict(objective)
    unknown = sorted(str(name) for name in weights if name not in OBJECTIVES)
    if unknown or not weights:
        raise ValueError(
            f"objective must be one of {', '.join(OBJECTIVES)} or weights of such by name, "
            f"got {objective!r}"
        )
    for name, weight in weights.items():
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not weight > 0.0:
            raise ValueError(f"the weight of {name!r} must be a number > 0, got {weight!r}")
    return weights


@dataclass(frozen=True)
class Target:
    """What samples are compared with.

    rows: data, or samples of a teacher, (m, ...); None where the energy distance is not asked for.
    ends: end points of a teacher's paths from the initial states of the samples, (n, ...), or None.
    """

    rows: Tensor | None
    ends: Tensor | None


@dataclass(frozen=True)
class Objective:
    """A mixture of the sliced energy distance and the distance to a teacher's end points.

    weights: by name, see `objective_weights`. projections: random directions of the energy
    distance. features: a map of samples (n, ...) to rows (n, k) between which the energy distance
    is taken; None takes the samples themselves.
    """

    weights: dict[str, float]
    projections: int
    features: Features | None

    def __call__(self, x: Tensor, target: Target, generator: torch.Generator) -> Tensor:
        """The value for samples x (n, ...), (), differentiable in x.

        generator: of the directions, on the host.
        """
        parts = []
        if "energy" in self.weights:
            assert target.rows is not None
            mine, theirs = (self._rows(rows) for rows in (x, target.rows))
            along = directions(mine.shape[1], self.projections, generator).to(mine)
            distance = sliced_energy(mine, theirs, along, TAILS)
            parts.append(self.weights["energy"] * distance)
        if "paths" in self.weights:
            assert target.ends is not None
            parts.append(self.weights["paths"] * (x - target.ends).square().double().mean())
        return torch.stack(parts).sum()

    def _rows(self, x: Tensor) -> Tensor:
        rows = x if self.features is None else self.features(x)
        if not isinstance(rows, Tensor) or rows.ndim < 2 or len(rows) != len(x):
            got = tuple(rows.shape) if isinstance(rows, Tensor) else type(rows).__name__
            raise ValueError(f"features must map ({len(x)}, ...) to ({len(x)}, k), got {got}")
        return rows.flatten(1)
