"""nv-tlabs/CLD-SGM (Dockhorn, Vahdat, Kreis 2022), over cldfast: see docs/codebases.md.

Every function has the signature and the result of the codebase's function, and takes `mode`.
"""

from __future__ import annotations

import sys
from typing import Any

from cldfast.compat.cld_sgm.checkpoint import load_checkpoint, load_model, restore_checkpoint
from cldfast.compat.cld_sgm.likelihood import get_likelihood_fn
from cldfast.compat.cld_sgm.losses import get_loss_fn
from cldfast.compat.cld_sgm.sampling import (
    get_em_sampler,
    get_ode_sampler,
    get_sampling_fn,
    get_sscs_sampler,
)
from cldfast.compat.cld_sgm.sde import CLD, VPSDE
from cldfast.compat.install import Installer, Namespace, all_modules

__all__ = [
    "CLD",
    "VPSDE",
    "get_em_sampler",
    "get_likelihood_fn",
    "get_loss_fn",
    "get_ode_sampler",
    "get_sampling_fn",
    "get_sscs_sampler",
    "install",
    "installed",
    "load_checkpoint",
    "load_model",
    "restore_checkpoint",
    "uninstall",
]

# Module of the codebase -> its names with their replacements. A module must define all of them, so
# that a stranger's `sampling` or `losses` is not taken for it.
SERVED: dict[str, dict[str, Any]] = {
    "sampling": {
        "get_sampling_fn": get_sampling_fn,
        "get_em_sampler": get_em_sampler,
        "get_sscs_sampler": get_sscs_sampler,
        "get_ode_sampler": get_ode_sampler,
    },
    "losses": {"get_loss_fn": get_loss_fn},
    "likelihood": {
        "get_likelihood_fn": get_likelihood_fn,
        "get_ode_likelihood_fn": get_likelihood_fn,
    },
    "sde_lib": {"CLD": CLD, "VPSDE": VPSDE},
    "checkpoint": {"restore_checkpoint": restore_checkpoint},
}


def _find() -> tuple[list[tuple[Any, Any]], list[Namespace]]:
    pairs = []
    for module in list(sys.modules.values()):
        place = getattr(module, "__name__", "")
        names = SERVED.get(place.rpartition(".")[2], {})
        own = all(getattr(vars(module).get(name), "__module__", None) == place for name in names)
        if own and place.partition(".")[0] != "cldfast":
            pairs += [(vars(module)[name], new) for name, new in names.items()]
    if not pairs:
        raise RuntimeError(
            f"none of CLD-SGM's modules ({', '.join(SERVED)}) is imported: import them first"
        )
    return pairs, all_modules()


_installer = Installer(_find, modeless=(restore_checkpoint,), again=True)
install, uninstall = _installer.install, _installer.uninstall
installed = _installer.installed
