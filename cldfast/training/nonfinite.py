"""The error of a training that has gone to infinity."""

from __future__ import annotations

from pathlib import Path


class NonFiniteLoss(RuntimeError):
    """The loss or its gradient is NaN or infinite; the state before that step was kept.

    Attributes:
        step: the step, counted from 1.  t_range: smallest and largest time of its rows.
        saved: the file with the state before the step, None without a folder.
    """

    def __init__(
        self, step: int, loss: float, norm: float, t_range: tuple[float, float], saved: Path | None
    ) -> None:
        where = "" if saved is None else f"; the state before it is in {saved}"
        super().__init__(
            f"step {step}: loss {loss:g} with gradient norm {norm:g} at times t in "
            f"[{t_range[0]:.3g}, {t_range[1]:.3g}]{where}; try a smaller lr, clip or a larger t_min"
        )
        self.step, self.t_range, self.saved = step, t_range, saved
