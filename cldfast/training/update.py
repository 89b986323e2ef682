"""One optimiser update: gradient norm, clipping, Adam and the running average of the weights.

What must not happen is decided where the tensors are: a bad step is left out on the device itself,
so the host need not wait for each step's numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cldfast.training.ema import EMA

# Keeps the clipped norm below the limit after rounding, as `torch.nn.utils.clip_grad_norm_` does.
_CLIP_MARGIN = 1e-6


class WeightUpdate:
    """Adam with clipping and the running average, from gradients of a batch's summed loss.

    Args:
        net: the network.  parameters: those of it that are trained.
        lr: Adam's first step size.  clip: largest gradient norm, None for no limit.
        ema_decay: see `cldfast.training.ema.EMA`.
        waits: look at every step's loss and norm before the weights are touched. Else a bad step,
            and all steps after it, change nothing, and who reads their numbers later sees it.

    Attributes:
        optimizer: the Adam.  ema: the average.

    Raises:
        RuntimeError: no fused Adam for these weights in this PyTorch.
    """

    def __init__(
        self,
        net: nn.Module,
        parameters: Sequence[nn.Parameter],
        lr: float,
        clip: float | None,
        ema_decay: float,
        *,
        waits: bool,
    ) -> None:
        self.net, self.parameters, self.clip, self.waits = net, list(parameters), clip, waits
        # One kernel a step instead of about ten a parameter; it also divides the gradients.
        self.optimizer = torch.optim.Adam(self.parameters, lr=lr, fused=True)
        self.ema = EMA(net, ema_decay)
        self._bad = torch.zeros((), device=self.parameters[0].device)

    def clear(self) -> None:
        """Forget the gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    def go_on_from(self, updates: int) -> None:
        """Take steps again, after a bad one; `updates` were made before it."""
        self.ema.updates = updates
        self._bad.zero_()

    def __call__(self, total: Tensor, rows: int, lr: float) -> Tensor:
        """Update with the gradients of `total`, the summed loss of `rows` rows, () float64.

        Returns [loss, gradient norm], means over rows, before clipping; where one is not finite,
        nothing was changed. The gradients are left as means, clipped.
        """
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        values = torch.stack([total, norm.double()]) / rows
        if self.waits:
            loss, size = values.tolist()
            if not abs(loss) + size < float("inf"):
                return values
            over = 1.0 if self.clip is None else max(1.0, (size + _CLIP_MARGIN) / self.clip)
            scale: Tensor = torch.tensor(rows * over, device="cpu")
            skip = None
        else:
            self._bad = torch.maximum(self._bad, 1.0 - values.isfinite().all().float())
            limit = float("inf") if self.clip is None else self.clip
            scale = ((values[1] + _CLIP_MARGIN) / limit).clamp_min(1.0).float() * rows
            skip = self._bad
        # Adam's own arguments for training in mixed precision: a divisor, and a step to leave out.
        self.optimizer.grad_scale = scale  # type: ignore[attr-defined]
        self.optimizer.found_inf = skip  # type: ignore[attr-defined]
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.ema.update(self.net, skip)
        return values
