"""Packages that only some parts of the library need, and the extra that installs them."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any


def extra_module(module: str, purpose: str, extra: str = "demo") -> Any:
    """Import a module of an extra; ImportError that says what needs it and how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"{purpose}: pip install 'cldfast[{extra}]'") from error


def require(*modules: str) -> None:
    """ImportError that names the missing modules and the extra that installs them."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f"this needs {', '.join(missing)}: pip install 'cldfast[demo]'")


def progress_bar(*things: Any, **settings: Any) -> Any:
    """A tqdm bar, which leaves no trace when it is done; ImportError without tqdm."""
    return extra_module("tqdm.auto", "progress=True needs tqdm").tqdm(
        *things, leave=False, **settings
    )
