"""Training of a score network: the trainer, its settings, its log, and what one step is made of."""

from cldfast.training.config import TrainConfig
from cldfast.training.ema import EMA
from cldfast.training.trainer import CHECKPOINT, FAILED, LOG, NonFiniteLoss, Trainer

__all__ = ["CHECKPOINT", "EMA", "FAILED", "LOG", "NonFiniteLoss", "TrainConfig", "Trainer"]
