"""Sampling loops as CUDA graphs: a step is captured once and replayed for all stages like it.

What a captured step reads and writes stays where it is: the state, the network's time, the history
rows as a ring, and the number of the stage, which the device counts itself and by which the stage
finds its matrix and its noise. So a replay costs one launch, whatever the network is made of.
"""

from __future__ import annotations

import gc
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from cldfast.caller import caller_level
from cldfast.kernels import Backend, NoiseAddress
from cldfast.kernels.limits import LAUNCH_OUTPUTS
from cldfast.planner.plan import Plan
from cldfast.planner.stage import Stage
from cldfast.sampling.steps import stage_times

Evaluate = Callable[[Stage, torch.Tensor, torch.Tensor], Sequence[torch.Tensor]]
Body = Callable[[], None]
# Turns a step into something that repeats it; CaptureError where that cannot be.
Recorder = Callable[[Body], Body]


class GraphWarning(UserWarning):
    """A loop that was asked for as a graph runs step by step instead."""


class CaptureError(RuntimeError):
    """A step could not be captured."""


@dataclass(frozen=True)
class Kind:
    """What stages of one graph have in common: the planes they read, and what they make.

    outputs: planes of each network output, None for no evaluation. history: rows that are read.
    rows: planes of the history row that is made. used: a bit for each column that is not all zeros.
    """

    outputs: tuple[int, ...] | None
    history: int
    rows: int
    used: int

    @classmethod
    def of(cls, stage: Stage, matrix: np.ndarray) -> Kind:
        return cls(
            tuple(e.shape[1] for e in stage.E) if stage.evaluates else None,
            len(stage.H),
            stage.history_planes,
            sum(1 << int(j) for j in np.flatnonzero(np.any(matrix != 0.0, axis=0))),
        )


class Recording:
    """A run with its state in fixed memory; `run` gives the final state.

    evaluate: the network at (stage, u, t). address: of the run's noise; the device adds the stage.
    backend: one that counts steps. record: makes a replay of a step that has run once already.
    """

    def __init__(
        self,
        plan: Plan,
        evaluate: Evaluate,
        u: torch.Tensor,
        address: NoiseAddress,
        backend: Backend,
        record: Recorder,
    ) -> None:
        self.plan, self.evaluate, self.address = plan, evaluate, address
        self.backend, self.record = backend, record
        self.u = u.clone()
        self.step = torch.zeros((), dtype=torch.int64, device=u.device)
        self.times = stage_times(plan, u)
        self.time = self.times[0].clone()
        planes = max(stage.history_planes for stage in plan.stages)
        shape = (u.shape[0], planes * (u.shape[1] // 2), *u.shape[2:])
        images = u.dim() == 4 and not u.is_contiguous()
        layout = torch.channels_last if images else torch.contiguous_format
        self.ring = [
            torch.empty(shape, dtype=u.dtype, device=u.device, memory_format=layout)
            for _ in range(plan.history_length)
        ]
        matrices = plan.matrices()
        self.kinds = [Kind.of(*pair) for pair in zip(plan.stages, matrices, strict=True)]
        self.tables = {kind: self._table(kind, matrices) for kind in set(self.kinds)}

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
        u, t = self.u, self.time.expand(self.u.shape[0])
        # A row goes where the oldest one was, which a kernel has read before it writes.
        history = [self.ring[(made - 1 - k) % len(self.ring)] for k in range(kind.history)]
        row = self.ring[made % len(self.ring)] if kind.rows and self.ring else None
        table = self.tables[kind]

        def run() -> None:
            outputs: list[torch.Tensor] = []
            if kind.outputs is not None:
                for output in self.evaluate(stage, u, t):
                    outputs.append(output.clone() if shares_memory(output, u) else output)
            self.backend.stage(
                u, outputs, history, table, self.address, out=u, step=self.step, used=kind.used,
                row_out=row,
            )  # fmt: skip
            self.backend.advance(self.step, self.times, self.time)

        return run

    def run(self, stages: Iterable[Stage]) -> torch.Tensor:
        """The final state; `stages` are the plan's, perhaps by way of a progress bar."""
        keys, made = [], 0
        for kind in self.kinds:
            keys.append((kind, made % len(self.ring) if self.ring else 0))
            made += bool(kind.rows)
        left = Counter(keys)
        seen: Counter[tuple[Kind, int]] = Counter()
        replays: dict[tuple[Kind, int], Body] = {}
        possible = True
        for stage, key in zip(stages, keys, strict=True):
            if key not in replays:
                body = self.body(stage, *key)
                # The first step of a kind runs as it is and so warms up; one alone is no gain.
                if possible and seen[key] and left[key] > 1:
                    try:
                        body = replays[key] = self.record(body)
                    except CaptureError as error:
                        possible = False
                        warn(f"the network cannot be captured ({error})")
            replays.get(key, body)()
            seen[key] += 1
            left[key] -= 1
        return self.u


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
    if len(sizes) > 1 or 2 + max(sizes, default=0) > LAUNCH_OUTPUTS:
        return f"the solver keeps history rows of {sorted(sizes)} planes"
    return ""


class CudaGraphs:
    """Records steps as CUDA graphs that share one memory pool.

    Like `torch.cuda.graph`, but without its collection of garbage and emptying of caches, which
    cost more than the steps of a small network.
    """

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device)
        self.pool = torch.cuda.graph_pool_handle()

    def __call__(self, body: Body) -> Body:
        graph = torch.cuda.CUDAGraph()
        current = torch.cuda.current_stream(self.stream.device)
        self.stream.wait_stream(current)
        collecting = gc.isenabled()
        gc.disable()  # what a collection frees could end the capture
        try:
            with torch.cuda.stream(self.stream):
                graph.capture_begin(pool=self.pool, capture_error_mode="thread_local")
                try:
                    body()
                finally:
                    graph.capture_end()
        except RuntimeError as error:
            cause = error.__context__ if isinstance(error.__context__, RuntimeError) else error
            raise CaptureError(str(cause).splitlines()[0]) from error
        finally:
            if collecting:
                gc.enable()
        current.wait_stream(self.stream)
        return graph.replay
