"""Recording the states of a run, in memory or in a memory-mapped file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch


class Trajectory:
    """A callback that keeps every `every`-th state: `sample(..., callback=Trajectory(every=5))`.

    every: stride over stages, the first one kept. path: an `.npy` file to be written as a memory
        map, so that long runs need no memory; None keeps CPU tensors. stages: number of stages of
        the plan, `len(plan.stages)`; needed with a path, whose file has its full size from the
        start.

    `times` lists the times kept; `states` is (kept, B, 2d) or (kept, B, 2C, H, W), a tensor or,
    with a path, the memory map. One batch only: give `sample` no batch_size.
    """

    def __init__(
        self, every: int = 1, path: str | Path | None = None, stages: int | None = None
    ) -> None:
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise ValueError(f"every must be an integer >= 1, got {every!r}")
        if path is not None and (stages is None or stages < 1):
            raise ValueError("a memory map needs the number of stages: stages=len(plan.stages)")
        self.every = every
        self.path = None if path is None else Path(path)
        self.stages = stages
        self.times: list[float] = []
        self._kept: list[torch.Tensor] = []
        self._map: np.memmap | None = None

    def __call__(self, step: int, t: float, u: torch.Tensor) -> None:
        if step == 0 and self.times:
            raise ValueError("a trajectory records one batch: use a new one, and no batch_size")
        if step % self.every:
            return
        if self.path is None:
            self._kept.append(u.detach().to("cpu", copy=True))
        else:
            row = u.detach().cpu().numpy()
            if self._map is None:
                assert self.stages is not None  # checked beside the path
                count = (self.stages + self.every - 1) // self.every
                self._map = np.lib.format.open_memmap(
                    self.path, mode="w+", dtype=row.dtype, shape=(count, *row.shape)
                )
            if len(self.times) >= len(self._map):
                raise ValueError(f"the run has more than the {self.stages} stages announced")
            self._map[len(self.times)] = row
            self._map.flush()
        self.times.append(t)

    @property
    def states(self) -> torch.Tensor | np.ndarray:
        """What was kept so far, in order of time."""
        if not self.times:
            raise ValueError("nothing was recorded yet: pass this object as the callback of a run")
        if self._map is not None:
            return self._map[: len(self.times)]
        return torch.stack(self._kept)
