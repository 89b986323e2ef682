"""JSON texts of strangers: their size, depth and numbers are checked."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from cldfast.files.opening import PathLike, located, read_bytes

# Bytes of a JSON file.
MOST_JSON_BYTES = 16 << 20
# Values in a JSON text. The largest, a dictionary, takes some 250 bytes: all take 250 MiB at most.
_MOST_VALUES = 1 << 20
# Objects and lists inside each other: a plan has 5.
_MOST_DEPTH = 16
# A whole number of a file has at most the digits of 2^64, with a sign.
_MOST_DIGITS = 21


def read_json(path: PathLike, most: int = MOST_JSON_BYTES) -> dict[str, Any]:
    """Read a JSON object; ValueError in one line for a missing or broken file.

    most: bytes of the file. Numbers are finite, and no whole number is longer than 2^64.
    """
    try:
        return parse_json(read_bytes(path, most))
    except ValueError as error:
        raise located(Path(path), error) from None


def parse_json(text: bytes) -> dict[str, Any]:
    """The object of a JSON text, of limited size, depth and numbers; ValueError for none."""
    # Each value but the first follows one of these, so their number bounds what is allocated.
    if sum(text.count(mark) for mark in (b",", b"[", b"{")) > _MOST_VALUES:
        raise ValueError(f"expected at most {_MOST_VALUES} values in JSON, got more")
    try:
        value = json.loads(
            text.decode(), parse_int=_whole, parse_float=_finite, parse_constant=_finite,
            object_pairs_hook=_object,
        )  # fmt: skip
    except RecursionError:
        raise ValueError(f"expected JSON of depth {_MOST_DEPTH} at most, got more") from None
    except ValueError as error:
        raise ValueError(f"not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"expected a JSON object, got {type(value).__name__}")
    level: list[Any] = [value]
    for _ in range(_MOST_DEPTH):
        inner = (v.values() if isinstance(v, dict) else v for v in level)
        level = [v for values in inner for v in values if isinstance(v, dict | list)]
    if level:
        raise ValueError(f"expected JSON of depth {_MOST_DEPTH} at most, got more")
    return value


def _whole(text: str) -> int:
    if len(text) > _MOST_DIGITS:
        raise ValueError(f"expected whole numbers of {_MOST_DIGITS} digits at most, got more")
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"expected finite numbers, got {text:.40}")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError("expected each key of an object once")
    return made
