"""Sampler and loss of StanislasStrasman/CLD (Strasman et al. 2025): see docs/codebases.md."""

from __future__ import annotations

import importlib
from typing import Any

from cldfast.compat.install import Installer, Namespace, all_modules
from cldfast.compat.strasman.loss import loss_hsm
from cldfast.compat.strasman.process import CriticallyDampedLangevin, process_of
from cldfast.compat.strasman.schedule import beta_parametric

__all__ = [
    "CriticallyDampedLangevin",
    "beta_parametric",
    "install",
    "installed",
    "loss_hsm",
    "process_of",
    "uninstall",
]


def _find() -> tuple[list[tuple[Any, Any]], list[Namespace]]:
    """The objects of the modules `CLD`, `loss` and `schedule`, which must be importable."""
    process, loss, schedule = (importlib.import_module(m) for m in ("CLD", "loss", "schedule"))
    pairs = [
        (process.CriticallyDampedLangevin, CriticallyDampedLangevin),
        (loss.loss_hsm, loss_hsm),
        (schedule.beta_parametric, beta_parametric),
    ]
    return pairs, all_modules()


# The loss takes the mode of its process.
_installer = Installer(_find, modeless=(loss_hsm,))
install, uninstall = _installer.install, _installer.uninstall
installed = _installer.installed
