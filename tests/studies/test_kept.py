"""Studies go on where they were killed, and their tables do not tell."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cldfast.studies.kept import RESULTS, Job, open_study, run_jobs, write_table


def square(number: int, log: str) -> list[dict[str, float]]:
    with open(log, "a") as file:
        file.write(f"{number}\n")
    return [{"number": number, "square": number**2 / 3}]


def test_results_are_made_once_and_come_in_order(tmp_path: Path) -> None:
    log = tmp_path / "log"
    folder = open_study(tmp_path / "study", {"a": (1.0, 2.0)})
    jobs = [Job(f"job{n}", square, (n, str(log))) for n in (3, 1, 2)]
    run_jobs(folder, jobs[:1], quiet=True)
    rows = run_jobs(folder, jobs, workers=2, quiet=True)
    assert [row["number"] for row in rows] == [3, 1, 2]
    assert run_jobs(folder, jobs, quiet=True) == rows
    assert sorted(log.read_text().split()) == ["1", "2", "3"]
    write_table(folder / "table.csv", rows)
    assert (folder / "table.csv").read_text() == "number,square\n3,3\n1,0.333333\n2,1.33333\n"


def test_a_folder_of_another_study_is_refused(tmp_path: Path) -> None:
    open_study(tmp_path, {"steps": 10})
    open_study(tmp_path, {"steps": 10})
    with pytest.raises(ValueError, match="steps = 10, not 20: choose another folder"):
        open_study(tmp_path, {"steps": 20})


def test_what_a_job_raises_comes_out_and_the_others_stay(tmp_path: Path) -> None:
    folder = open_study(tmp_path / "study", {})
    jobs = [
        Job("good", square, (1, str(tmp_path / "log"))),
        Job("bad", square, (1, "/no/such/file")),
    ]
    with pytest.raises(OSError, match="No such file"):
        run_jobs(folder, jobs, quiet=True)
    assert [file.name for file in (folder / RESULTS).iterdir()] == ["good.json"]
    with pytest.raises(ValueError, match="workers: expected at least 1, got 0"):
        run_jobs(folder, jobs, workers=0)


def test_a_killed_sweep_makes_the_same_table(tmp_path: Path) -> None:
    """Killed in the middle of trainings, and then once more, it makes what one run makes."""
    pytest.importorskip("ot", reason="the distance of the study needs POT")
    program = (
        "import sys, torch; torch.set_num_threads(1)\n"
        "from cldfast.studies import recipes\n"
        "recipes._CHECKPOINT_EVERY = 3\n"
        "from cldfast.studies.position_noise import Sweep, position_noise_study\n"
        "position_noise_study(sys.argv[1], Sweep('funnel', 3, x_noise=(0.0, 0.5), runs=1, "
        "steps=40, samplers=('auto 20',), rows=300, projections=8), quiet=True)\n"
    )

    def start(folder: str) -> subprocess.Popen[bytes]:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path / folder)], env=environment
        )

    assert start("whole").wait() == 0
    for trained in (1, 2):
        process = start("killed")
        networks = tmp_path / "killed" / "networks"
        # Killed as soon as a training has begun, and then when the second one has.
        while (
            process.poll() is None
            and len(list(networks.glob("*/checkpoint.*"))) + len(list(networks.glob("*/model.*")))
            < trained
        ):
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert start("killed").wait() == 0
    whole = (tmp_path / "whole" / "funnel.csv").read_text()
    assert (tmp_path / "killed" / "funnel.csv").read_text() == whole
    assert whole.count("auto 20") == 2
