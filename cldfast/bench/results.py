"""Rows of results, and the CSV file that holds them with all that is needed to read them."""

from __future__ import annotations

import csv
import datetime
import io
import math
import os
import platform
from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

from cldfast.bench.contestants import best_level
from cldfast.bench.timing import Timing
from cldfast.files import write_atomic
from cldfast.info import versions

STAGE, SAMPLING, STEADY = "stage", "sampling", "steady"


@dataclass(frozen=True, slots=True)
class Row:
    """One measurement; None (an empty cell) where a column does not apply.

    section: "stage", a call; "sampling", a whole run; "steady", memory after a run's first step.
    case, shape: size, shape as "4096x3x32x32". quick: a quick run, whose sizes differ.
    operation, contestant, level: what ran, level being the SIMD level of the compiled core.
    rounds, calls: samples, and calls per sample. seconds, seconds_q1, seconds_q3: per call, median
    and quartiles. ns_per_pair: of the median. gb_per_s: each input read once, each output written
    once, over the median. copy_share: gb_per_s over that of `copy_` in the same run.
    allocated_bytes, resident_bytes: see `cldfast.bench.memory`. network_seconds,
    integrator_seconds: of a whole run. evaluations: network calls of a run.
    """

    section: str
    case: str
    shape: str
    pairs: int
    quick: bool
    operation: str
    contestant: str
    level: str
    threads: int
    rounds: int
    calls: int
    seconds: float
    seconds_q1: float | None = None
    seconds_q3: float | None = None
    ns_per_pair: float | None = None
    gb_per_s: float | None = None
    copy_share: float | None = None
    allocated_bytes: int | None = None
    resident_bytes: int | None = None
    network_seconds: float | None = None
    integrator_seconds: float | None = None
    evaluations: int | None = None


def measured_row(
    section: str, case: str, shape: Sequence[int], timing: Timing, **columns: Any
) -> Row:
    """The row of a contestant's times on data of a shape; `columns` are the others, by name."""
    pairs, seconds = math.prod(shape), timing.median
    low, high = timing.quartiles() if len(timing.samples) > 1 else (None, None)
    columns = {"ns_per_pair": seconds * 1e9 / pairs} | columns
    return Row(
        section, case, "x".join(map(str, shape)), pairs, threads=timing.threads,
        rounds=len(timing.samples), calls=timing.calls, seconds=seconds, seconds_q1=low,
        seconds_q3=high, **columns,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Environment:
    """Where and with what a run was made; the same in every line of a file.

    simd: the level that the core takes by itself, or "none".
    """

    date: str
    device: str
    cores: int
    simd: str
    python: str
    torch: str
    numpy: str
    cldfast: str


# Each column's type, as its dataclass says it, and how a cell of that type is read.
_TYPES = {f.name: str(f.type) for of in (Environment, Row) for f in fields(of)}
_READERS: dict[str, Callable[[str], object]] = {
    "str": str, "int": int, "float": float, "bool": lambda text: bool(int(text))
}  # fmt: skip
COLUMNS = tuple(_TYPES)
_DIGITS = 5


def environment() -> Environment:
    """This machine and these versions."""
    found, own = versions(), getattr(os, "sched_getaffinity", None)
    return Environment(
        date=datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        device=processor(),
        cores=len(own(0)) if own else os.cpu_count() or 1,
        simd=best_level() or "none",
        **{name: str(found[name]) for name in ("python", "torch", "numpy", "cldfast")},
    )


def processor() -> str:
    """The processor's name, as far as the system tells."""
    try:
        with open("/proc/cpuinfo") as file:
            pairs = [line.split(":", 1) for line in file if ":" in line]
    except OSError:
        return platform.processor() or platform.machine()
    values = {key.strip(): value.strip() for key, value in pairs}
    name = values.get("model name", platform.machine())
    # Virtual machines shorten the name; family and model say which generation it is.
    if {"cpu family", "model"} <= values.keys():
        name += f" (family {values['cpu family']} model {values['model']})"
    return name


def write_csv(path: Path, where: Environment, rows: Iterable[Row]) -> None:
    """All rows, each with the environment in front."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    front = astuple(where)
    writer.writerows(map(_cell, (*front, *astuple(row))) for row in rows)
    write_atomic(path, buffer.getvalue().encode())


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(int(value))
    return f"{value:.{_DIGITS}g}" if isinstance(value, float) else str(value)


def read_csv(path: Path) -> tuple[Environment, list[Row]]:
    """What `write_csv` wrote. Raises ValueError for a file of another form."""
    with open(path, newline="", encoding="utf-8") as file:
        header, *lines = list(csv.reader(file)) or [[]]
    if tuple(header) != COLUMNS or any(len(line) != len(COLUMNS) for line in lines):
        raise ValueError(f"{path}: expected the columns {', '.join(COLUMNS)}")
    if not lines:
        raise ValueError(f"{path}: expected at least one row")
    cells = [[_value(path, *cell) for cell in zip(COLUMNS, line, strict=True)] for line in lines]
    front = len(fields(Environment))
    return Environment(*cells[0][:front]), [Row(*row[front:]) for row in cells]


def _value(path: Path, key: str, text: str) -> Any:
    kind, _, optional = _TYPES[key].partition(" | ")
    if optional and not text:
        return None
    try:
        return _READERS[kind](text)
    except ValueError as error:
        raise ValueError(f"{path}: {key} must be a number, got {text!r}") from error
