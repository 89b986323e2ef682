"""Packages that only some parts of the library need, and the extra that installs each."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import time
from collections.abc import Iterator
from typing import Any, Protocol


class Sized(Protocol):
    """What can be counted and gone through."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Any]: ...


# Module -> extra of pyproject.toml.
EXTRAS = {
    "sklearn": "demo", "matplotlib": "demo", "ot": "demo", "PIL": "demo", "torchdiffeq": "ode",
    "diffusers": "diffusers", "huggingface_hub": "hub", "arviz": "mcmc", "accelerate": "train",
    "tensorboard": "track", "wandb": "track",
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


def _install(*modules: str) -> str:
    extras = dict.fromkeys(EXTRAS[module.split(".")[0]] for module in modules)
    return f"pip install 'cldfast[{','.join(extras)}]'"


def progress_bar(things: Sized | None = None, **settings: Any) -> Any:
    """A tqdm bar, which leaves no trace when it is done; where there is no terminal, plain lines.

    things: to go through, or `total=` of what `update` counts. settings: `desc`, `unit`, `initial`.
    """
    if sys.stderr.isatty() or "ipykernel" in sys.modules:
        from tqdm.auto import tqdm  # here, so that `import cldfast` need not wait for it

        return tqdm(things, leave=False, **settings)
    return ProgressLines(things, **settings)


class ProgressLines:
    """The part of tqdm's interface that we use, as lines on stderr: now and then, for logs."""

    # Seconds before the first line and between lines, and the share of the time behind it that
    # is waited for the next line: a long run has few.
    WAIT, SHARE = 10.0, 0.1

    def __init__(
        self,
        things: Sized | None = None,
        total: int | None = None,
        initial: int = 0,
        desc: str = "",
        unit: str = "step",
    ) -> None:
        self.things, self.done, self.initial = things, initial, initial
        self.total = len(things) if total is None and things is not None else total
        self.desc, self.unit, self.text = desc, unit, ""
        self.start = time.monotonic()
        self.next = self.start + self.WAIT

    def __iter__(self) -> Iterator[Any]:
        for thing in self.things:  # type: ignore[union-attr]
            yield thing
            self.update()

    def set_postfix_str(self, text: str, refresh: bool = True) -> None:
        self.text = text

    def update(self, count: int = 1) -> None:
        self.done += count
        now = time.monotonic()
        if now < self.next:
            return
        passed = now - self.start
        self.next = now + max(self.WAIT, self.SHARE * passed)
        made, of = self.done - self.initial, "" if self.total is None else f" of {self.total}"
        words = [f"{self.desc}: {self.done}{of} {self.unit}s", self.text, f"{passed:.0f} s"]
        if self.total is not None and made > 0:
            words.append(f"{passed * (self.total - self.done) / made:.0f} s to go")
        print(", ".join(word for word in words if word), file=sys.stderr, flush=True)

    def close(self) -> None:
        pass
