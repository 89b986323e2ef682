"""Putting this package under an imported CLD-SGM, and taking it out again."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from cldfast.compat.cld_sgm import checkpoint, likelihood, losses, sampling, sde
from cldfast.compat.install import Installer, Namespace, all_modules

# Module of the codebase -> its names with their replacements. A module must define all of them, so
# that a stranger's `sampling` or `losses` is not taken for it.
SERVED: dict[str, dict[str, Any]] = {
    "sampling": {
        "get_sampling_fn": sampling.get_sampling_fn,
        "get_em_sampler": sampling.get_em_sampler,
        "get_sscs_sampler": sampling.get_sscs_sampler,
        "get_ode_sampler": sampling.get_ode_sampler,
    },
    "losses": {"get_loss_fn": losses.get_loss_fn},
    "likelihood": {
        "get_likelihood_fn": likelihood.get_likelihood_fn,
        "get_ode_likelihood_fn": likelihood.get_likelihood_fn,
    },
    "sde_lib": {"CLD": sde.CLD, "VPSDE": sde.VPSDE},
    "checkpoint": {"restore_checkpoint": checkpoint.restore_checkpoint},
}


def _find() -> tuple[list[tuple[Any, Any]], list[Namespace]]:
    pairs = list(_pairs())
    if not pairs:
        raise RuntimeError(
            f"none of CLD-SGM's modules ({', '.join(SERVED)}) is imported: import them first"
        )
    return pairs, all_modules()


def _pairs() -> Iterator[tuple[Any, Any]]:
    for module in list(sys.modules.values()):
        place = getattr(module, "__name__", "")
        names = SERVED.get(place.rpartition(".")[2], {})
        own = all(getattr(vars(module).get(name), "__module__", None) == place for name in names)
        if own and place.partition(".")[0] != "cldfast":
            yield from ((vars(module)[name], new) for name, new in names.items())


_installer = Installer(_find, modeless=(checkpoint.restore_checkpoint,), again=True)
install, uninstall = _installer.install, _installer.uninstall
installed = _installer.installed
