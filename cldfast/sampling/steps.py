"""What every loop over the stages of a plan shares: tables, times, outputs, history rows."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

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


def stage_times(plan: Plan, u: torch.Tensor) -> torch.Tensor:
    """The times (N,) of all stages in the dtype and on the device of a state, 0 for no network."""
    times = [0.0 if stage.t is None else stage.t for stage in plan.stages]
    return torch.tensor(times, dtype=u.dtype, device=u.device)


class Outputs:
    """Calls a network and checks what it returns, again only where that has changed."""

    def __init__(self, net: Network, parameterization: str) -> None:
        self.net, self.parameterization = net, parameterization
        self._known: list[object] = []

    def __call__(self, stage: Stage, u: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The network's outputs for a state and the times of its rows, as the stage reads them.

        Raises ValueError or TypeError for outputs that do not fit.
        """
        result = self.net(u, t)
        outputs = (result,) if isinstance(result, torch.Tensor) else tuple(result)
        known: list[object] = [block.shape for block in stage.E]
        for output in outputs:
            if not isinstance(output, torch.Tensor):
                break  # the check below says so
            known += [output.shape, output.dtype, output.device]
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

    matrices: of the stages. history: how many rows are kept.
    """

    def __init__(
        self, matrices: Sequence[np.ndarray], history: int, backend: str | Backend = "auto"
    ) -> None:
        self.backend = backend
        self.tables = stage_tables(matrices)
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
