"""What every loop over the stages of a plan shares: tables, times, outputs, history rows."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch

from cldfast import kernels
from cldfast.kernels import Backend, Noise, StageResult
from cldfast.network import Network, explain_failure, output_tensor
from cldfast.planner.plan import Plan, looks
from cldfast.planner.stage import Stage
from cldfast.process.path import Path

Guidance = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def stage_tables(matrices: Sequence[np.ndarray]) -> list[torch.Tensor]:
    """Each stage's matrix as a table (1, 2 + q, n) on the host; those of one shape share memory."""
    tables: dict[int, torch.Tensor] = {}
    of_shape: dict[tuple[int, ...], list[int]] = {}
    for index, matrix in enumerate(matrices):
        of_shape.setdefault(matrix.shape, []).append(index)
    for indices in of_shape.values():
        stacked = torch.from_numpy(np.stack([matrices[index] for index in indices]))
        tables.update(zip(indices, stacked.split(1), strict=True))
    return [tables[index] for index in range(len(matrices))]


# A plan does not change, so its tables are made once.
_of_plan: WeakKeyDictionary[Plan, list[torch.Tensor]] = WeakKeyDictionary()


def plan_tables(plan: Plan) -> list[torch.Tensor]:
    """The tables of a plan's stages, kept as long as the plan."""
    known = _of_plan.get(plan)
    if known is None:
        # Tensors made in inference mode would be of no use to a later run with gradients.
        with torch.inference_mode(False):
            known = _of_plan.setdefault(plan, stage_tables(plan.matrices()))
    return known


def placed_tables(
    tables: Sequence[torch.Tensor], device: torch.device
) -> list[tuple[torch.Tensor, int]]:
    """Each stage's table on a device, with a bit for each of its columns that is not all zeros.

    One copy serves all stages, so that none waits for a copy of its own.
    """
    flat = torch.cat([table.flatten() for table in tables]).to(device)
    parts = flat.split([table.numel() for table in tables])
    return [
        (part.view(table.shape), used_columns(table[0].numpy()))
        for part, table in zip(parts, tables, strict=True)
    ]


def used_columns(matrix: np.ndarray) -> int:
    """A bit for each column of a matrix (rows, n) that is not all zeros."""
    return sum(1 << int(j) for j in np.flatnonzero(np.any(matrix != 0.0, axis=0)))


def stage_times(plan: Plan, u: torch.Tensor) -> torch.Tensor:
    """The times (N,) of all stages in the dtype and on the device of a state, 0 for no network."""
    return _numbers([stage.t for stage in plan.stages], u)


def network_arguments(plan: Plan, u: torch.Tensor) -> torch.Tensor:
    """The second arguments (N,) of the networks of all stages, as `stage_times`."""
    return _numbers([s.t if s.argument is None else s.argument for s in plan.stages], u)


def _numbers(values: Sequence[float | None], u: torch.Tensor) -> torch.Tensor:
    """A number for each stage, 0 for none, in the dtype and on the device of a state."""
    return torch.tensor([value or 0.0 for value in values], dtype=u.dtype, device=u.device)


def planes_seen(stages: Sequence[Stage]) -> list[int]:
    """How many planes each stage makes for the network of the next one."""
    return [0 if rows is None else len(rows) for rows in looks(stages)]


