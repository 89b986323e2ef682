"""`make gpu-bench`: the operations and whole sampling on a GPU, to results/<device>.csv and .png.

Device events, medians, and as many sets of inputs in turn as the cache cannot hold. A bandwidth
counts each input read once and each output written once, and stands beside that of a copy in the
same run. Each row is written as it is measured; a contestant that fails has a row that says so, and
where it takes the process or the device with it, another process goes on behind it.
"""

from __future__ import annotations

import csv
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import gpu_contests
import gpu_setup
from gpu_contests import DEVICE, Contest
from output import RESULTS

# Seconds: of all compilations before, of all measurements, and of one.
_WARM, _ALL, _ONE = 60, 140, 60
_BEGUN = gpu_setup.BUILD / "gpu_bench_begun.txt"


@dataclass(frozen=True)
class Row:
    """One measurement.

    seconds: median of `rounds`; none where it failed, `error` says how. share: of the copy's
    bandwidth. speedup: see `gpu_contests.Contest`. note: what is asked of it.
    """

    case: str
    contestant: str
    pairs: int
    rounds: int
    seconds: float | None = None
    gb_per_s: float | None = None
    share: float | None = None
    speedup: float | None = None
    note: str = ""
    error: str = ""


class Results:
    """A file of rows, each written when it is added. again: keep those of an earlier process."""

    def __init__(self, path: Path, about: dict[str, object], again: bool) -> None:
        self.path, self.about, self.rows = path, about, []
        names = [*(field.name for field in fields(Row)), *about]
        path.parent.mkdir(parents=True, exist_ok=True)
        if again and path.exists():
            self.rows = read(path)
        else:
            path.write_text(",".join(names) + "\n")
        self.file = path.open("a", newline="", encoding="utf-8")
        self.writer = csv.DictWriter(self.file, names, lineterminator="\n")

    def has(self, contest: Contest) -> bool:
        return self._find(contest.case, contest.contestant, contest.pairs) is not None

    def seconds(self, contest: Contest, contestant: str) -> float | None:
        row = self._find(contest.case, contestant, contest.pairs)
        return None if row is None else row.seconds

    def _find(self, case: str, contestant: str, pairs: int) -> Row | None:
        wanted = (case, contestant, pairs)
        return next((r for r in self.rows if (r.case, r.contestant, r.pairs) == wanted), None)

    def add(self, row: Row) -> None:
        self.rows.append(row)
        values = asdict(row) | self.about
        self.writer.writerow(
            {k: f"{v:.5g}" if isinstance(v, float) else v for k, v in values.items()}
        )
        self.file.flush()
        print(said(row), flush=True)


def read(path: Path) -> list[Row]:
    """The rows of a file, with what they were measured on left out."""
    kinds = {"pairs": int, "rounds": int}
    kinds |= dict.fromkeys(("case", "contestant", "note", "error"), str)
    with path.open(newline="", encoding="utf-8") as file:
        return [
            Row(**{
                field.name: kinds.get(field.name, float)(line[field.name])
                for field in fields(Row)
                if line[field.name] != ""
            })
            for line in csv.DictReader(file)
        ]  # fmt: skip


def said(row: Row) -> str:
    """A row as a line."""
    share = "" if row.share is None else f"{row.gb_per_s:7.0f} GB/s {row.share:5.2f} of a copy"
    ratio = "" if row.speedup is None else f"{row.speedup:7.2f} x"
    times = "   failed" if row.seconds is None else f"{row.seconds * 1e3:9.3f} ms"
    return f"{row.case:34} {row.contestant:28} {times} {share} {ratio} {row.note} {row.error}"


def timed(calls: Sequence[Callable[[], object]], rounds: int) -> float:
    """Median seconds by device events; each call has inputs of its own, and they take turns."""
    import torch

    for call in [*calls, *calls]:
        call()
    torch.cuda.synchronize()
    events = []
    for i in range(rounds):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        calls[i % len(calls)]()
        end.record()
        events.append((begin, end))
    torch.cuda.synchronize()
    return statistics.median(begin.elapsed_time(end) for begin, end in events) / 1e3


def measured(contest: Contest, results: Results) -> Row:
    """The row of a contest, whatever becomes of it."""
    try:
        seconds = timed(contest.make(), contest.rounds)
    except Exception as error:
        return failed(contest, f"{type(error).__name__}: {error}".splitlines()[0][:200])
    rate = share = speedup = None
    if contest.bytes_of_pair:
        rate = contest.bytes_of_pair * contest.pairs / seconds / 1e9
        stage = Contest("stage", "copy", contest.pairs, 0, contest.make)
        copied = seconds if contest.contestant == "copy" else results.seconds(stage, "copy")
        if copied is not None:
            share = rate * 1e9 * copied / (2 * gpu_contests.COPY_BYTES * contest.pairs)
    own = contest.rival == contest.contestant
    rival = seconds if own else results.seconds(contest, contest.rival)
    if rival is not None:
        speedup = seconds / rival if contest.bytes_of_pair else rival / seconds
    asked = (contest.case, contest.contestant, contest.pairs, contest.rounds)
    return Row(*asked, seconds, rate, share, speedup, contest.note)


