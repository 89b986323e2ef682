"""Texts made of a fuzzer's bytes: those of plain values with some of their entries replaced."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from typing import Any

# What readers trip over: other types, edges of numbers, deep and empty things, terminal escapes.
STRANGE: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 2, 3, 8, 10**6, 2**31, 2**53 + 1, 2**63, 2**64 - 1, 2**64,
    -(2**63), 10**18, 0.0, -0.0, 0.5, 1.0, 1e-3, 5e-324, 1e-300, 1e300, 1.7e308, "", "x", "edm",
    "cld", "mlp", "unet", "linear", "full_score", "nan", "\x1b[2J", "\ud800", "x" * 300, [], {},
    [[]], [1], [1.0, 2.0], [1, 8, 8], [[1.0, 0.0], [0.0, 1.0]], {"kind": "cld"},
    {"kind": "linear"}, [0] * 40,
)  # fmt: skip


class Choices:
    """Choices made by a string of bytes; the first one where there are no more bytes."""

    def __init__(self, data: bytes) -> None:
        self.data, self.place = data, 0

    def below(self, count: int) -> int:
        """A number in [0, count)."""
        first = self.place
        self.place += 1 if count <= 256 else 2
        return int.from_bytes(self.data[first : self.place], "little") % count

    def of(self, values: Sequence[Any]) -> Any:
        return values[self.below(len(values))]


def changed(text: str, choices: Choices) -> str:
    """A text in JSON, some of its values replaced, removed, copied or added."""
    values = json.loads(text)
    for _ in range(1 + choices.below(4)):
        place = values
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                break
            key = choices.of(keys)
            inner = place[key]
            if isinstance(inner, dict | list) and inner and choices.below(4):
                place = inner
                continue
            action = choices.below(8)
            if action == 0:
                del place[key]
            elif action == 1 and isinstance(place, dict):
                place[choices.of(keys) + "x"] = inner
            elif action == 2 and isinstance(place, list):
                place.append(copy.deepcopy(inner))
            elif action == 3 and isinstance(inner, int | float) and not isinstance(inner, bool):
                place[key] = inner * choices.of((-1, 0, 2, 10**9, 0.5, 1e-9))
            elif action == 4:
                place[key] = copy.deepcopy(place[choices.of(keys)])
            else:
                place[key] = copy.deepcopy(choices.of(STRANGE))
            break
    return json.dumps(values)
