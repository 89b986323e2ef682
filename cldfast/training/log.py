"""The training log: one CSV row every few steps, which a killed and resumed run continues."""

from __future__ import annotations

import csv
import io
import time
from pathlib import Path
from typing import Any

from cldfast.files import PathLike, write_atomic

_NOTHING = {"loss": 0.0, "norm": 0.0, "count": 0}
COLUMNS = ("step", "seconds", "loss", "gradient_norm", "lr", "validation_loss")


class TrainLog:
    """Appends to a CSV file the mean loss and gradient norm since the last row.

    Columns: step; seconds of training; mean loss; mean gradient norm before clipping; step size;
    loss on held-out rows, empty where it was not computed.

    Args:
        path: the file; nothing is touched before `cut` or `write`.
    """

    def __init__(self, path: PathLike) -> None:
        self.path = Path(path)
        self._sums = dict(_NOTHING)
        self._start = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds since the log was opened, and those of earlier parts of the run."""
        return time.perf_counter() - self._start

    def cut(self, step: int) -> None:
        """Begin the file, or keep of it the whole rows up to `step`."""
        kept = [row for row in read_rows(self.path) if row["step"] <= step]
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        for row in kept:
            writer.writerow(["" if row[name] is None else row[name] for name in COLUMNS])
        write_atomic(self.path, text.getvalue().encode())

    def add(self, loss: float, norm: float) -> None:
        """Count a step."""
        self._sums["loss"] += loss
        self._sums["norm"] += norm
        self._sums["count"] += 1

    def write(self, step: int, lr: float, validation: float | None) -> dict[str, float]:
        """Append a row for the steps counted since the last one; returns its numbers by column."""
        count = max(self._sums["count"], 1)
        values = [
            step, round(self.seconds, 3), self._sums["loss"] / count, self._sums["norm"] / count,
            lr, "" if validation is None else validation,
        ]  # fmt: skip
        # One write of one line: a kill leaves at worst a part of the last row, which `cut` drops.
        with open(self.path, "a") as file:
            file.write(",".join(map(str, values)) + "\n")
        self._sums = dict(_NOTHING)
        return {n: v for n, v in zip(COLUMNS, values, strict=True) if v != "" and n != "step"}  # type: ignore[misc]

    def pending(self) -> dict[str, float]:
        """The sums since the last row and the seconds so far, for a checkpoint."""
        return {**self._sums, "seconds": self.seconds}

    def restore(self, pending: dict[str, float]) -> None:
        """Go on from what `pending` returned."""
        self._sums = {name: type(start)(pending[name]) for name, start in _NOTHING.items()}
        self._start = time.perf_counter() - float(pending["seconds"])


def read_rows(path: PathLike) -> list[dict[str, Any]]:
    """The whole rows of a log, `step` as int, the rest as float or None; a broken row is left out.

    A file that does not exist, or is no such log, has no rows.
    """
    target = Path(path)
    if not target.is_file():
        return []
    lines = target.read_text(errors="replace").split("\n")
    if lines[0] != ",".join(COLUMNS):
        return []
    rows = []
    # What follows the last line break is empty, or a row that was not written to its end.
    for line in lines[1:-1]:
        cells = line.split(",")
        try:
            step, *numbers = int(cells[0]), *(float(c) if c else None for c in cells[1:])
        except ValueError:
            continue
        if len(cells) == len(COLUMNS):
            rows.append(dict(zip(COLUMNS, (step, *numbers), strict=True)))
    return rows