def failed(contest: Contest, error: str) -> Row:
    asked = (contest.case, contest.contestant, contest.pairs, contest.rounds)
    return Row(*asked, note=contest.note, error=error)


def named(contest: Contest) -> str:
    return f"{contest.case}; {contest.contestant}; {contest.pairs}"


def plot(rows: Sequence[Row], path: Path, device: str) -> None:
    """Shares of the copy's bandwidth, and speed-ups of whole runs."""
    from cldfast.lab import plots

    left = [row for row in rows if row.share is not None and row.pairs == gpu_contests.PAIRS[-1]]
    right = [row for row in rows if row.share is None and row.speedup is not None]
    try:
        figure = plots.new_figure(13, 0.45 * max(len(left), len(right)) + 1.5)
    except ImportError as error:
        print(f"no plot: {error}")
        return
    axes = figure.subplots(1, 2)
    axes[0].barh([f"{r.case}: {r.contestant}" for r in left], [r.share for r in left])
    axes[0].axvline(0.85, color="black", linestyle=":")
    pairs = gpu_contests.PAIRS[-1] / 1e6
    axes[0].set_xlabel(f"share of the copy's bandwidth, {pairs:.0f} M pairs, float32")
    labels = [f"{r.case.split(',')[0]}: {r.contestant}" for r in right]
    axes[1].barh(labels, [r.speedup for r in right])
    axes[1].set_xlabel(f"times faster than the eager loop, {gpu_contests.STEPS} steps")
    for axis in axes:
        axis.invert_yaxis()
    figure.suptitle(device)
    plots.save(figure, path)


def measure(again: bool = False, groups: Sequence[str] = tuple(gpu_contests.GROUPS)) -> int:
    """All measurements, in this process; 3 where the device has failed and a new one must go on."""
    import torch

    import cldfast

    torch.set_default_device(DEVICE)
    device = torch.cuda.get_device_name()
    start = time.perf_counter()
    name = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
    about = {
        "device": device, "torch": torch.__version__, "cuda": torch.version.cuda,
        "triton": cldfast.info()["versions"]["triton"], "cldfast": cldfast.__version__,
    }  # fmt: skip
    results = Results(RESULTS / f"{name}.csv", about, again)
    _BEGUN.parent.mkdir(exist_ok=True)
    for group in groups:
        for contest in gpu_contests.GROUPS[group]():
            if results.has(contest):
                continue
            if again and _BEGUN.exists() and _BEGUN.read_text() == named(contest):
                results.add(failed(contest, "it ended the process that measured it"))
                continue
            _BEGUN.write_text(named(contest))
            results.add(measured(contest, results))
            try:
                torch.cuda.synchronize()
            except RuntimeError:
                return 3
        torch.cuda.empty_cache()
    plot(results.rows, RESULTS / f"{name}.png", device)
    seconds = time.perf_counter() - start
    print(f"{device}: {len(results.rows)} rows in {seconds:.0f} s, {results.path}")
    return 0


def warm(group: str) -> int:
    """One call of each contestant of a group, which leaves what it compiles in caches."""
    import torch

    torch.set_default_device(DEVICE)
    for contest in gpu_contests.GROUPS[group]():
        try:
            contest.make()[0]()
        except Exception as error:
            print(f"{named(contest)}: {error}")
    return 0


def begin(environment: dict[str, str], *options: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, str(Path(__file__).resolve()), *options], env=environment
    )


def wait(process: subprocess.Popen[bytes], until: float, progress: Callable[[], float]) -> int:
    """The exit code; -9 where it is ended: at a time, or `_ONE` seconds after its last progress."""
    begun = time.time()
    while process.poll() is None:
        now = time.time()
        if now > until or now - max(begun, progress()) > _ONE:
            process.kill()
        time.sleep(0.2)
    return int(process.returncode)


def main() -> int:
    """0 where everything was measured."""
    if sys.argv[1:2] == ["--measure"]:
        return measure(again="--again" in sys.argv)
    if sys.argv[1:2] == ["--warm"]:
        return warm(sys.argv[2])
    gpu_setup.require_gpu("make gpu-bench")
    environment = gpu_setup.build()
    until = time.time() + _WARM
    for process in [begin(environment, "--warm", group) for group in gpu_contests.GROUPS]:
        wait(process, until, time.time)
    _BEGUN.unlink(missing_ok=True)
    until, code, options = time.time() + _ALL, 1, ["--measure"]
    while code and time.time() < until:

        def progress() -> float:
            return _BEGUN.stat().st_mtime if _BEGUN.exists() else 0.0

        code = wait(begin(environment, *options), until, progress)
        options = ["--measure", "--again"]
    return int(code != 0)


if __name__ == "__main__":
    sys.exit(main())
