"""Rows of results, and the CSV file that holds them with all that is needed to read them."""

from __future__ import annotations

import csv
import datetime
import io
import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from importlib import metadata
from pathlib import Path

import torch

import cldfast
from cldfast.bench.contestants import best_level

STAGE, SAMPLING, STEADY = "stage", "sampling", "steady"
SECTIONS = (STAGE, SAMPLING, STEADY)


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


_ENVIRONMENT = tuple(f.name for f in fields(Environment))
_ROW = tuple(f.name for f in fields(Row))
COLUMNS = _ENVIRONMENT + _ROW
_INTEGERS = {
    "cores", "pairs", "threads", "rounds", "calls", "allocated_bytes", "resident_bytes",
    "evaluations",
}  # fmt: skip
_FLOATS = {
    "seconds", "seconds_q1", "seconds_q3", "ns_per_pair", "gb_per_s", "copy_share",
    "network_seconds", "integrator_seconds",
}  # fmt: skip
_DIGITS = 5


def environment() -> Environment:
    """This machine and these versions."""
    return Environment(
        date=datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        device=_processor(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else _cores(),
        simd=best_level() or "none",
        python=platform.python_version(),
        torch=torch.__version__,
        numpy=metadata.version("numpy"),
        cldfast=cldfast.__version__,
    )


def _cores() -> int:
    return os.cpu_count() or 1


def _processor() -> str:
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


def shape_text(shape: Sequence[int]) -> str:
    """A shape as "4096x3x32x32"."""
    return "x".join(str(size) for size in shape)


def write_atomically(path: Path, text: str) -> None:
    """Write beside the target, then rename: no reader sees half a file."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        beside.write_text(text, encoding="utf-8")
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def write_csv(path: Path, where: Environment, rows: Iterable[Row]) -> None:
    """All rows, each with the environment in front."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
    writer.writeheader()
    front = asdict(where)
    for row in rows:
        cells = front | asdict(row)
        writer.writerow({key: _cell(value) for key, value in cells.items()})
    write_atomically(path, buffer.getvalue())


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(int(value))
    return f"{value:.{_DIGITS}g}" if isinstance(value, float) else str(value)


def read_csv(path: Path) -> tuple[Environment, list[Row]]:
    """What `write_csv` wrote. Raises ValueError for a file of another form."""
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise ValueError(f"{path}: expected the columns {', '.join(COLUMNS)}")
        lines = list(reader)
    if not lines:
        raise ValueError(f"{path}: expected at least one row")
    parsed = [{key: _value(path, key, text) for key, text in line.items()} for line in lines]
    where = Environment(**{key: parsed[0][key] for key in _ENVIRONMENT})  # type: ignore[arg-type]
    return where, [Row(**{key: cells[key] for key in _ROW}) for cells in parsed]  # type: ignore[arg-type]


def _value(path: Path, key: str, text: str) -> object:
    try:
        if key == "quick":
            return bool(int(text))
        if key in _INTEGERS:
            return int(text) if text else None
        if key in _FLOATS:
            return float(text) if text else None
    except ValueError as error:
        raise ValueError(f"{path}: {key} must be a number, got {text!r}") from error
    return text
