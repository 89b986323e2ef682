"""Putting this package under an imported CLD-SGM, and taking it out again."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import ModuleType
from typing import Any

from cldfast.compat.cld_sgm import checkpoint, flow, losses, sampling, sde
from cldfast.compat.published import check_mode

# Module of the codebase -> the names that are replaced. All must be its own, so that a stranger's
# `sampling` or `losses` is not taken for it.
SERVED = {
    "sampling": ("get_sampling_fn", "get_em_sampler", "get_sscs_sampler", "get_ode_sampler"),
    "losses": ("get_loss_fn",),
    "likelihood": ("get_likelihood_fn", "get_ode_likelihood_fn"),
    "sde_lib": ("CLD", "VPSDE"),
    "checkpoint": ("restore_checkpoint",),
}
_swapped: list[tuple[ModuleType, str, Any, Any]] = []


def install(mode: str = "exact") -> list[str]:
    """Replace the codebase's samplers, losses, likelihood, processes and checkpoint reading.

    To be called after its modules are imported; names that others have imported from them, as
    `run_lib` does, are replaced too. Installing again changes the mode.
    mode: "exact" or "published".

    Returns the replaced names, "module.name". Raises ValueError for an unknown mode, RuntimeError
    where none of its modules is imported.
    """
    check_mode(mode)
    uninstall()
    replacements = {}
    for module in list(sys.modules.values()):
        kind = getattr(module, "__name__", "").rpartition(".")[2]
        if kind not in SERVED or not _is_served(module, kind):
            continue
        for name in SERVED[kind]:
            original = vars(module)[name]
            replacements[id(original)] = (original, _replacement(name, mode))
    if not replacements:
        raise RuntimeError(
            f"none of CLD-SGM's modules ({', '.join(SERVED)}) is imported: import them first"
        )
    for module in list(sys.modules.values()):
        for name, value in list(getattr(module, "__dict__", {}).items()):
            original, new = replacements.get(id(value), (None, None))
            if original is not None and original is value:
                setattr(module, name, new)
                _swapped.append((module, name, original, new))
    return sorted(f"{module.__name__}.{name}" for module, name, _, _ in _swapped)


def uninstall() -> None:
    """Put back what `install` replaced, but for names that somebody has changed since."""
    while _swapped:
        module, name, original, new = _swapped.pop()
        if vars(module).get(name) is new:
            setattr(module, name, original)


@contextmanager
def installed(mode: str = "exact") -> Iterator[list[str]]:
    """`install(mode)` for the length of a `with` block."""
    names = install(mode)
    try:
        yield names
    finally:
        uninstall()


def _is_served(module: ModuleType, kind: str) -> bool:
    """Whether the module itself defines all the names, and is not one of this package."""
    if module.__name__.partition(".")[0] == "cldfast":
        return False
    return all(
        getattr(vars(module).get(name), "__module__", None) == module.__name__
        for name in SERVED[kind]
    )


def _replacement(name: str, mode: str) -> Any:
    if name in ("CLD", "VPSDE"):
        return type(name, (getattr(sde, name),), {"mode": mode, "__module__": sde.__name__})
    if name == "restore_checkpoint":
        return checkpoint.restore_checkpoint
    if name == "get_ode_likelihood_fn":
        name = "get_likelihood_fn"
    home = next(m for m in (sampling, losses, flow) if name in vars(m))
    return partial(getattr(home, name), mode=mode)
