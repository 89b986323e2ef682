"""Samples of plans, and what they are compared with: for the fit, to choose a plan, to judge it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cldfast.fitting.objective import Objective, Target
from cldfast.kernels import NoiseAddress
from cldfast.network import Network
from cldfast.planner.plan import Plan
from cldfast.sampling.run import initial_state, run

# Where the samples of a role begin. The roles share a seed and no sample.
FIT, CHOOSE, JUDGE = 0, 1 << 40, 2 << 40
# Samples of a teacher for the energy distance are none of those whose paths are compared.
_OF_TEACHER = 1 << 42


@dataclass(frozen=True)
class Source:
    """Draws samples of plans, chunk by chunk, and draws targets for them.

    net, seed, backend: as for `cldfast.run`. shape: of one sample. dtype, device: of the states.
    chunk: rows of a network call. rows: for each role the data, or None. teacher: for what data do
    not give.
    """

    net: Network
    seed: int
    backend: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    chunk: int
    rows: dict[int, Tensor]
    ends: dict[int, Tensor]

    def chunks(self, first: int, count: int) -> list[tuple[slice, NoiseAddress]]:
        """The rows of each chunk of samples, and the address of their noise."""
        return [
            (slice(k, min(k + self.chunk, count)), NoiseAddress(self.seed, first + k))
            for k in range(0, count, self.chunk)
        ]

    def start(self, rows: slice, where: NoiseAddress, plan: Plan) -> Tensor:
        """Initial states of a chunk, (rows, 2d) or (rows, 2C, H, W)."""
        return initial_state(
            plan.sde, (rows.stop - rows.start, *self.shape), seed=where.seed,
            first_index=where.first_index, device=self.device, dtype=self.dtype,
            backend=self.backend,
        )  # fmt: skip

    def draw(self, plan: Plan, first: int, count: int) -> Tensor:
        """Samples (count, ...) of a plan, by number; without gradients."""
        made = []
        for rows, where in self.chunks(first, count):
            u = self.start(rows, where, plan)
            u = run(
                plan, self.net, u, seed=self.seed, first_index=where.first_index,
                backend=self.backend, nonfinite="return",
            )  # fmt: skip
            made.append(u.chunk(2, dim=1)[0])
        return torch.cat(made)

    def teach(self, teacher: Plan, role: int, count: int, *, rows: bool, ends: bool) -> None:
        """Fill in what a teacher gives for a role: `count` samples, `count` end points."""
        if rows:
            self.rows[role] = self.draw(teacher, _OF_TEACHER + role, count)
        if ends:
            self.ends[role] = self.draw(teacher, role, count)

    def target(self, role: int, first: int, count: int) -> Target:
        """What samples first, first + 1, ... of a role are compared with."""
        ends = self.ends.get(role)
        return Target(self.rows.get(role), None if ends is None else ends[first : first + count])

    def value(self, objective: Objective, plan: Plan, role: int, count: int) -> float:
        """The objective of a plan on the samples of a role: the same numbers for every plan."""
        x = self.draw(plan, role, count)
        generator = torch.Generator().manual_seed(self.seed + role)
        with torch.no_grad():
            return float(objective(x, self.target(role, 0, count), generator))
