"""A checkout of StanislasStrasman/CLD for tests and benchmarks: modules, a configuration."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from checkouts import checkout

NAME = "CLD"
MODULES = ("CLD", "loss", "schedule", "model", "train", "ema", "config")


def options(**changes: Any) -> SimpleNamespace:
    """Its default process on the CPU, one `a` and one `epsilon`; changes: by name."""
    values: dict[str, Any] = {
        "a": 2.0, "epsilon": 0.0, "sigma": 2.0**0.5, "device": torch.device("cpu"), "T": 1.0,
        "beta_min": 4.0, "beta_max": 4.0, "v0_var": 0.01, "numerical_eps": 1e-6, "grad_clip": 1.0,
    }  # fmt: skip
    return SimpleNamespace(**(values | changes))


@contextmanager
def opened(*more: str) -> Iterator[SimpleNamespace]:
    """Its modules, `MODULES` and more."""
    with checkout(f"{NAME}/src", (*MODULES, *more)) as modules:
        yield modules


def process(modules: SimpleNamespace, config: SimpleNamespace) -> Any:
    """Its process for a configuration, without what it prints.

    Its leapfrog step reads a global `a` that is defined nowhere: here it is.
    """
    modules.CLD.a = config.a
    with contextlib.redirect_stdout(io.StringIO()):
        return modules.CLD.CriticallyDampedLangevin(config)
