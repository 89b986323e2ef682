"""Samplers and loss of mandt-lab/PSLD (Pandey, Mandt 2023) on our kernels: docs/codebases.md."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

import torch

from cldfast.compat.checkpoint import read_checkpoint
from cldfast.compat.install import Installer, Namespace
from cldfast.compat.psld.inpainting import ES3EulerMaruyamaInpainter
from cldfast.compat.psld.loss import PSLDScoreLoss
from cldfast.compat.psld.process import process_of
from cldfast.compat.psld.samplers import (
    BBODESampler,
    ClassCondEulerMaruyamaSampler,
    EulerMaruyamaSampler,
    SSCSSampler,
)
from cldfast.compat.published import check_name
from cldfast.files import located

__all__ = [
    "REGISTERED",
    "BBODESampler",
    "ClassCondEulerMaruyamaSampler",
    "ES3EulerMaruyamaInpainter",
    "EulerMaruyamaSampler",
    "PSLDScoreLoss",
    "SSCSSampler",
    "install",
    "installed",
    "load_checkpoint",
    "process_of",
    "uninstall",
]

# category -> name -> class, as in the codebase's registry.
REGISTERED: dict[str, dict[str, type]] = {
    "samplers": {
        "em_sde": EulerMaruyamaSampler,
        "sscs_sde": SSCSSampler,
        "cc_em_sde": ClassCondEulerMaruyamaSampler,
        "ip_em_sde": ES3EulerMaruyamaInpainter,
        "bb_ode": BBODESampler,
    },
    "losses": {"psld_score_loss": PSLDScoreLoss},
}


def _find() -> tuple[list[tuple[Any, Any]], list[Namespace]]:
    """The classes of the registry by name; the codebase's modules must be importable."""
    # Its own classes register on import and refuse a name that is taken.
    registry, *_ = (importlib.import_module(m) for m in ("util", "samplers", "losses"))
    found = [(registry._MODULES[category], names) for category, names in REGISTERED.items()]
    pairs = [(there[name], ours) for there, names in found for name, ours in names.items()]
    return pairs, [there for there, _ in found]


_installer = Installer(_find)
install, uninstall = _installer.install, _installer.uninstall
installed = _installer.installed


def load_checkpoint(
    path: str | os.PathLike[str], score_fn: torch.nn.Module, sample_from: str = "target"
) -> torch.nn.Module:
    """Load a checkpoint of the codebase's trainer into its network, and return that.

    sample_from: "target", the averaged weights, or "source", those being trained.

    Raises ValueError for another `sample_from`, a file without these weights or with others, and
    one that is broken or holds more than tensors and plain values.
    """
    prefixes = {"target": "ema_score_fn.", "source": "score_fn."}
    prefix = prefixes[check_name("sample_from", sample_from, tuple(prefixes))]
    state = read_checkpoint(path).get("state_dict")
    named = state.items() if isinstance(state, dict) else ()
    weights = {k.removeprefix(prefix): v for k, v in named if str(k).startswith(prefix)}
    if not weights:
        raise ValueError(f"{os.fspath(path)} holds no weights under state_dict[{prefix + '*'!r}]")
    try:
        score_fn.load_state_dict(weights)
    except RuntimeError as error:
        raise located(Path(path), error, "does not fit the network: ") from error
    return score_fn
