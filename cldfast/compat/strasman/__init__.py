"""Sampler and loss of StanislasStrasman/CLD (Strasman, Surendran et al. 2025) on our kernels.

    import cldfast.compat.strasman as backend
    backend.install()                   # before or after the codebase's own imports

`install` needs the codebase's `src/` on `sys.path`.
"""

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
