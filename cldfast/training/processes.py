"""The processes of a training: one, or those that Hugging Face Accelerate has brought together.

The trainer asks an `accelerate.Accelerator` for five things: wrapping, pausing the exchange of
gradients, sums and collections over processes, and a meeting point. `OneProcess` answers the same
five where there is nobody to ask.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

# What the engines of torch.distributed say when they lose a peer; they raise plain RuntimeErrors.
_LOST = re.compile(
    r"gloo|nccl|process group|connection (closed|reset|refused)|broken pipe|timed? ?out", re.I
)
# Accelerate's engines under which gradients come back as means over processes, in full or sharded.
_ENGINES = ("NO", "MULTI_CPU", "MULTI_GPU", "MULTI_XPU", "FSDP")


class LostProcess(RuntimeError):
    """Another process of this training has ended, or cannot be reached any more."""


class OneProcess:
    """One process: what the trainer asks of an `accelerate.Accelerator`, where there is none."""

    num_processes, process_index, is_main_process = 1, 0, True
    mixed_precision = "no"
    trackers = ()

    def prepare(self, *things: Any) -> tuple[Any, ...]:
        """The network and its optimiser, wrapped by nothing."""
        return things

    def no_sync(self, model: nn.Module) -> AbstractContextManager[None]:
        """A block whose backward passes exchange no gradients."""
        return nullcontext()

    def reduce(self, tensor: Tensor, reduction: str = "sum") -> Tensor:
        """The sum, or the mean, of what all processes give."""
        return tensor

    def gather(self, tensor: Tensor) -> Tensor:
        """What all processes give, one after another."""
        return tensor

    def wait_for_everyone(self) -> None:
        """Return when all processes have called."""


def check_accelerator(accelerator: Any) -> None:
    """ValueError for a way of training together that the trainer does not know."""
    if isinstance(accelerator, OneProcess):
        return
    started = os.environ.get("WORLD_SIZE", "1")
    if accelerator.num_processes == 1 and started != "1":
        raise ValueError(
            f"accelerator: {started} processes were started and each is alone, as happens without "
            "a GPU: make it as Accelerator(cpu=True)"
        )
    engine = accelerator.distributed_type.value
    if engine not in _ENGINES or (engine == "FSDP" and not accelerator.is_fsdp2):
        found = "FSDP of version 1 (take fsdp_version=2)" if engine == "FSDP" else engine
        raise ValueError(f"accelerator: expected one process, DDP or FSDP2, got {found}")
    if accelerator.gradient_accumulation_steps != 1:
        raise ValueError(
            "accelerator: expected gradient_accumulation_steps = 1, got "
            f"{accelerator.gradient_accumulation_steps}: TrainConfig.accumulate says it"
        )
    if accelerator.mixed_precision not in ("no", "bf16", "fp16"):
        raise ValueError(
            f"accelerator: expected mixed precision no, bf16 or fp16, got "
            f"{accelerator.mixed_precision}"
        )


def share_of(batch_size: int, accumulate: int, accelerator: Any) -> slice:
    """The rows of a batch that are this process's; ValueError where they are no equal parts."""
    processes = accelerator.num_processes
    if batch_size % (processes * accumulate):
        raise ValueError(
            f"batch_size: expected a multiple of {processes} processes x accumulate = "
            f"{processes * accumulate}, got {batch_size}"
        )
    size = batch_size // processes
    return slice(accelerator.process_index * size, (accelerator.process_index + 1) * size)


def device_of_rank(accelerator: Any, own: torch.device) -> torch.device:
    """Where this process's network goes: the accelerator's device, or where the network is."""
    found = getattr(accelerator, "device", own)
    return torch.empty(0, device=found).device  # Accelerate says "cpu:0", which tensors never do


def half_precision(autocast: str | None, accelerator: Any) -> torch.dtype | None:
    """What the network computes in; ValueError where settings and accelerator do not agree."""
    theirs = {"bf16": "bfloat16", "fp16": "float16"}.get(accelerator.mixed_precision)
    if autocast is not None and theirs is not None and autocast != theirs:
        raise ValueError(f"autocast: expected the accelerator's {theirs}, or None, got {autocast}")
    name = autocast or theirs
    return None if name is None else getattr(torch, name)  # type: ignore[no-any-return]


@contextmanager
def naming_lost(accelerator: Any, doing: Callable[[], str]) -> Iterator[None]:
    """Turns the errors of an exchange with a process that is gone into `LostProcess`.

    doing: what to say of the work, asked for where the error comes.
    """
    try:
        yield
    except LostProcess:
        raise
    except RuntimeError as error:
        text = str(error)
        if accelerator.num_processes == 1 or not _LOST.search(text):
            raise
        reason = text.split("\n")[0].split(". This may indicate")[0]
        raise LostProcess(
            f"process {accelerator.process_index} of {accelerator.num_processes}: another process "
            f"has ended or cannot be reached ({reason}) {doing()}"
        ) from error
