"""Putting objects in the place of a codebase's own ones, and back."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from types import ModuleType
from typing import Any

from cldfast.compat.published import check_mode

# A namespace is the dictionary of a module, or a registry of the codebase.
Namespace = dict[str, Any]


class Installer:
    """The functions `install`, `uninstall` and `installed` of a codebase.

    find: `find() -> (pairs, namespaces)`: objects of the codebase with what replaces each, and the
        namespaces that may hold them, under any name; raises where the codebase is not there.
    modeless: replacements that take no mode; all others are bound to the mode.
    again: whether `install` may be called again, to change the mode.
    """

    def __init__(
        self,
        find: Callable[[], tuple[Iterable[tuple[Any, Any]], Iterable[Namespace]]],
        *,
        modeless: tuple[Any, ...] = (),
        again: bool = False,
    ) -> None:
        self._find, self._modeless, self._again = find, modeless, again
        self._done: list[tuple[Namespace, str, Any, Any]] = []

    def install(self, mode: str = "exact") -> list[str]:
        """Put the replacements under every name of the originals; returns the names, "module.name".

        mode: "exact" or "published", see docs/codebases.md. Objects made before keep their classes.
        Raises ValueError for an unknown mode, ImportError or RuntimeError where the codebase cannot
        be found, RuntimeError where it is served already and the mode cannot be changed.
        """
        check_mode(mode)
        if self._done and not self._again:
            raise RuntimeError("already installed; call uninstall() first")
        self.uninstall()
        pairs, namespaces = self._find()
        replacements = {id(old): (old, self._bound(new, mode)) for old, new in pairs}
        for namespace in namespaces:
            for name, value in list(namespace.items()):
                old, new = replacements.get(id(value), (None, None))
                if old is not None and old is value:
                    namespace[name] = new
                    self._done.append((namespace, name, old, new))
        return sorted(f"{names.get('__name__', '')}.{name}" for names, name, _, _ in self._done)

    def uninstall(self) -> None:
        """Put back what `install` replaced, but for names that somebody has changed since."""
        while self._done:
            namespace, name, old, new = self._done.pop()
            if namespace.get(name) is new:
                namespace[name] = old

    @contextmanager
    def installed(self, mode: str = "exact") -> Iterator[list[str]]:
        """`install(mode)` for the length of a `with` block."""
        names = self.install(mode)
        try:
            yield names
        finally:
            self.uninstall()

    def _bound(self, new: Any, mode: str) -> Any:
        if new in self._modeless:
            return new
        if not isinstance(new, type):
            return partial(new, mode=mode)
        about = {"mode": mode, "__doc__": new.__doc__, "__module__": new.__module__}
        return type(new.__name__, (new,), about)


def all_modules() -> list[Namespace]:
    """The names in every imported module: `from module import name` leaves copies in others."""
    return [vars(m) for m in list(sys.modules.values()) if isinstance(m, ModuleType)]
