"""Faults on purpose: kills, full disks and folders that cannot be written: `make faults`.

    python tools/faults.py [--kills 100] [--only kills-training ...]

Prints a table of what was tried and what came through: after each fault the run is gone on with,
and its files must be those of a run that nothing happened to, bit for bit, with no other file
beside them. Disks need root on Linux; without it their rows are left out.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch

from cldfast.app.cli import main as cli
from cldfast.app.new_run import run_config
from cldfast.app.runs import train_run

STEPS = 30


def train(folder: Path) -> int:
    """Go on with a small training that writes a checkpoint in every step."""
    options = {"width": 16, "depth": 1, "rows": 256, "batch_size": 16, "checkpoint_every": 1}
    config = run_config({"data": "gaussians25", "steps": STEPS, **options})
    train_run(folder, config, resume=True)
    return 0


def sample(folder: Path) -> int:
    """Draw samples of the run beside a folder into it."""
    folder.mkdir(exist_ok=True)
    run, out = folder.parent / "whole", folder / "samples.npz"
    drawn = ["sample", str(run), "-n", "20000", "--steps", "10", "--batch-size", "500"]
    with contextlib.redirect_stdout(io.StringIO()):
        return cli([*drawn, "--out", str(out), "--no-picture"])


def sample_shards(folder: Path) -> int:
    """Draw samples of the run beside a folder into shards in it, of which a killed one has some."""
    drawn = ["sample", str(folder.parent / "whole"), "-n", "5000", "--steps", "4", "--quiet"]
    with contextlib.redirect_stdout(io.StringIO()):
        return cli([*drawn, "--shard-rows", "250", "--out", str(folder)])


def files(folder: Path) -> dict[str, bytes]:
    """The bytes of all files, of train.csv without the column of seconds."""
    found: dict[str, bytes] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            continue
        data = path.read_bytes()
        if path.name == "train.csv":
            rows = [line.split(b",") for line in data.splitlines()]
            data = b"\n".join(b",".join(row[:1] + row[2:]) for row in rows)
        # Seconds are in their metadata.
        found[path.name] = b"" if path.name in ("metrics.json", "checkpoint.safetensors") else data
    return found


def child(work: Callable[[], int]) -> int:
    """Run in a fork of this process, which has all modules already; returns its number."""
    number = os.fork()
    if number:
        return number
    code = 1
    try:
        code = work()
    except BaseException as error:  # whatever it is, the parent shall hear of it
        print(f"  {type(error).__name__}: {error}", file=sys.stderr)
    finally:
        os._exit(code)


def exit_code(number: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])


def kills(work: Callable[[Path], int], parent: Path, wanted: int) -> tuple[int, int]:
    """Kill the work again and again, at any moment; tried, and survived with the same files."""
    start = time.perf_counter()
    assert exit_code(child(partial(work, parent / "reference"))) == 0
    seconds = time.perf_counter() - start
    reference, draw = files(parent / "reference"), random.Random(0)
    tried = survived = 0
    while tried < wanted:
        folder, here, done = parent / "killed", 0, False
        while not done:
            number = child(partial(work, folder))
            if tried + here < wanted:
                time.sleep(draw.uniform(0.0, seconds / 3))
                with contextlib.suppress(ProcessLookupError):
                    os.kill(number, signal.SIGKILL)
            code = exit_code(number)
            here += code == -signal.SIGKILL
            done = code != -signal.SIGKILL
        same = code == 0 and files(folder) == reference
        tried, survived = tried + here, survived + (here if same else 0)
        shutil.rmtree(folder)
    return tried, survived


def one_line(arguments: list[str]) -> bool:
    """Whether the command line refuses with code 2 and one line."""
    error = io.StringIO()
    with contextlib.redirect_stderr(error), contextlib.redirect_stdout(io.StringIO()):
        code = cli(arguments)
    return code == 2 and len(error.getvalue().splitlines()) == 1


@contextlib.contextmanager
def mounted(folder: Path, *options: str) -> Iterator[None]:
    subprocess.run(["mount", *options, str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def full_disks(parent: Path, sizes: int = 10) -> tuple[int, int]:
    """Training on a disk that is full sooner or later, then has room again."""
    train(parent / "reference")
    reference = files(parent / "reference")
    disk, survived = parent / "disk", 0
    disk.mkdir()
    for index in range(sizes):
        with mounted(disk, "-t", "tmpfs", "-o", f"size={32 + 16 * index}k", "none"):
            try:
                train(disk / "run")
                full = False
            except OSError as error:
                full = "space" in str(error)
            subprocess.run(["mount", "-o", "remount,size=8m", str(disk)], check=True)
            train(disk / "run")
            # The smallest of these disks hold no run, the largest do.
            survived += (full or index > sizes // 2) and files(disk / "run") == reference
    return sizes, survived


def read_only(parent: Path) -> tuple[int, int]:
    """Commands on a folder that cannot be written: refused in a line, or done elsewhere."""
    run, seen = parent / "whole", parent / "seen"
    before = files(run)
    seen.mkdir()
    with mounted(seen, "--bind", str(run)):
        subprocess.run(["mount", "-o", "remount,ro,bind", str(seen)], check=True)
        draw = ["sample", str(seen), "-n", "4", "--no-picture"]
        came_through = [
            one_line(["train", "--resume", "--out", str(seen), "--steps", "99", "--quiet"]),
            one_line(["train", "funnel", "--out", str(seen / "new"), "--quiet"]),
            one_line(["fit", str(seen), "--evaluations", "3", "--steps", "1", "--quiet"]),
            one_line(draw),
            cli([*draw, "--out", str(parent / "elsewhere.npz")]) == 0,
        ]
    return len(came_through), sum(came_through) if files(run) == before else 0


def two_writers(parent: Path, times: int = 5) -> tuple[int, int]:
    """A second training in a folder where one goes on, and a third after the first was killed."""
    survived = 0
    for _ in range(times):
        folder = parent / "shared"
        first = child(partial(train, folder))
        while not (folder / "checkpoint.safetensors").exists():
            time.sleep(0.001)
        refused = one_line(["train", "--resume", "--out", str(folder), "--quiet"])
        os.kill(first, signal.SIGKILL)
        killed = exit_code(first) == -signal.SIGKILL
        survived += (
            (refused or not killed) and train(folder) == 0 and not (folder / ".lock").exists()
        )
        shutil.rmtree(folder)
    return times, survived


def clock(parent: Path) -> tuple[int, int]:
    """Training while the clock of the wall runs back an hour every time it is looked at."""
    train(parent / "reference")
    now, hours = time.time, [0]

    def back() -> float:
        hours[0] += 1
        return now() - 3600.0 * hours[0]

    time.time = back
    try:
        train(parent / "back")
    finally:
        time.time = now
    return 1, int(files(parent / "back") == files(parent / "reference"))


def main() -> int:
    kind = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=kind)
    parser.add_argument("--kills", type=int, default=100, help="of each kind (100)")
    parser.add_argument("--only", nargs="+", help="these rows alone")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows: dict[str, Callable[[Path], tuple[int, int]]] = {
        "kills-training": lambda folder: kills(train, folder, args.kills),
        "kills-sampling": lambda folder: kills(sample, folder, args.kills),
        "kills-shards": lambda folder: kills(sample_shards, folder, args.kills),
        "two-writers": two_writers,
        "clock": clock,
    }
    if sys.platform == "linux" and os.geteuid() == 0:
        rows |= {"full-disk": full_disks, "read-only": read_only}
    lost = 0
    print(f"{'fault':<16}{'tried':>7}{'survived':>10}{'seconds':>9}")
    for name, row in rows.items():
        if args.only and name not in args.only:
            continue
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            if name in ("kills-sampling", "kills-shards", "read-only"):
                train(Path(folder) / "whole")
            tried, survived = row(Path(folder))
            seconds = time.perf_counter() - start
        print(f"{name:<16}{tried:>7}{survived:>10}{seconds:>9.0f}", flush=True)
        lost += tried - survived
    return int(lost > 0)


if __name__ == "__main__":
    sys.exit(main())
