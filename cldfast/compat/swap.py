"""Putting objects in the place of others in modules that are already imported, and back."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class Swap:
    """Replacements made so far, so that they can be undone."""

    def __init__(self) -> None:
        self._done: list[tuple[ModuleType, str, Any]] = []

    def __bool__(self) -> bool:
        return bool(self._done)

    def everywhere(self, replacements: dict[Any, Any]) -> int:
        """Replace objects under every name in every imported module; returns how many names.

        `from module import name` leaves copies of a name in other modules: these are found, too.
        """
        wanted = {id(old): new for old, new in replacements.items()}
        before = len(self._done)
        for module in list(sys.modules.values()):
            if not isinstance(module, ModuleType):
                continue
            for name, value in list(vars(module).items()):
                if id(value) in wanted:
                    self._done.append((module, name, value))
                    setattr(module, name, wanted[id(value)])
        return len(self._done) - before

    def undo(self) -> None:
        """Put everything back."""
        while self._done:
            module, name, value = self._done.pop()
            setattr(module, name, value)