def look(seen: np.ndarray | torch.Tensor, u: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The planes (B, sC, ...) that a network sees of a state (B, 2C, ...), rows `seen` (s, 2).

    Differentiable in the state, and in rows that are a tensor; (s, q) for any number q of planes.
    """
    parts = u.chunk(seen.shape[1], dim=1)
    planes = []
    for row in seen if isinstance(seen, torch.Tensor) else seen.tolist():
        first, *rest = (entry * part for entry, part in zip(row, parts, strict=True))
        planes.append(sum(rest, first))
    return (planes[0] if len(planes) == 1 else torch.cat(planes, dim=1)).to(dtype)


class Outputs:
    """Calls a network and checks what it returns, again only where that has changed.

    plan: whose stages read the outputs. term: a function of (u, t) that is one more output, the
    last, or None.
    """

    def __init__(self, net: Network, plan: Plan, term: Guidance | None = None) -> None:
        self.net, self.plan, self.term = net, plan, term
        # What was checked last: the blocks' shapes, and shape, dtype and device of each output.
        self._known: tuple[object, ...] = ()

    def __call__(
        self,
        stage: Stage,
        u: torch.Tensor,
        t: torch.Tensor,
        seen: torch.Tensor,
        argument: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        """The outputs for a state, as the stage reads them.

        u, t: the state and the times of its rows. seen, argument: what the network gets.

        Raises ValueError or TypeError for outputs that do not fit. An error of the network passes,
        with a note that says where it was raised.
        """
        try:
            result = self.net(seen, argument)
        except Exception as error:
            explain_failure(error, self.net, seen, f"in {self._place(stage)}")
            raise
        outputs: tuple[torch.Tensor, ...]
        known: tuple[object, ...]
        if isinstance(result, torch.Tensor) and len(stage.E) == 1:
            outputs = (result,)
            known = (stage.E[0].shape, result.shape, result.dtype, result.device)
        else:
            several = isinstance(result, list | tuple)
            outputs = tuple(result) if several else (output_tensor(result),)
            if self.term is not None:
                outputs = (*outputs, self.term(u, t))
            known = tuple(block.shape for block in stage.E)
            if all(isinstance(output, torch.Tensor) for output in outputs):
                known += tuple((o.shape, o.dtype, o.device) for o in outputs)
        if known != self._known:
            self._check(outputs, [block.shape[1] for block in stage.E], u)
            self._known = known
        return outputs

    def _check(
        self, outputs: Sequence[torch.Tensor], planes: Sequence[int], u: torch.Tensor
    ) -> None:
        if len(outputs) != len(planes):
            raise ValueError(self._miscounted(len(outputs), len(planes)))
        channels = u.shape[1] // 2
        for output, wanted in zip(outputs, planes, strict=True):
            kernels.check_output(
                "the network's output", output_tensor(output), u, channels, wanted,
                str(self.plan.parameterization),
            )  # fmt: skip

    def _miscounted(self, got: int, wanted: int) -> str:
        """What to do about another number of outputs than a stage reads."""
        term = self.term is not None
        got, wanted = got - term, wanted - term
        message = f"the network must return {wanted} tensor(s) here, got {got}: "
        if wanted == 2 and got == 1:
            return message + (
                "guidance_scale needs the pair (conditional, unconditional), which "
                "cldfast.network.ClassifierFree(net, labels) makes of a network of classes"
            )
        return message + "return one, or ask for guidance_scale= where they are a guided pair"

    def _place(self, stage: Stage) -> str:
        """Where in a run a network is called, and what for."""
        at = next((k for k, own in enumerate(self.plan.stages) if own is stage), None)
        number = "a stage" if at is None else f"stage {at} of {len(self.plan.stages)}"
        shown = "the state, x and v side by side" if stage.seen is None else "y"
        if isinstance(self.plan.sde, Path):
            shown = "positions alone"
        return (
            f"{number} of solver {self.plan.solver!r}, at t = {stage.t:.6g}; parameterization "
            f"{str(self.plan.parameterization)!r} shows the network {shown}"
        )


class Steps:
    """The stages of a run, taken one after another; keeps the history rows between them.

    tables: of the stages, see `stage_tables`. history: how many rows are kept.
    seen: how many planes each stage makes for the network of the next one; dtype: theirs, the
        state's if None.
    """

    def __init__(
        self,
        tables: Sequence[torch.Tensor],
        history: int,
        seen: Sequence[int],
        backend: str | Backend = "auto",
        dtype: torch.dtype | None = None,
    ) -> None:
        self.backend = backend
        self.tables, self.seen, self.dtype = tables, seen, dtype
        # Where the backend wants them there: the tables on the device, and what they use.
        self.placed: list[tuple[torch.Tensor, int]] = []
        self._history: deque[torch.Tensor] = deque(maxlen=max(history, 1))

    def take(
        self,
        index: int,
        stage: Stage,
        u: torch.Tensor,
        outputs: Sequence[torch.Tensor],
        noise: Noise,
        *,
        out: torch.Tensor | None = None,
        checked: bool = False,
    ) -> StageResult:
        """What stage number `index` makes; its state may be written to `out`.

        checked: go through the operation with its checks and gradients. Without it arguments are
        taken as valid.
        """
        history = [self._history[k] for k in range(len(stage.H))] if stage.H else ()
        table, seen = self.tables[index], self.seen[index]
        if checked:
            made = kernels.stage(
                u, outputs, history, table, noise=noise, out=out, seen_planes=seen,
                seen_dtype=self.dtype if seen else None, backend=self.backend,
            )  # fmt: skip
        else:
            assert isinstance(self.backend, Backend)
            options: dict[str, Any] = {}
            if self.backend.keeps_matrices:
                self.placed = self.placed or placed_tables(self.tables, u.device)
                table, options["used"] = self.placed[index]
            made = self.backend.stage(
                u, outputs, history, table, noise, out=out, seen_planes=seen,
                seen_dtype=self.dtype, **options,
            )  # fmt: skip
        if made.history is not None:
            self._history.appendleft(made.history)
        return made
