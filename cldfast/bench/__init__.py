"""The benchmark suite behind `python -m cldfast bench`: measure, write, check the targets.

One run measures everything that it compares, in interleaved rounds, and writes `<name>.csv`,
`<name>.png` and `<name>.md`. How to read them: `benchmarks/README.md`.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from cldfast.bench.cases import CASES, RUN_CASES, STEADY_CASE
from cldfast.bench.measure import measure_case, measure_run, measure_steady
from cldfast.bench.report import Results, summary
from cldfast.bench.results import Row, environment, read_csv, write_csv
from cldfast.bench.tables import bandwidth, markdown
from cldfast.bench.timing import threads_set
from cldfast.files import write_atomic

__all__ = ["ALL_CASES", "main", "measure"]

ALL_CASES = (*CASES, *RUN_CASES, STEADY_CASE)
DEFAULT_OUT = Path("benchmarks/results")


def measure(
    cases: Sequence[str] = ALL_CASES,
    threads: Sequence[int] = (1,),
    quick: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> list[Row]:
    """The rows of the named cases.

    cases: names of `ALL_CASES`. threads: ascending counts for the stages; whole runs use the last.
    quick: smaller sizes, fewer rounds, no `torch.compile`. say: called with a line for each case.

    Raises ValueError for an unknown case or a thread count below 1.
    """
    unknown = [name for name in cases if name not in ALL_CASES]
    if unknown or not cases:
        raise ValueError(
            f"unknown case {', '.join(map(repr, unknown)) or '(none given)'}; "
            f"expected some of {', '.join(ALL_CASES)}"
        )
    if not threads or min(threads) < 1:
        raise ValueError(f"threads must be at least 1, got {list(threads)}")
    rows: list[Row] = []
    for name in cases:
        start = time.perf_counter()
        with threads_set(threads[-1]):
            if name in CASES:
                found = measure_case(CASES[name], threads, quick=quick)
            elif name in RUN_CASES:
                found = measure_run(RUN_CASES[name], quick=quick)
            else:
                size = ((100_000, 2), 50) if quick else ((1_000_000, 2), 1000)
                found = [measure_steady(*size, quick=quick)]
        rows += found
        say(f"{name}: {len(found)} rows in {time.perf_counter() - start:.0f} s")
    return rows


def main(args: argparse.Namespace) -> int:
    """Run the suite as the command line asks.

    args: `quick`; `threads`, one count for everything (None: 1 and PyTorch's count); `out`, a .csv
    file or a directory (None: benchmarks/results); `cases`, names of `ALL_CASES` (None: all). In a
    directory the file is `cpu.csv`, or `cpu-quick.csv`, `cpu-part.csv` for a run that is not whole.

    Raises ValueError before anything is measured for a bad argument, and for an `out` whose parent
    directory does not exist.
    """
    cases = tuple(args.cases or ALL_CASES)
    threads = sorted({1, torch.get_num_threads()}) if args.threads is None else [args.threads]
    target = _target(args.out, args.quick, set(cases) != set(ALL_CASES))
    rows = measure(
        cases, threads, args.quick, lambda line: print(line, file=sys.stderr, flush=True)
    )
    where = environment()
    target.parent.mkdir(exist_ok=True)
    write_csv(target, where, rows)
    where, rows = read_csv(target)  # the table has the digits of the file
    table = markdown(where, rows)
    write_atomic(target.with_suffix(".md"), table.encode())
    written = [target, target.with_suffix(".md")]
    if any(name in CASES for name in cases):
        try:
            bandwidth(where, rows, target.with_suffix(".png"))
            written.append(target.with_suffix(".png"))
        except ImportError as error:
            print(f"no picture: {error}", file=sys.stderr)
    print(table)
    print(summary(Results(where, rows)))
    print("\nwritten: " + ", ".join(map(str, written)))
    return 0


def _target(out: object, quick: bool, part: bool) -> Path:
    path = DEFAULT_OUT if out is None else Path(str(out))
    if path.suffix != ".csv":
        path = path / f"cpu{'-quick' if quick else ''}{'-part' if part else ''}.csv"
    if path.is_dir():
        raise ValueError(f"out: {path} is a directory")
    if not path.parent.is_dir() and not path.parent.parent.is_dir():
        raise ValueError(f"out: the directory {path.parent.parent} does not exist")
    return path
