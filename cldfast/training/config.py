"""Settings of a training run."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

from cldfast import kernels
from cldfast.planner.parameterization import Parameterization, check_parameterization, named_form
from cldfast.process.sde import OBJECTIVES, LinearPhaseSDE
from cldfast.training.losses import WEIGHTINGS
from cldfast.training.times import TIME_SAMPLING

DECAYS = ("constant", "cosine")
AUTOCAST = ("bfloat16", "float16")


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a training run.

    steps: optimiser steps. batch_size: rows a step, in `accumulate` equal parts, one after another.
    lr: Adam's step size after a linear warm-up over `warmup` steps; `decay` "constant" keeps it,
        "cosine" takes it to 0 at the last step. clip: largest gradient norm, None for no limit.
    ema_decay: see `cldfast.training.ema.EMA`.
    objective: "hsm" or "dsm", see `cldfast.hsm_loss` and `cldfast.dsm_loss`.
    parameterization, weighting, t_min, times: see `cldfast.hsm_loss`; parameterization None is
        "mixed", or "data_noise" for a process with noise on the position.
    sigma_data: standard deviation of the data, for the parameterisation "edm".
    uncertainty: learn the weights of times too, see `cldfast.Uncertainty`.
    flip: turn half of the images from right to left, in an order made from the seed.
    reference: rows of the data, drawn for each step, over which its targets are averaged; the cost
        and the gain are in docs/learning.md. 0 for none.
    label_dropout: share of the labels that become "none", for classifier-free guidance.
    autocast: "bfloat16" or "float16", in which the network then computes (`torch.autocast`), its
        weights, the state and the loss staying in theirs; None computes in theirs too. For
        "float16" the loss is scaled, and a step whose gradients overflow is left out.
    seed: of times, noise and the order of the data.
    log_every, validate_every, checkpoint_every: in steps.

    Raises TypeError or ValueError for a value that does not fit.
    """

    steps: int = 10_000
    batch_size: int = 128
    accumulate: int = 1
    lr: float = 1e-3
    warmup: int = 200
    decay: str = "constant"
    clip: float | None = 1.0
    ema_decay: float = 0.999
    objective: str = "hsm"
    parameterization: str | None = None
    sigma_data: float = 1.0
    weighting: str = "reweighted"
    t_min: float = 1e-3
    times: str = "uniform"
    uncertainty: bool = False
    flip: bool = False
    reference: int = 0
    label_dropout: float = 0.0
    autocast: str | None = None
    seed: int = 0
    log_every: int = 50
    validate_every: int = 500
    checkpoint_every: int = 500

    def __post_init__(self) -> None:
        counts = ("steps", "batch_size", "accumulate")
        for name in (*counts, "log_every", "validate_every", "checkpoint_every"):
            _check_whole(name, getattr(self, name), 1)
        _check_whole("warmup", self.warmup, 0)
        _check_whole("reference", self.reference, 0)
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"batch_size: expected a multiple of accumulate = {self.accumulate}, "
                f"got {self.batch_size}"
            )
        for name in ("lr", "t_min", "sigma_data", *(() if self.clip is None else ("clip",))):
            _check_positive(name, getattr(self, name))
        for name in ("ema_decay", "label_dropout"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"{name}: expected in [0, 1), got {getattr(self, name)}")
        choices = {
            "decay": DECAYS, "objective": OBJECTIVES, "weighting": WEIGHTINGS,
            "times": TIME_SAMPLING,
        }  # fmt: skip
        if self.autocast is not None:
            choices["autocast"] = AUTOCAST
        for name, known in choices.items():
            if (value := getattr(self, name)) not in known:
                raise ValueError(f"{name}: expected one of {', '.join(known)}, got {value!r}")
        if self.parameterization is not None:
            check_parameterization(self.parameterization)
        kernels.check_seed(self.seed)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainConfig:
        """The inverse of `dataclasses.asdict`; ValueError for an unknown key."""
        unknown = sorted(set(values) - {f.name for f in fields(cls)})
        if unknown:
            raise ValueError(f"training settings: unknown {', '.join(unknown)}")
        return cls(**values)

    def form(self, sde: LinearPhaseSDE) -> Parameterization:
        """What the network of a process is trained to return and sees."""
        if self.parameterization is None:
            return "data_noise" if sde.diffusion[0] > 0.0 else "mixed"
        return named_form(self.parameterization, self.sigma_data)

    def learning_rate(self, step: int) -> float:
        """Adam's step size in step number `step`, counted from 0."""
        rate = self.lr * min(1.0, (step + 1) / max(self.warmup, 1))
        if self.decay == "cosine":
            rate *= 0.5 * (1.0 + math.cos(math.pi * step / self.steps))
        return rate


def _check_whole(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: expected a whole number, got {value!r}")
    if value < least:
        raise ValueError(f"{name}: expected at least {least}, got {value}")


def _check_positive(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name}: expected a number, got {value!r}")
    if not 0.0 < value < math.inf:
        raise ValueError(f"{name}: expected a finite number > 0, got {value}")
