"""Which backends there are, which of them run on this machine, and which one serves a device."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

import torch

from cldfast.caller import caller_level
from cldfast.kernels.backends.protocol import Backend

AUTO = "auto"
CPU = torch.device("cpu")
_Function = TypeVar("_Function", bound=Callable[..., object])


class BackendWarning(UserWarning):
    """A faster backend is missing and a slower one runs instead."""


@dataclass(frozen=True)
class _Entry:
    device_types: tuple[str, ...] | None
    load: Callable[[], Backend]
    advice: str


_entries: dict[str, _Entry] = {}
# What loading has given: a backend, or why it cannot run on this machine.
_backends: dict[str, Backend] = {}
_missing: dict[str, str] = {}


def register_backend(
    name: str,
    load: Callable[[], Backend],
    device_types: tuple[str, ...] | None = None,
    advice: str = "",
) -> None:
    """Make a backend known under a name.

    load: makes the backend, when it is first asked for; raises ImportError with the reason where it
        cannot run on this machine.
    device_types: the types of device that it serves, for which "auto" takes the first registered
        backend that runs; None serves any device and is what "auto" takes last.
    advice: what to do where it cannot run and "auto" has to take a slower one.

    Raises ValueError for a name that is taken.
    """
    if name == AUTO or name in _entries:
        raise ValueError(f"a backend {name!r} is registered already")
    _entries[name] = _Entry(device_types, load, advice)
    _choose_anew()


def unregister_backend(name: str) -> None:
    """Forget a backend that `register_backend` made known; KeyError for any other name."""
    del _entries[name]
    _backends.pop(name, None)
    _missing.pop(name, None)
    _choose_anew()


def _choose_anew() -> None:
    """Forget which backend "auto" takes, and what was said about it."""
    _automatic.cache_clear()
    _warn_if_slow.cache_clear()


def backend_names() -> tuple[str, ...]:
    """The names that `backend=` takes."""
    return (AUTO, *_entries)


def missing_backend(name: str) -> str:
    """Why a backend cannot run on this machine, or an empty string; ValueError for no name."""
    if name not in _entries:
        raise ValueError(f"unknown backend {name!r}; expected one of {', '.join(_entries)}")
    if name not in _backends and name not in _missing:
        try:
            found = _entries[name].load()
        except ImportError as error:
            _missing[name] = str(error) or repr(error)
        else:
            if found.name != name:  # an operator knows a backend by that name
                raise ValueError(f"the backend registered as {name!r} is named {found.name!r}")
            _backends[name] = found
    return _missing.get(name, "")


def _candidates(device_type: str) -> list[str]:
    """Backends that may serve a type of device, the one to be preferred first."""
    own = [n for n, e in _entries.items() if e.device_types and device_type in e.device_types]
    return own + [name for name, entry in _entries.items() if entry.device_types is None]


@cache
def _automatic(device_type: str) -> str:
    """The name of the backend that "auto" takes for a type of device."""
    return next(name for name in _candidates(device_type) if not missing_backend(name))


def automatic_backend(device_type: str) -> Backend:
    """The backend that "auto" takes for a type of device."""
    return _backends[_automatic(device_type)]


@cache
def _warn_if_slow(device_type: str) -> None:
    """Say once that the fast kernels for a type of device are missing, where it has any."""
    fastest = _candidates(device_type)[0]
    found = _automatic(device_type)
    if _entries[fastest].device_types is None or _entries[found].device_types is not None:
        return
    warnings.warn(
        f"cldfast: the fast kernels for {device_type} are missing ({missing_backend(fastest)}); "
        f"the slower backend {found!r} runs instead. {_entries[fastest].advice}",
        BackendWarning,
        stacklevel=caller_level(),
    )


def _constant(function: _Function) -> _Function:
    """For a graph compiler, the answer of the function is a constant.

    This is what `torch.compiler.assume_constant_result` does, but that imports the compiler, which
    takes longer than all else that importing this library does.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@_constant
def _serving(name: str, device_type: str) -> str:
    """The name of the backend that serves a type of device; it is loaded then."""
    if name == AUTO:
        _warn_if_slow(device_type)
        return _automatic(device_type)
    if name not in _entries:
        raise ValueError(f"unknown backend {name!r}; expected one of {', '.join(backend_names())}")
    served = _entries[name].device_types
    if served is not None and device_type not in served:
        raise ValueError(
            f"backend {name!r} needs tensors on a device of type {' or '.join(served)}, "
            f"got device {device_type}"
        )
    if reason := missing_backend(name):
        raise ValueError(f"backend {name!r} is not available: {reason}")
    return name


def get_backend(name: str, device_type: str) -> Backend:
    """The backend that serves a type of device: the fastest one found for "auto", else the name's.

    Raises ValueError for an unknown name or one that cannot serve the device or run here.
    """
    return _backends[_serving(name, device_type)]


def resolve_backend(backend: str | Backend, device: torch.device) -> Backend:
    """`get_backend` of a device; a backend itself is taken if it is the registered one."""
    # The type of a device takes longer to ask for than all the rest.
    device_type = "cpu" if device == CPU else device.type
    if not isinstance(backend, Backend):
        return get_backend(backend, device_type)
    if get_backend(backend.name, device_type) is not backend:
        raise ValueError(
            f"this backend is not the one registered as {backend.name!r}: register it under a name "
            "of its own"
        )
    return backend
