"""What the scripts of this folder share: their options, and the tables that they write."""

from __future__ import annotations

import argparse
import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

RESULTS = Path(__file__).resolve().parent / "results"


def new_parser(doc: str | None, out: Path = RESULTS) -> argparse.ArgumentParser:
    """The options of a script, described by the first line of its docstring; `--out` is one."""
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=out, help="where to write (%(default)s)")
    return parser


def write_csv(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write rows of the same columns, numbers with a point to five digits; the folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({k: f"{v:.5g}" if isinstance(v, float) else v for k, v in row.items()})
