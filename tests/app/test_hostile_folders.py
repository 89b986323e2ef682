"""What a stranger's folder asks for is refused: in one line, at once, and before memory is taken."""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path

import hostile_folders
import pytest

pytest.importorskip("safetensors")

SECONDS, MEBIBYTES = 2.0, 500


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile") / "run"
    hostile_folders.write_folder(folder)
    return folder


def resident(name: str) -> float:
    """MiB of this process: its "VmRSS" now, or "VmHWM", the most since the last reset."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith(name))


def test_the_folder_itself_is_read(whole: Path, tmp_path: Path) -> None:
    for command in ("sample", "resume"):
        folder = shutil.copytree(whole, tmp_path / command)
        assert hostile_folders.refused(folder, command) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="memory is measured in /proc")
@pytest.mark.parametrize("name", hostile_folders.CASES)
def test_hostile_folders(
    whole: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command, change = hostile_folders.CASES[name]
    folder = shutil.copytree(whole, tmp_path / "run")
    change(folder)
    capsys.readouterr()
    Path("/proc/self/clear_refs").write_text("5")  # resets the most memory so far
    before, start = resident("VmRSS"), time.process_time()
    code = hostile_folders.refused(folder, command)
    # Of this process alone: others may run beside it.
    seconds, mebibytes = time.process_time() - start, resident("VmHWM") - before
    lines = capsys.readouterr().err.splitlines()
    assert code == 2 and len(lines) == 1 and lines[0].isprintable(), lines
    assert seconds < SECONDS and mebibytes < MEBIBYTES
    assert len(lines[0]) < 1_000


def test_there_are_many_cases() -> None:
    assert len(hostile_folders.CASES) >= 40
