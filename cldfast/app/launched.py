"""The processes that `torchrun`, `accelerate launch` or a cluster has started, seen from one."""

from __future__ import annotations

import math
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch

from cldfast.extras import extra_module
from cldfast.files import PathLike
from cldfast.training import LostProcess

# Names of trackers, and what each needs.
_PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb"}
TRACKERS = tuple(_PACKAGES)

# Seconds after which a process that answers nobody is lost: longer than writing a checkpoint takes.
PATIENCE = 600.0


class Preempted(RuntimeError):
    """SIGTERM has ended a training, whose state is saved."""


def process() -> tuple[int, int]:
    """The number of this process, and how many there are: (0, 1) where it was started alone."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def local_process() -> int:
    """The number of this process on its machine, which is that of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def launched(
    trackers: Sequence[str], folder: PathLike, *, cpu: bool = False, patience: float = PATIENCE
) -> Any:
    """An `accelerate.Accelerator` for a training; None for one process that reports nowhere.

    cpu: leave GPUs alone. patience: seconds without an answer after which a process is lost.

    Raises ImportError without Accelerate or the package of a tracker, LostProcess where the others
    do not come.
    """
    rank, processes = process()
    by_accelerate = "ACCELERATE_MIXED_PRECISION" in os.environ  # set by its launcher
    if not 0.0 < patience < math.inf:
        raise ValueError(f"--patience: expected seconds > 0, got {patience}")
    if processes == 1 and not trackers and not by_accelerate:
        return None
    accelerate = extra_module("accelerate", "several processes need Accelerate")
    options: dict[str, Any] = {"kwargs_handlers": []}
    if processes > 1:
        seconds = timedelta(seconds=patience)
        options["kwargs_handlers"].append(accelerate.InitProcessGroupKwargs(timeout=seconds))
    if trackers:
        for name in trackers:  # Accelerate leaves out what is not installed, and says nothing
            extra_module(_PACKAGES[name], f"--track {name}")
        options |= {"log_with": list(trackers), "project_dir": str(folder)}
    # Accelerate brings processes together without a GPU only when it is told that there is none.
    cpu = cpu or not torch.cuda.is_available()
    try:
        return accelerate.Accelerator(cpu=cpu, **options)
    except RuntimeError as error:
        if processes == 1:
            raise
        reason = str(error).splitlines()[0]
        raise LostProcess(
            f"process {rank} of {processes}: not all processes came within {patience:g} s "
            f"({reason}): nothing was changed, start all of them again"
        ) from error


@contextmanager
def ended_by_sigterm(stop: Callable[[], None]) -> Iterator[None]:
    """Within the block SIGTERM, by which clusters take their machines back, calls `stop`."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: stop())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
