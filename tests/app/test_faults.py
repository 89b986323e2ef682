"""Two writers of a folder, kills, clocks that run back, and files of strangers changed at random."""

from __future__ import annotations

import gc
import importlib
import os
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path

import pytest
import torch

import cldfast
from cldfast.app.cli import main
from cldfast.app.new_run import run_config
from cldfast.app.runs import train_run
from cldfast.files import locked, write_atomic

_HOLDER = """
import sys, time
from cldfast.files.lock import locked
with locked(sys.argv[1]):
    print("locked", flush=True)
    time.sleep(60)
"""


def small_run(folder: Path, **options: object) -> None:
    sizes = {"steps": 4, "width": 8, "depth": 1, "rows": 64, "batch_size": 8}
    train_run(folder, run_config({"data": "two_points", **sizes, **options}))


@pytest.mark.skipif(os.name != "posix", reason="only POSIX systems have these locks")
def test_a_folder_has_one_writer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Another process is named and waited for; a dead one's lock is taken over and removed."""
    other = subprocess.Popen(
        [sys.executable, "-c", _HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout is not None and other.stdout.readline() == "locked\n"
        with pytest.raises(ValueError, match=f"process {other.pid} on "), locked(tmp_path):
            pass
        train = ["train", "two_points", "--steps", "2", "--quiet", "--out", str(tmp_path)]
        assert main(train) == 2
        assert f"process {other.pid}" in capsys.readouterr().err
    finally:
        os.kill(other.pid, signal.SIGKILL)
        other.wait()
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    small_run(tmp_path)
    assert not (tmp_path / ".lock").exists()
    with locked(tmp_path), locked(tmp_path):  # of one thread
        pass


def test_what_a_killed_writer_has_left_is_removed_by_the_next(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    leftover, alive = (tmp_path / f".x.npz.{n}.tmp" for n in (dead.pid, os.getppid()))
    for path in (leftover, alive, tmp_path / ".x.npz.notes.tmp"):
        path.write_bytes(b"")
    write_atomic(tmp_path / "x.npz", b"whole")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        [alive.name, ".x.npz.notes.tmp", "x.npz"]
    )


def test_a_clock_that_runs_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_run(tmp_path / "forth")
    start = time.time()
    monkeypatch.setattr(time, "time", lambda: start - 3600.0 * time.perf_counter())
    small_run(tmp_path / "back")
    models = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("forth", "back")]
    assert models[0] == models[1]


def test_a_network_without_memory_leaves_none_of_the_run_allocated() -> None:
    states: list[weakref.ref[torch.Tensor]] = []

    def net(u: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        states.append(weakref.ref(u))
        if len(states) == 3:
            raise MemoryError
        return 0.1 * u[:, 2:]

    with pytest.raises(MemoryError):
        cldfast.sample(net, cldfast.CLD(), (8, 2), solver="multistep", steps=5)
    gc.collect()
    assert len(states) == 3 and not any(state() is not None for state in states)


def test_numbers_beyond_a_machine_are_refused_in_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """2^53 bytes are more than a process can address, 2^59 numbers more than memory can hold."""
    small_run(tmp_path)
    for options, words in (
        (["-n", str(2**50)], f"not enough memory for {2**53} bytes"),
        (["-n", str(2**59)], "fewer than 2^59 numbers"),
        (["--steps", "1000000000"], "steps must be at most 262144, got 1000000000"),
        (["--threads", "1000000"], "--threads: expected 1 to 1024"),
    ):
        assert main(["sample", str(tmp_path), "--no-picture", *options]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("cldfast: error: ") and words in line


@pytest.mark.parametrize("target", ["config", "plan", "header", "arguments"])
def test_fuzzing(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The corpus and a few random inputs; `make fuzz` tries a million."""
    # Last, so that an installed package is not hidden by the one beside the harnesses.
    monkeypatch.setattr(sys, "path", [*sys.path, str(Path(__file__).parents[2])])
    by_chance = importlib.import_module("fuzz.__main__").by_chance
    assert by_chance(target, 300, 0) == 300
