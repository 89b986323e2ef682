"""Opening checkouts of other codebases, for the benchmarks and tests that run beside them.

CLDFAST_UPSTREAM names a folder that holds them, each under its repository's name. They are imported
under their own module names, with stand-ins for packages that play no part in what is measured, and
leave `sys.modules` and `sys.path` as they were.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

VARIABLE = "CLDFAST_UPSTREAM"


def missing(name: str) -> str:
    """Why the checkout `name` cannot be used, or an empty string."""
    root = os.environ.get(VARIABLE)
    if not root:
        return f"{VARIABLE} is not set: it names a folder with checkouts of other codebases"
    if not (Path(root) / name).is_dir():
        return f"{VARIABLE} = {root} holds no checkout named {name}"
    return ""


def stand_in(name: str, **attributes: Any) -> ModuleType:
    """A module with these attributes and nothing else."""
    module = ModuleType(name)
    vars(module).update(attributes)
    return module


@contextmanager
def checkout(
    name: str, modules: Sequence[str], stand_ins: Mapping[str, ModuleType] | None = None
) -> Iterator[SimpleNamespace]:
    """The named modules of a checkout as attributes, `models.utils` under the name `models_utils`.

    stand_ins: modules to use where the real ones cannot be imported.
    Raises FileNotFoundError with the reason where there is no checkout.
    """
    reason = missing(name)
    if reason:
        raise FileNotFoundError(reason)
    root = str(Path(os.environ[VARIABLE]) / name)
    before, path = dict(sys.modules), list(sys.path)
    sys.path.insert(0, root)
    for other, module in (stand_ins or {}).items():
        try:
            importlib.import_module(other)
        except ImportError:
            sys.modules[other] = module
    loaded = SimpleNamespace()
    try:
        for module_name in modules:
            module = importlib.import_module(module_name)
            setattr(loaded, module_name.replace(".", "_"), module)
        yield loaded
    finally:
        for key, module in list(sys.modules.items()):
            # A package without an __init__ has paths only, and these follow sys.path.
            places = [getattr(module, "__file__", None), *vars(module).get("__path__", ())]
            own = any(str(place or "").startswith(root + os.sep) for place in places)
            if own or key in (stand_ins or {}):
                del sys.modules[key]
                if key in before:
                    sys.modules[key] = before[key]
        sys.path[:] = path
