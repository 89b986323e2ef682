"""Training of a score network: the trainer, its settings, its log, and what one step is made of."""

from cldfast.training.config import TrainConfig
from cldfast.training.ema import EMA
from cldfast.training.nonfinite import NonFiniteLoss
from cldfast.training.processes import LostProcess
from cldfast.training.trainer import CHECKPOINT, FAILED, LOG, Trainer

__all__ = [
    "CHECKPOINT",
    "EMA",
    "FAILED",
    "LOG",
    "LostProcess",
    "NonFiniteLoss",
    "TrainConfig",
    "Trainer",
]
