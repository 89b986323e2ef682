"""Results of a study, kept as they are made: a study that was killed goes on where it was.

A study is a list of jobs, in phases. The rows of a job are one file of the study's folder, written
whole or not at all; a job whose file is there is not run again. The table of the study is made of
these files in the order of the jobs, so it is the same however often the study was killed, and
whatever the number of workers.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import multiprocessing
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cldfast.files import PathLike, read_json, remove_stale, write_atomic, write_json
from cldfast.info import versions

SETTINGS = "study.json"
RESULTS = "results"

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Job:
    """A piece of a study: `work(*args)`, a function of a module, returns its rows.

    name: of its file. Workers are processes of their own, so work and args must be plain.
    """

    name: str
    work: Callable[..., Sequence[Row]]
    args: tuple[Any, ...] = ()


def open_study(folder: PathLike, settings: Mapping[str, Any]) -> Path:
    """The folder of a study, made where it does not exist.

    settings: what decides the results, as plain values. Raises ValueError where the folder holds a
    study with others.
    """
    path = Path(folder)
    (path / RESULTS).mkdir(parents=True, exist_ok=True)
    remove_stale(path / RESULTS)
    described = json.loads(json.dumps(dict(settings)))
    file = path / SETTINGS
    if not file.exists():
        write_json(file, described)
        return path
    found = read_json(file)
    for name in sorted(described.keys() | found.keys()):
        if described.get(name) != found.get(name):
            raise ValueError(
                f"{path} holds a study with {name} = {found.get(name)!r}, not "
                f"{described.get(name)!r}: choose another folder, or give the same {name}"
            )
    return path


def run_jobs(folder: Path, jobs: Sequence[Job], workers: int = 1, quiet: bool = False) -> list[Row]:
    """The rows of all jobs, in the order of the jobs; those in the folder are not made again.

    workers: processes that share the jobs, each with an equal part of the threads of PyTorch.
    A line on stderr for each job done, with the time that the rest will take.

    Raises ValueError for `workers < 1`, and what a job raises, after which the others stay kept.
    """
    if workers < 1:
        raise ValueError(f"workers: expected at least 1, got {workers}")
    missing = [job for job in jobs if not _file(folder, job).exists()]
    say = _Progress(len(jobs), len(missing), quiet)
    if workers == 1 or len(missing) < 2:
        for job in missing:
            _make(folder, job)
            say.done(job)
    else:
        threads = max(1, torch.get_num_threads() // workers)
        # A fork would copy the thread pools of PyTorch without their threads.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, context, torch.set_num_threads, (threads,)) as pool:
            made = {pool.submit(_make, folder, job): job for job in missing}
            try:
                for future in as_completed(made):
                    future.result()
                    say.done(made[future])
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    return [row for job in jobs for row in read_json(_file(folder, job))["rows"]]


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """The options of `run_jobs`, for a study that is made of jobs."""
    parser.add_argument("--workers", type=int, default=1, help="processes (%(default)s)")
    parser.add_argument("--quiet", action="store_true", help="print no progress")


def environment(device: str = "cpu") -> dict[str, str]:
    """The columns of a table that say what made a row."""
    used = versions()
    return {"device": device, "torch": str(used["torch"]), "cldfast": str(used["cldfast"])}


def write_table(path: PathLike, rows: Sequence[Row]) -> None:
    """Write rows of the same columns as CSV, atomically; numbers to six digits."""
    text = io.StringIO()
    table = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    table.writeheader()
    for row in rows:
        table.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
    write_atomic(path, text.getvalue().encode())


def _file(folder: Path, job: Job) -> Path:
    return folder / RESULTS / f"{job.name}.json"


def _make(folder: Path, job: Job) -> None:
    write_json(_file(folder, job), {"rows": [dict(row) for row in job.work(*job.args)]})


class _Progress:
    """Lines that say how far a study is, and when it will be done."""

    def __init__(self, jobs: int, missing: int, quiet: bool) -> None:
        self.jobs, self.missing, self.quiet = jobs, missing, quiet
        self.finished, self.start = 0, time.monotonic()

    def done(self, job: Job) -> None:
        self.finished += 1
        passed = time.monotonic() - self.start
        left = passed / self.finished * (self.missing - self.finished)
        number = self.jobs - self.missing + self.finished
        if not self.quiet:
            print(
                f"{number}/{self.jobs} {job.name}: {passed:.0f} s, about {left:.0f} s left",
                file=sys.stderr, flush=True,
            )  # fmt: skip
