"""Commands side by side, each with a limit and a log; outcomes are written as they come."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

PASSED, FAILED, ENDLESS, LEFT_OUT, SILENT = (
    "passed", "failed", "did not end", "left out", "says nothing",
)  # fmt: skip
# The exit code that a sanitizer is told to end with where it has found something.
FOUND = 9


@dataclass(frozen=True)
class Job:
    """A command, and the seconds that it may take.

    kind, backend, name: what it is in the outcomes. sanitized: run by a sanitizer, which alone
    says by the code `FOUND` that something is wrong.
    """

    kind: str
    backend: str
    name: str
    command: Sequence[str]
    limit: float
    sanitized: bool = False


def run_jobs(
    jobs: Sequence[Job], folder: Path, workers: int, seconds: float, environment: Mapping[str, str]
) -> bool:
    """Whether all jobs passed or were left out; `folder` gets logs and `outcomes.jsonl`.

    seconds: for all jobs together. What is running then is ended, what has not begun is left out.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    deadline, good = time.monotonic() + seconds, True
    with (folder / "outcomes.jsonl").open("w") as file, ThreadPoolExecutor(workers) as pool:
        running = [pool.submit(_run, job, folder, deadline, environment) for job in jobs]
        for future in as_completed(running):
            outcome = future.result()
            good = good and outcome["outcome"] in (PASSED, LEFT_OUT, SILENT)
            file.write(json.dumps(outcome) + "\n")
            file.flush()
            print(
                "{kind} {backend} {name}: {outcome}, {seconds:.1f} s  {says}".format(**outcome),
                flush=True,
            )
    return good


def _run(job: Job, folder: Path, deadline: float, environment: Mapping[str, str]) -> dict:  # type: ignore[type-arg]
    """One job's outcome; whatever happens to it, there is one."""
    start = time.monotonic()
    log = folder / f"{job.kind}.{job.backend}.{job.name}.log".replace("/", "-")
    limit = min(job.limit, deadline - start)
    outcome, says = LEFT_OUT, "no time was left"
    if limit > 0:
        try:
            outcome, says = _outcome(job, log, limit, environment)
        except OSError as error:
            outcome, says = FAILED, str(error)
    return {
        "kind": job.kind, "backend": job.backend, "name": job.name, "outcome": outcome,
        "seconds": round(time.monotonic() - start, 2), "says": says,
    }  # fmt: skip


def _outcome(job: Job, log: Path, limit: float, environment: Mapping[str, str]) -> tuple[str, str]:
    with log.open("w") as file:
        # A process group of its own, so that all that the command has started ends with it.
        process = subprocess.Popen(
            job.command, env=dict(environment), stdout=file, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return SILENT if job.sanitized else ENDLESS, f"ended after {limit:.0f} s"
    lines = log.read_text(errors="replace").strip().splitlines() or ["(it said nothing)"]
    if code == 0:
        return PASSED, lines[-1][:200]
    if job.sanitized and code != FOUND:
        return SILENT, f"exit code {code}: {lines[-1][:200]}"
    return FAILED, f"exit code {code}: {lines[-1][:200]}"
