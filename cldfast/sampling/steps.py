"""What every loop over the stages of a plan shares: tables, times, outputs, history rows."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from weakref import WeakKeyDictionary

import numpy as np
import torch

from cldfast import kernels
from cldfast.kernels import Backend, Noise
from cldfast.network import Network
from cldfast.planner.plan import Plan
from cldfast.planner.stage import Stage


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


def stage_times(plan: Plan, u: torch.Tensor) -> torch.Tensor:
    """The times (N,) of all stages in the dtype and on the device of a state, 0 for no network."""
    times = [0.0 if stage.t is None else stage.t for stage in plan.stages]
    return torch.tensor(times, dtype=u.dtype, device=u.device)


class Outputs:
    """Calls a network and checks what it returns, again only where that has changed."""

    def __init__(self, net: Network, parameterization: str) -> None:
        self.net, self.parameterization = net, parameterization
        # What was checked last: the blocks' shapes, and shape, dtype and device of each output.
        self._known: tuple[object, ...] = ()

    def __call__(self, stage: Stage, u: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The network's outputs for a state and the times of its rows, as the stage reads them.

        Raises ValueError or TypeError for outputs that do not fit.
        """
        result = self.net(u, t)
        outputs: tuple[torch.Tensor, ...]
        known: tuple[object, ...]
        if isinstance(result, torch.Tensor) and len(stage.E) == 1:
            outputs = (result,)
            known = (stage.E[0].shape, result.shape, result.dtype, result.device)
        else:
            outputs = (result,) if isinstance(result, torch.Tensor) else tuple(result)
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
            raise ValueError(
                f"the network must return {len(planes)} tensor(s) here, got {len(outputs)}"
            )
        channels = u.shape[1] // 2
        for output, wanted in zip(outputs, planes, strict=True):
            kernels.check_output(
                "the network's output", output, u, channels, wanted, self.parameterization
            )


class Steps:
    """The stages of a run, taken one after another; keeps the history rows between them.

    tables: of the stages, see `stage_tables`. history: how many rows are kept.
    """

    def __init__(
        self, tables: Sequence[torch.Tensor], history: int, backend: str | Backend = "auto"
    ) -> None:
        self.backend = backend
        self.tables = tables
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
    ) -> torch.Tensor:
        """The state after stage number `index`; it may be written to `out`.

        checked: go through the operation with its checks and gradients. Without it arguments are
        taken as valid.
        """
        history = [self._history[k] for k in range(len(stage.H))] if stage.H else ()
        table = self.tables[index]
        if checked:
            made = kernels.stage(
                u, outputs, history, table, noise=noise, out=out, backend=self.backend
            )
        else:
            assert isinstance(self.backend, Backend)
            made = self.backend.stage(u, outputs, history, table, noise, out=out)
        if made.history is not None:
            self._history.appendleft(made.history)
        return made.state
