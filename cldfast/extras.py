"""Packages that only some parts of the library need, and the extra that installs each."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

# Module -> extra of pyproject.toml.
EXTRAS = {
    "sklearn": "demo", "matplotlib": "demo", "ot": "demo", "torchdiffeq": "ode",
    "diffusers": "diffusers", "arviz": "mcmc",
}  # fmt: skip


def extra_module(module: str, purpose: str) -> Any:
    """Import a module of an extra; ImportError that says what needs it and how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"{purpose}: {_install(module)}") from error


def require(*modules: str) -> None:
    """ImportError that names the missing modules and the extras that install them."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f"this needs {', '.join(missing)}: {_install(*missing)}")


def progress_bar(*things: Any, **settings: Any) -> Any:
    """A tqdm bar, which leaves no trace when it is done."""
    from tqdm.auto import tqdm  # here, so that `import cldfast` need not wait for it

    return tqdm(*things, leave=False, **settings)


def _install(*modules: str) -> str:
    extras = dict.fromkeys(EXTRAS[module.split(".")[0]] for module in modules)
    return f"pip install 'cldfast[{','.join(extras)}]'"
