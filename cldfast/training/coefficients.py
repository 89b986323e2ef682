"""The coefficients of a training run's losses, made for many steps at once.

They depend on times alone and times on their addresses, so they can be made before their step; for
small batches the cost is in the number of calls, not in the rows.
"""

from __future__ import annotations

import torch

from cldfast.planner.parameterization import Parameterization
from cldfast.process.sde import LinearPhaseSDE
from cldfast.training.config import TrainConfig
from cldfast.training.losses import RowCoefficients, drawn_coefficients

# Rows made at once; of a batch with more, one batch.
_ROWS = 4096


class CoefficientsAhead:
    """Gives the `RowCoefficients` of each step of a run.

    Blocks of steps begin at multiples of their length, so a resumed run makes the same blocks.
    """

    def __init__(
        self,
        sde: LinearPhaseSDE,
        config: TrainConfig,
        parameterization: Parameterization,
        device: torch.device,
    ) -> None:
        self.sde, self.config, self.device = sde, config, device
        self.parameterization = parameterization
        self._steps = max(1, _ROWS // config.batch_size)
        self._block: tuple[int, RowCoefficients] | None = None

    def at(self, step: int) -> RowCoefficients:
        """The coefficients of the `batch_size` rows of step number `step`, from 0."""
        config, (index, offset) = self.config, divmod(step, self._steps)
        if self._block is None or self._block[0] != index:
            rows = self._steps * config.batch_size
            self._block = index, drawn_coefficients(
                rows, self.sde, config.weighting, self.parameterization, t_min=config.t_min,
                times=config.times, batch=config.batch_size, seed=config.seed,
                first_index=index * rows, device=self.device, objective=config.objective,
            )  # fmt: skip
        start = offset * config.batch_size
        return self._block[1][start : start + config.batch_size]
