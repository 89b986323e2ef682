"""Options that several commands share, and what they are turned into."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

import torch

from cldfast.app.launched import local_process


def add_numbers(group: Any, kind: type, options: dict[str, str]) -> None:
    """Options that take a number, by name; an int is shown as N, a float as X."""
    for name, text in options.items():
        group.add_argument(f"--{name}", type=kind, metavar="N" if kind is int else "X", help=text)


def add_device(parser: Any) -> None:
    """`--device`."""
    parser.add_argument("--device", help="where the network computes, such as cuda or cuda:1 (cpu)")


def add_progress(parser: Any) -> None:
    """`--quiet`: commands that take long say how far they are."""
    parser.add_argument(
        "--quiet", action="store_true", help="no progress bar, or lines of progress"
    )


def given(args: argparse.Namespace) -> dict[str, Any]:
    """The options that were given, by name, flags included."""
    return {name: value for name, value in vars(args).items() if value is not None}


def given_of(args: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Those of these names that were given."""
    values = given(args)
    return {name: values[name] for name in names if name in values}


def device(args: argparse.Namespace) -> torch.device:
    """The device of `--device`; ValueError for one that this machine does not have."""
    try:
        return torch.empty(0, device=args.device or "cpu").device
    except (RuntimeError, AssertionError) as error:  # PyTorch's for no such device or no driver
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"--device {args.device}: {reason}") from None


def local_device(args: argparse.Namespace) -> torch.device:
    """The device of `--device`; of "cuda" without a number, this process's own of several."""
    found = device(args)
    if found.type == "cuda" and args.device == "cuda":
        return torch.device("cuda", local_process() % torch.cuda.device_count())
    return found


def named_values(option: str, texts: Sequence[str]) -> dict[str, Any]:
    """`order=3 form=R` as values by name; numbers and lists are read as JSON."""
    values: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise ValueError(f"--{option}: expected name=value, got {text!r}")
        try:
            values[name] = json.loads(value)
        except json.JSONDecodeError:
            values[name] = value
        except RecursionError:
            raise ValueError(f"--{option}: {name} has too many brackets") from None
    return values
