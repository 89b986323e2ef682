"""Sampling loops as CUDA graphs: a step is captured once and replayed for all stages like it.

What a captured step reads and writes stays where it is: the state, the network's time, the history
rows as a ring, and the number of the stage, which the device counts itself and by which the stage
finds its matrix and its noise. So a replay costs one launch, whatever the network is made of. The
seed and the first sample lie on the device too: one recording serves all batches and runs alike.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from cldfast.caller import caller_level
from cldfast.kernels import Backend, NoiseAddress, recorded_step
from cldfast.kernels.limits import LAUNCH_OUTPUTS
from cldfast.planner.plan import Plan
from cldfast.planner.stage import Stage
from cldfast.sampling.recorders import Body, CaptureError, Recorder
from cldfast.sampling.steps import (
    look,
    network_arguments,
    planes_seen,
    stage_times,
    used_columns,
)

# The network's outputs at (stage, u, t, what it sees, its argument).
Evaluate = Callable[
    [Stage, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], Sequence[torch.Tensor]
]


class GraphWarning(UserWarning):
    """A loop that was asked for as a graph runs step by step instead."""


@dataclass(frozen=True)
class Kind:
    """What stages of one graph have in common: the planes they read, and what they make.

    outputs: planes of each network output, None for no evaluation. history: rows that are read.
    rows: planes of the history row that is made. seen: planes that are made for the next network.
    looks: whether this one sees such planes. used: a bit for each column that is not all zeros.
    """

    outputs: tuple[int, ...] | None
    history: int
    rows: int
    seen: int
    looks: bool
    used: int

    @classmethod
    def of(cls, stage: Stage, matrix: np.ndarray, seen: int) -> Kind:
        return cls(
            tuple(e.shape[1] for e in stage.E) if stage.evaluates else None,
            len(stage.H),
            stage.history_planes,
            seen,
            stage.seen is not None,
            used_columns(matrix),
        )


class Recording:
    """A plan's steps with all that they read and write in fixed memory, for any number of runs.

    u: a state like those to come. address: of the noise of the first run; later ones may have
    another seed and another first index, of which `recorded_step` says which. backend: one that
    counts steps. recorder: makes a replay of a step that has run once already.
    dtype: of the planes that the network sees.
    """

    def __init__(
        self,
        plan: Plan,
        u: torch.Tensor,
        address: NoiseAddress,
        backend: Backend,
        recorder: Recorder,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.plan, self.backend, self.recorder = plan, backend, recorder
        self.address, _ = recorded_step(address)
        self.evaluate: Evaluate | None = None
        self.u = torch.empty_like(u)
        self.step = torch.zeros(3, dtype=torch.int64, device=u.device)
        self.arguments = network_arguments(plan, u)
        self.argument = self.arguments[0].clone()
        # A guidance term asks for the time where the network asks for something else.
        self.times, self.time = self.arguments, self.argument
        if plan.guidance_term and any(stage.argument is not None for stage in plan.stages):
            self.times = stage_times(plan, u)
            self.time = self.times[0].clone()
        self.dtype = u.dtype if dtype is None else dtype
        # What the next network sees; the first stage's is made of the state that a run begins with.
        self.seen: torch.Tensor | None = None
        planes = max(stage.history_planes for stage in plan.stages)
        shape = (u.shape[0], planes * (u.shape[1] // 2), *u.shape[2:])
        images = u.dim() == 4 and not u.is_contiguous()
        layout = torch.channels_last if images else torch.contiguous_format
        self.ring = [
            torch.empty(shape, dtype=u.dtype, device=u.device, memory_format=layout)
            for _ in range(plan.history_length)
        ]
        matrices = plan.matrices()
        seen = planes_seen(plan.stages)
        self.kinds = [Kind.of(*each) for each in zip(plan.stages, matrices, seen, strict=True)]
        self.tables = {kind: self._table(kind, matrices) for kind in set(self.kinds)}
        # The steps by their kind and place in the ring: those that have run, and their replays.
        self.seen_keys: set[tuple[Kind, int]] = set()
        self.replays: dict[tuple[Kind, int], Body] = {}
        self.runs, self.possible = 0, True

    @property
    def bytes(self) -> int:
        """Memory of the device that the recording holds."""
        own = [self.u, *self.ring, *self.tables.values()]
        return sum(tensor.nbytes for tensor in own) + self.recorder.bytes

    def _table(self, kind: Kind, matrices: Sequence[np.ndarray]) -> torch.Tensor:
        """The matrices of the stages of one kind in their places, zeros in those of the others."""
        own = [m for m, other in zip(matrices, self.kinds, strict=True) if other == kind]
        table = np.zeros((len(matrices), *own[0].shape))
        for index, (matrix, other) in enumerate(zip(matrices, self.kinds, strict=True)):
            if other == kind:
                table[index] = matrix
        return torch.from_numpy(table).to(self.u.device)

    def body(self, stage: Stage, kind: Kind, made: int) -> Body:
        """One step of a kind after `made` history rows; what it closes over does not change."""
        u, rows = self.u, self.u.shape[0]
        t, argument = self.time.expand(rows), self.argument.expand(rows)
        # A row goes where the oldest one was, which a kernel has read before it writes.
        history = [self.ring[(made - 1 - k) % len(self.ring)] for k in range(kind.history)]
        row = self.ring[made % len(self.ring)] if kind.rows and self.ring else None
        table = self.tables[kind]

        def run() -> None:
            outputs: list[torch.Tensor] = []
            if kind.outputs is not None:
                seen = self.seen if kind.looks else u
                assert seen is not None  # made by the stage before
                assert self.evaluate is not None
                for output in self.evaluate(stage, u, t, seen, argument):
                    outputs.append(output.clone() if shares_memory(output, u) else output)
            made = self.backend.stage(
                u, outputs, history, table, self.address, out=u, step=self.step, used=kind.used,
                row_out=row, seen_planes=kind.seen, seen_dtype=self.dtype,
            )  # fmt: skip
            if made.seen is not None:
                if self.seen is None:
                    self.seen = made.seen
                else:
                    self.seen.copy_(made.seen)
            self.backend.advance(self.step, self.arguments, self.argument)
            if self.times is not self.arguments:
                last = self.step[:1].clamp(max=len(self.times) - 1)
                self.time.copy_(self.times.index_select(0, last)[0])

        return run

    def begin(self, u: torch.Tensor, address: NoiseAddress) -> None:
        """Put a run's state, noise address and first times into the fixed memory."""
        _, numbers = recorded_step(address)
        self.u.copy_(u)
        self.step.copy_(torch.tensor(numbers, dtype=torch.int64, device="cpu"), non_blocking=True)
        self.argument.copy_(self.arguments[0])
        if self.times is not self.arguments:
            self.time.copy_(self.times[0])
        first = self.plan.stages[0]
        if first.seen is not None:
            made = look(first.seen, self.u, self.dtype)
            self.seen = made if self.seen is None else self.seen.copy_(made)

    def run(
        self, stages: Iterable[Stage], evaluate: Evaluate, u: torch.Tensor, address: NoiseAddress
    ) -> torch.Tensor:
        """The final state of a run from the state u, which is not changed.

        stages: the plan's, perhaps by way of a progress bar. evaluate: the network, see `Evaluate`;
        it is not kept, but its parameters must stay where they are while the recording is in use.
        """
        keys, made = [], 0
        for kind in self.kinds:
            keys.append((kind, made % len(self.ring) if self.ring else 0))
            made += bool(kind.rows)
        left = Counter(keys)
        self.recorder.begin()
        self.begin(u, address)
        self.evaluate = evaluate
        for stage, key in zip(stages, keys, strict=True):
            body = self.replays.get(key)
            if body is None:
                body = self.body(stage, *key)
                # The first step of a kind runs as it is and so warms up; one alone is no gain, but
                # where runs come again.
                again = left[key] > 1 or self.runs > 0
                if self.possible and key in self.seen_keys and again:
                    try:
                        body = self.replays[key] = self.recorder(body)
                    except CaptureError as error:
                        self.possible = False
                        warn(f"the network cannot be captured ({error})")
            body()
            self.seen_keys.add(key)
            left[key] -= 1
        self.evaluate = None
        self.runs += 1
        result = self.u.clone()
        self.recorder.end()
        return result


def warn(reason: str) -> None:
    """Say why a run goes step by step."""
    warnings.warn(
        f"graph=True: this run goes step by step, because {reason}",
        GraphWarning,
        stacklevel=caller_level(),
    )


def shares_memory(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors are views of one storage."""
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


def obstacle(plan: Plan, u: torch.Tensor, backend: Backend, refused: dict[str, bool]) -> str:
    """Why a run cannot be made of graphs, or an empty string.

    refused: arguments that a graph cannot serve, and whether they were given.
    """
    if u.device.type != "cuda":
        return f"graphs need a CUDA device and the state is on {u.device}"
    if not backend.counts_steps:
        return f"backend {backend.name!r} keeps no step counter on the device"
    given = [name for name, is_given in refused.items() if is_given]
    if given:
        return f"{' and '.join(given)} need the host between steps"
    sizes = {stage.history_planes for stage in plan.stages} - {0}
    seen = max(planes_seen(plan.stages))
    if len(sizes) > 1 or 2 + max(sizes, default=0) + seen > LAUNCH_OUTPUTS:
        return f"the solver keeps history rows of {sorted(sizes)} planes, the network sees {seen}"
    return ""
