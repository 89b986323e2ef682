"""The processes that `torchrun`, `accelerate launch` or a cluster has started, seen from one."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch

from cldfast.extras import extra_module
from cldfast.files import PathLike
from cldfast.training import LostProcess

TRACKERS = ("tensorboard", "wandb")

# A process that answers nobody for so long is lost: longer than a checkpoint takes to write.
_PATIENCE = timedelta(minutes=10)


def process() -> tuple[int, int]:
    """The number of this process, and how many there are: (0, 1) where it was started alone."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def local_process() -> int:
    """The number of this process on its machine, which is that of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def launched(trackers: Sequence[str], folder: PathLike, *, cpu: bool = False) -> Any:
    """An `accelerate.Accelerator` for a training; None for one process that reports nowhere.

    cpu: leave GPUs alone. Raises ImportError without Accelerate.
    """
    by_accelerate = "ACCELERATE_MIXED_PRECISION" in os.environ  # set by its launcher
    if process()[1] == 1 and not trackers and not by_accelerate:
        return None
    accelerate = extra_module("accelerate", "several processes need Accelerate")
    _end_with_a_word()
    options: dict[str, Any] = {"kwargs_handlers": []}
    if process()[1] > 1:
        patience = accelerate.InitProcessGroupKwargs(timeout=_PATIENCE)
        options["kwargs_handlers"].append(patience)
    if trackers:
        options |= {"log_with": list(trackers), "project_dir": str(folder)}
    # Accelerate brings processes together without a GPU only when it is told that there is none.
    return accelerate.Accelerator(cpu=cpu or not torch.cuda.is_available(), **options)


def _end_with_a_word() -> None:
    """`torchrun` ends the others where one is lost: let them say so."""

    def ended(number: int, frame: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        rank, count = process()
        raise LostProcess(
            f"process {rank} of {count} was told to end: the last checkpoint is whole, resume it"
        )

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, ended)
