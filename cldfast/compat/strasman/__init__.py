"""Sampler and loss of StanislasStrasman/CLD (Strasman, Surendran et al. 2025) on our kernels.

    import cldfast.compat.strasman as backend
    backend.install()                   # before or after the codebase's own imports

`install` needs the codebase's `src/` on `sys.path`.
"""

from __future__ import annotations

import importlib

from cldfast.compat.published import check_mode
from cldfast.compat.strasman.loss import loss_hsm
from cldfast.compat.strasman.process import CriticallyDampedLangevin, process_of
from cldfast.compat.strasman.schedule import beta_parametric
from cldfast.compat.swap import Swap

__all__ = [
    "CriticallyDampedLangevin",
    "beta_parametric",
    "install",
    "loss_hsm",
    "process_of",
    "uninstall",
]

_swap = Swap()


def install(mode: str = "exact") -> None:
    """Put `CriticallyDampedLangevin`, `loss_hsm` and `beta_parametric` in the codebase's modules.

    mode: "exact" or "published", see docs/codebases.md. Objects made earlier stay what they are.
    Raises ImportError where its modules `CLD`, `loss` and `schedule` cannot be imported,
    RuntimeError when already installed.
    """
    check_mode(mode)
    if _swap:
        raise RuntimeError("already installed; call uninstall() first")
    process, loss, schedule = (importlib.import_module(m) for m in ("CLD", "loss", "schedule"))

    def bound(cls: type) -> type:
        return type(cls.__name__, (cls,), {"mode": mode, "__doc__": cls.__doc__})

    _swap.everywhere(
        {
            process.CriticallyDampedLangevin: bound(CriticallyDampedLangevin),
            loss.loss_hsm: loss_hsm,
            schedule.beta_parametric: bound(beta_parametric),
        }
    )


def uninstall() -> None:
    """Undo `install`; nothing happens where there is none."""
    _swap.undo()
