"""Quality against network evaluations: the published samplers, ours, and a fitted plan."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from cldfast.lab.metrics import sliced_w2
from cldfast.planner.plan import Plan

# Network calls of the plan that was fitted to the network, and its name in tables.
EVALUATIONS = 8
FITTED = f"plans/{EVALUATIONS}.json"
# Samplers with their numbers of evaluations: "em" and "sscs" on the quadratic grid are those of
# Dockhorn, Vahdat, Kreis (2022). All but the fitted plan spend the last one on the clean estimate.
CURVES: tuple[tuple[str, bool, tuple[int, ...]], ...] = (
    ("auto", False, (5, 8, 10, 20)),
    ("em", True, (10, 20)),
    ("sscs", True, (10, 20)),
    ("em", True, (50, 100)),
    ("sscs", True, (50, 100)),
)
# Long runs are left out when the measurements have taken so many seconds, which happens on a slow
# or a busy machine only.
LONG, PATIENCE = 50, 25.0
# Two distances are the same quality where they differ by no more than this factor: over sampling
# seeds those of 512 digits vary by about 5 %.
SAME = 1.05
# Uniform grey has a smaller distance than this, so the curve leaves out what is farther away.
DIVERGED = 1.0

Point = dict[str, Any]


@dataclass(frozen=True)
class Sampler:
    """A sampler with so many evaluations; `plan` where it is not made by name."""

    name: str
    evaluations: int
    published: bool = False
    plan: Plan | None = None

    def options(self) -> dict[str, Any]:
        """The keyword arguments of `cldfast.sample`."""
        if self.plan is not None:
            return {"plan": self.plan}
        # The clean estimate at the end is one evaluation more than there are steps.
        grid = "quadratic" if self.published else None
        return {
            "solver": self.name, "steps": self.evaluations - 1, "grid": grid, "denoise": True
        }  # fmt: skip


def measure(
    samplers: Sequence[Sampler], draw: Callable[..., Tensor], test: Tensor
) -> tuple[Tensor, list[Point]]:
    """The samples of the first sampler, and of each the distance to test data and the seconds.

    The distance is None for a sampler that diverged.
    """
    first: Tensor | None = None
    points: list[Point] = []
    draw(solver="auto", steps=1)  # threads start and memory is mapped before the clock runs
    began = time.perf_counter()
    for sampler in samplers:
        if sampler.evaluations >= LONG and time.perf_counter() - began > PATIENCE:
            continue
        start, drawn = time.perf_counter(), None
        try:
            drawn = draw(**sampler.options())
        except ValueError as error:
            if "diverged" not in str(error):
                raise
        seconds = time.perf_counter() - start
        first = drawn if first is None else first
        points.append(
            {
                "sampler": sampler.name, "published": sampler.published,
                "evaluations": sampler.evaluations, "seconds": seconds,
                "sliced_w2": None if drawn is None else sliced_w2(drawn, test),
            }
        )  # fmt: skip
    assert first is not None
    return first, points


def series(points: Sequence[Point]) -> dict[str, tuple[list[int], list[float]]]:
    """Evaluations and distances of each sampler, to be drawn."""
    made: dict[str, tuple[list[int], list[float]]] = {}
    for point in sorted(points, key=lambda p: (not p["published"], p["sampler"], p["evaluations"])):
        name = f"{point['sampler']} (published)" if point["published"] else point["sampler"]
        evaluations, values = made.setdefault(name, ([], []))
        distance = point["sliced_w2"]
        evaluations.append(point["evaluations"])
        values.append(np.nan if distance is None or distance > DIVERGED else distance)
    return made


def equal_quality(points: Sequence[Point]) -> dict[str, Any]:
    """For each sampler the point with fewest evaluations at the quality of the best published one.

    Keys: "sliced_w2", the distance that counts as that quality; "points".
    """
    known = [point for point in points if point["sliced_w2"] is not None]
    best = min((p["sliced_w2"] for p in known if p["published"]), default=float("inf"))
    found: dict[str, Point] = {}
    for point in sorted(known, key=lambda p: p["evaluations"]):
        if point["sliced_w2"] <= SAME * best:
            found.setdefault(point["sampler"], point)
    return {"sliced_w2": SAME * best, "points": list(found.values())}
