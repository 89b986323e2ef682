"""The loss on rows that are held out of a training."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from cldfast.network import Network
from cldfast.planner.parameterization import Parameterization
from cldfast.process.sde import LinearPhaseSDE
from cldfast.training.config import TrainConfig
from cldfast.training.losses import hsm_loss
from cldfast.training.rows import Rows, check_rows, parted

# Added to the seed for the validation noise: no training run of a small seed shares it.
_SEED = 2**63


class HeldOut:
    """Held-out rows, with labels where the data have them, and the noise that goes with them.

    Raises TypeError or ValueError for what are no rows.
    """

    def __init__(
        self,
        rows: Rows,
        sde: LinearPhaseSDE,
        config: TrainConfig,
        parameterization: Parameterization,
        device: torch.device,
        half: torch.dtype | None,
        backend: str,
    ) -> None:
        self.rows, labels = parted(rows)
        check_rows("validation", self.rows, labels)
        self.labels = None if labels is None else labels.to(device)
        self.sde, self.config, self.parameterization = sde, config, parameterization
        self.device, self.half, self.backend = device, half, backend

    def __len__(self) -> int:
        return len(self.rows)

    def loss(self, net: nn.Module, turn: int = 0, turns: int = 1) -> Tensor:
        """The summed loss of the rows, () float64; of several processes each takes its turns."""
        config = self.config
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for start in range(0, len(self), config.batch_size)[turn::turns]:
            chosen = slice(start, start + config.batch_size)
            with autocast(self.device, self.half):
                total += hsm_loss(
                    given(net, self.labels, chosen), self.sde, self.rows[chosen].to(self.device),
                    config.weighting, self.parameterization, (config.seed + _SEED) % 2**64,
                    t_min=config.t_min, times=config.times, first_index=start, reduction="sum",
                    objective=config.objective, backend=self.backend,
                )  # fmt: skip
        return total


def given(net: nn.Module, labels: Tensor | None, rows: slice) -> Network:
    """The network that knows the labels of its rows."""
    return net if labels is None else partial(net, labels=labels[rows])


def autocast(device: torch.device, half: torch.dtype | None) -> AbstractContextManager[Any]:
    """Where the network computes in half precision, or nothing at all."""
    return nullcontext() if half is None else torch.autocast(device.type, half)
