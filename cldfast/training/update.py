"""One optimiser update: gradient norm, clipping, Adam and the running average of the weights.

What must not happen is decided where the tensors are: a bad step is left out on the device itself,
so the host need not wait for each step's numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cldfast.training.ema import EMA
from cldfast.training.loss_scale import LossScale
from cldfast.training.processes import OneProcess
from cldfast.training.sharded import ShardedEMA, is_part, is_sharded, whole

# Keeps the clipped norm below the limit after rounding, as `torch.nn.utils.clip_grad_norm_` does.
_CLIP_MARGIN = 1e-6

# How a step came out: the third number of what an update returns.
TAKEN, LEFT_OUT, STEP_FAILED = 0.0, 1.0, 2.0


class WeightUpdate:
    """Adam with clipping and the running average, from gradients of a batch's summed loss.

    Args:
        net: the network, whose parameters that take gradients are trained.
        beside: parameters that are trained with it and belong to no network.
        lr: Adam's first step size.  clip: largest gradient norm, None for no limit.
        ema_decay: see `cldfast.training.ema.EMA`.
        waits: look at every step's loss and norm before the weights are touched. Else a bad step,
            and all steps after it, change nothing, and who reads their numbers later sees it.
        scale: the factor on the loss in half precision. With it a step that overflows is left out,
            and the next one is taken.
        accelerator: what brings processes together, see `cldfast.training.processes`.

    Attributes:
        network: the network to call, as wrapped by the accelerator.
        optimizer: the network's Adam.  beside: that of the parameters beside it, or None.
        parameters: all of them, of which the first `own` are the network's.  ema: the average.

    Raises:
        RuntimeError: no fused Adam for these weights in this PyTorch.
    """

    def __init__(
        self,
        net: nn.Module,
        lr: float,
        clip: float | None,
        ema_decay: float,
        *,
        beside: Sequence[nn.Parameter] = (),
        waits: bool,
        scale: LossScale | None = None,
        accelerator: Any = None,
    ) -> None:
        self.net, self.clip, self.waits, self.scale = net, clip, waits, scale
        self.accelerator = accelerator or OneProcess()
        # One kernel a step instead of about ten a parameter; it also divides the gradients.
        trained = [p for p in net.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(trained, lr=lr, fused=True)
        # An Adam of its own: sharding finds the parameters of an optimiser in the network.
        self.beside = torch.optim.Adam(beside, lr=lr, fused=True) if beside else None
        # Copied before Accelerate puts methods of the one network into it.
        self.ema = EMA(net, ema_decay)
        self.network: nn.Module
        self.network, _ = self.accelerator.prepare(net, self.optimizer)
        # Sharding replaces the parameters.
        own: list[nn.Parameter] = self.optimizer.param_groups[0]["params"]
        self.parameters, self.own = [*own, *beside], len(own)
        self.device = own[0].device
        if is_sharded(net):
            self.ema = ShardedEMA(self.ema.model, net, ema_decay)
        else:
            self.ema.model.to(self.device)
            # Wrapping gives all processes the weights of the first one.
            self.ema.model.load_state_dict(net.state_dict())
        self._bad = torch.zeros((), device=self.device)

    def clear(self) -> None:
        """Forget the gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    def backward(self, loss: Tensor, rows: int) -> None:
        """Add the gradient of the summed loss of some of `rows` rows."""
        # Of the sum: what half precision rounds away is smaller by a factor of the batch. With a
        # scale of its own, of the mean, as the rule for the scale has it.
        (loss if self.scale is None else loss * (self.scale.value / rows)).backward()

    def go_on_from(self, updates: int) -> None:
        """Take steps again, after a bad one; `updates` were made before it."""
        self.ema.updates = updates
        self._bad.zero_()

    def __call__(self, total: Tensor, rows: int, lr: float) -> Tensor:
        """Update with the gradients of `total`, the summed loss of `rows` rows, () float64.

        rows: of this process; over processes, `total` and gradients are means.
        Returns [loss, gradient norm, how it came out], means over rows, before clipping; where one
        is not finite, nothing was changed. The gradients are left as means, clipped.
        """
        norm = _norm([p.grad for p in self.parameters if p.grad is not None])
        loss = total / rows
        if self.scale is None:
            unit: Any = rows
            values = torch.stack([loss, norm.double() / rows])
        else:
            unit = self.scale.value
            values = torch.stack([loss, norm.double() / unit.double()])
        step = self._now if self.waits else self._ahead
        return step(values, unit, lr)

    def _now(self, values: Tensor, unit: Any, lr: float) -> Tensor:
        """Look at the numbers, then step or not."""
        loss, size = values.tolist()
        bad = not abs(loss) + size < float("inf")
        outcome = STEP_FAILED if bad else TAKEN
        if self.scale is not None:
            unit = float(unit)
            self.scale.update(torch.tensor(float(bad), device=self.device))
            if bad and not self.scale.exhausted:
                outcome = LEFT_OUT
        if outcome == TAKEN:
            over = 1.0 if self.clip is None else max(1.0, (size + _CLIP_MARGIN) / self.clip)
            self._step(torch.tensor(unit * over, device="cpu"), None, lr)
        elif outcome == LEFT_OUT:
            self.ema.updates += 1
        return torch.tensor([loss, size, outcome], dtype=torch.float64, device="cpu")

    def _ahead(self, values: Tensor, unit: Any, lr: float) -> Tensor:
        """Step on the device, where bad numbers leave the weights as they are."""
        bad = 1.0 - values.isfinite().all().float()
        outcome = STEP_FAILED * bad
        if self.scale is None:
            self._bad = torch.maximum(self._bad, bad)
        else:
            self.scale.update(bad)
            self._bad = torch.maximum(self._bad, bad * self.scale.exhausted)
            outcome = (STEP_FAILED - LEFT_OUT) * self._bad + LEFT_OUT * bad
        skip = torch.maximum(self._bad, bad)
        limit = float("inf") if self.clip is None else self.clip
        over = ((values[1] + _CLIP_MARGIN) / limit).clamp_min(1.0).float()
        self._step(over * unit, skip, lr)
        return torch.cat([values, outcome.double().reshape(1)])

    def _step(self, divisor: Tensor, skip: Tensor | None, lr: float) -> None:
        for optimizer in (self.optimizer, self.beside):
            if optimizer is None:
                continue
            # Adam's own arguments for mixed precision: a divisor, and a step to leave out.
            optimizer.grad_scale = divisor  # type: ignore[attr-defined]
            optimizer.found_inf = skip  # type: ignore[attr-defined]
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.step()
        self.ema.update(self.net, skip)


def _norm(gradients: Sequence[Tensor]) -> Tensor:
    """The norm of all gradients, () on the device; those in parts count as wholes."""
    parts = [g for g in gradients if is_part(g)]
    plain = [g for g in gradients if not is_part(g)]
    norms = [
        whole(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(kind))))
        for kind in (parts, plain)
        if kind
    ]
    return norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))
