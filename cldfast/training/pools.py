"""The rows over which the targets of each step of a training are averaged."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cldfast.planner.parameterization import Parameterization
from cldfast.process.sde import LinearPhaseSDE
from cldfast.training.config import TrainConfig
from cldfast.training.losses import reference_form
from cldfast.training.reference import Reference
from cldfast.training.rows import Taken, row_source, with_mirrored

# Added to the seed of the training, so that pools are drawn independently of its batches.
_SEED = 2**62


class Pools:
    """Draws `config.reference` rows of the data for each step, the same ones in all processes.

    Rows with a label are compared with rows of the same label, and those whose label was dropped,
    `null`, with all.
    """

    def __init__(
        self,
        data: Any,
        sde: LinearPhaseSDE,
        config: TrainConfig,
        parameterization: Parameterization,
        device: torch.device,
        null: int | None,
    ) -> None:
        self.sde, self.weighting, self.device, self.null = sde, config.weighting, device, null
        self.form = reference_form(parameterization, config.objective)
        count = config.reference
        self._taken = Taken((config.seed + _SEED) % 2**64, count, slice(0, count))
        self._source, self._flip = row_source(data, self._taken, independent=True), config.flip

    def at(self, step: int, t: Tensor, labels: Tensor | None) -> Reference:
        """The reference of the rows at times t (B,) with labels (B,) of a step, from 0."""
        pool, kinds = self._source.at(step)
        same = None
        if labels is not None and kinds is not None:
            same = labels[:, None] == kinds.to(self.device)
            if self.null is not None:
                same |= (labels == self.null)[:, None]
        pool = pool.to(self.device)
        if self._flip:  # rows of a pool are drawn like those of a batch
            pool = with_mirrored(pool, self._taken, step)
        return Reference.at(t, self.sde, self.weighting, self.form, pool, same)
