"""Checkpoints of the codebase, read without running what they hold."""

from __future__ import annotations

import codecs
import os
import warnings
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from torch import nn

from cldfast.caller import caller_level
from cldfast.compat.checkpoint import read_checkpoint
from cldfast.files import located

M = TypeVar("M", bound=nn.Module)

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


def load_model(path: str | os.PathLike[str], net: M, device: Any = "cpu") -> M:
    """A network of the codebase with the averaged weights of a checkpoint, to be sampled.

    path: of the file, which is read without running what it holds. net: the network that was
    trained, on any device; it is filled, moved and returned in evaluation mode. What it returns is
    `parameterization="mixed"` where it was trained with `config.mixed_score`, else "noise".

    The names may begin with `module.`, as a wrapper for several devices writes them.

    Raises ValueError for a file that is broken or no checkpoint, and weights that do not fit.
    """
    loaded = load_checkpoint(path, device)
    averages = loaded["ema"].get("shadow_params") if isinstance(loaded.get("ema"), dict) else None
    if not isinstance(loaded.get("model"), dict) or not isinstance(averages, list):
        raise ValueError(f"{path}: expected a checkpoint with model and ema, got {sorted(loaded)}")
    weights = {str(name).removeprefix("module."): value for name, value in loaded["model"].items()}
    trained = [(name, p) for name, p in net.named_parameters() if p.requires_grad]
    if len(trained) != len(averages):
        raise ValueError(
            f"{path}: does not fit the network: {len(averages)} averages for {len(trained)} "
            "parameters"
        )
    # The averages are of the trained parameters, in the order of the network.
    weights |= {name: value for (name, _), value in zip(trained, averages, strict=True)}
    try:
        net.load_state_dict(weights)
    except RuntimeError as error:
        raise located(Path(path), error, "does not fit the network: ") from None
    return net.to(device).eval()


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
