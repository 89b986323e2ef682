"""Checkpoints of the codebase, read without running what they hold."""

from __future__ import annotations

import codecs
import os
import warnings
from typing import Any

import numpy as np

from cldfast.caller import caller_level
from cldfast.compat.checkpoint import read_checkpoint

# Learning rates become numpy numbers under a warm-up, and older numpy versions pickled them by an
# older name. These are all that a checkpoint holds beside tensors and plain Python values.
_NUMBERS: list[Any] = [
    np._core.multiarray.scalar,  # type: ignore[attr-defined]
    (np._core.multiarray.scalar, "numpy.core.multiarray.scalar"),  # type: ignore[attr-defined]
    np.dtype,
    type(np.dtype(np.float64)),
    codecs.encode,
]


def load_checkpoint(path: str | os.PathLike[str], device: Any = "cpu") -> dict[str, Any]:
    """What `save_checkpoint` wrote: "model", "optimizer", "ema" and "step"; never runs its code.

    path: of the file. device: where its tensors go.
    Raises ValueError for a file that is broken, or holds more than tensors and plain values; see
    `cldfast.compat.checkpoint.read_checkpoint`.
    """
    return read_checkpoint(path, device, _NUMBERS)


def restore_checkpoint(ckpt_dir: str, state: dict[str, Any], device: Any) -> dict[str, Any]:
    """Fill the codebase's training state from a file; a missing file warns and changes nothing.

    ckpt_dir: path of the file. state: "optimizer", "model", "ema" and "step". device: of tensors.
    """
    if not os.path.exists(ckpt_dir):
        message = f"no checkpoint at {ckpt_dir}: the state stays as it is"
        warnings.warn(message, stacklevel=caller_level())
        return state
    loaded = load_checkpoint(ckpt_dir, device)
    state["optimizer"].load_state_dict(loaded["optimizer"])
    state["model"].load_state_dict(loaded["model"], strict=False)
    state["ema"].load_state_dict(loaded["ema"])
    state["step"] = loaded["step"]
    return state
