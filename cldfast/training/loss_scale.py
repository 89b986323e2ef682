"""The factor on the loss that keeps gradients of half precision away from zero and infinity."""

from __future__ import annotations

import torch
from torch import Tensor

# As `torch.amp.GradScaler` has them.
_FIRST, _GROWTH, _BACKOFF, _INTERVAL = 2.0**16, 2.0, 0.5, 2000
# A loss that is not scaled up at all overflows by itself: the training has failed.
_LEAST = 1.0


class LossScale:
    """Halves the factor after a step whose gradients overflowed, doubles it after 2,000 good ones.

    The same rule, by the same operator, as `torch.amp.GradScaler`, which looks for infinities in a
    pass of its own over all gradients. Here the gradient norm tells, which is known anyway, and is
    the same number in every process, also where each holds a part of the weights.

    Attributes:
        value: the factor, () float32 on the device.
    Source: Micikevicius et al. (2018), "Mixed precision training", section 3.2.
    """

    def __init__(self, device: torch.device) -> None:
        self.value = torch.full((), _FIRST, device=device)
        self._good = torch.zeros((), dtype=torch.int32, device=device)

    def update(self, bad: Tensor) -> None:
        """After a step. bad: () float32, 1 where it overflowed, else 0."""
        torch._amp_update_scale_(self.value, self._good, bad, _GROWTH, _BACKOFF, _INTERVAL)

    @property
    def exhausted(self) -> Tensor:
        """1 where no scale is left to halve, else 0; () float32 on the device."""
        return (self.value < _LEAST).float()

    def state_dict(self) -> dict[str, Tensor]:
        """Both numbers, for a checkpoint."""
        return {"value": self.value, "good": self._good}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from what `state_dict` returned."""
        self.value.copy_(state["value"])
        self._good.copy_(state["good"])
