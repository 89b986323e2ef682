"""Noise that agrees between step counts: the increments of one Brownian path for each sample.

The path W over [0, T] is a virtual tree. Its root is W(T); the midpoint of an interval [a, b] is
Levy's bridge,

    W((a + b)/2) = (W(a) + W(b))/2 + sqrt(b - a)/2 z,

with the addressed normals z of that node of the tree (its number takes the place of the stage). So
the path is a function of (seed, sample, time): nothing is stored, times may be asked in any order.

Source: Li, Wong, Chen, Duvenaud (2020), "Scalable gradients for stochastic differential equations",
section 4, the virtual Brownian tree.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import overload

import numpy as np
import torch

from cldfast import kernels
from cldfast.kernels import NoiseAddress, Stream
from cldfast.planner.plan import Plan

# The tree ends at intervals of 2^-24 T = 6e-8 T: the last step of a quadratic grid of 4,000 steps.
# Within an interval each time by itself has the right law. Numbers of nodes fit into the 32 bits of
# a stage index.
DEPTH = 24


class BrownianPath:
    """W of consecutive samples at any time in [0, T], shaped like states `like`, float64.

    address: seed and first sample; the stream is its own.
    """

    def __init__(self, like: torch.Tensor, T: float, address: NoiseAddress) -> None:
        self.T, self.address = T, address.in_stream(Stream.BROWNIAN)
        self.shape = (like.shape[0], like.shape[1] // 2, *like.shape[2:])
        self.device = like.device

    def __call__(self, t: float) -> torch.Tensor:
        """W(t); ValueError for a time outside [0, T]."""
        if not 0.0 <= t <= self.T:
            raise ValueError(f"a Brownian path is asked in [0, {self.T}], got {t}")
        a, b, node = 0.0, self.T, 1
        low = torch.zeros((), dtype=torch.float64, device=self.device)
        high = math.sqrt(self.T) * self._normals(0)
        for _ in range(DEPTH):
            if t in (a, b):
                break
            middle = 0.5 * (a + b)
            value = 0.5 * (low + high) + 0.5 * math.sqrt(b - a) * self._normals(node)
            if t < middle:
                b, high, node = middle, value, 2 * node
            else:
                a, low, node = middle, value, 2 * node + 1
        if t == a:
            return low.expand_as(high)
        if t == b:
            return high
        share = (t - a) / (b - a)
        spread = math.sqrt((t - a) * (b - t) / (b - a))
        return low + share * (high - low) + spread * self._normals(node)

    def _normals(self, node: int) -> torch.Tensor:
        # Always of the fastest backend, so that the path does not depend on that of the run.
        return kernels.normals(
            self.shape, self.address.at_stage(node), dtype=torch.float64, device=self.device
        )


class BrownianNoise(Sequence["torch.Tensor | None"]):
    """The normals of a plan's stages from a Brownian path, made when they are asked for.

    A stage with noise takes `(W(t) - W(s))/sqrt(t - s)` for the time from the last such stage's end
    to its own. For `em` that is the path itself. For `sscs` and the exponential solvers, whose
    noise is an integral over the step with a weight, it is a coupling: law and order stay, and
    paths of different step counts differ by the order of the step.

    Raises ValueError for a plan with noise that no time passes by.
    """

    def __init__(self, plan: Plan, u: torch.Tensor, address: NoiseAddress) -> None:
        self.dtype = u.dtype
        self.spans: list[tuple[float, float] | None] = []
        t = start = float(plan.grid[0])
        for index, stage in enumerate(plan.stages):
            if not np.any(stage.L):
                self.spans.append(None)
                continue
            if not stage.t_next < t:
                raise ValueError(
                    f"stage {index} of {plan.solver} adds noise while no time passes: it has no "
                    "part in a Brownian path; leave out noise='brownian'"
                )
            self.spans.append((t, stage.t_next))
            t = stage.t_next
        self.path = BrownianPath(u, start, address)
        self._last: tuple[float, torch.Tensor] | None = None

    def __len__(self) -> int:
        return len(self.spans)

    @overload
    def __getitem__(self, index: int) -> torch.Tensor | None: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[torch.Tensor | None]: ...
    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        """The normals of stage number `index`, in the dtype of the states; None for no noise."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        span = self.spans[index]
        if span is None:
            return None
        t, s = span
        # The step before this one has just asked for W(t).
        before = self._last[1] if self._last and self._last[0] == t else self.path(t)
        after = self.path(s)
        self._last = (s, after)
        return ((before - after) / math.sqrt(t - s)).to(self.dtype)
