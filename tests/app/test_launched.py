"""`cldfast train` under launchers: what happens when a machine is taken back, or nobody comes."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from processes import free_port

from cldfast import CLD
from cldfast.app.cli import main
from cldfast.files import read_tensors
from cldfast.lab.models import MLPScore
from cldfast.training import CHECKPOINT, LOG, TrainConfig, Trainer
from cldfast.training.log import read_rows

pytest.importorskip("accelerate", reason="needs Hugging Face Accelerate: cldfast[train]")
pytest.importorskip("safetensors")

TRAIN = ["train", "gaussians25", "--rows", "300", "--batch-size", "32", "--width", "16", "--log-every", "5"]  # fmt: skip
TRAIN += ["--checkpoint-every", "1000000", "--validate-every", "100000", "--quiet"]
ENV = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"}
PIPES = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}


def test_sigterm_ends_a_training_that_can_be_resumed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As clusters take machines back: the step at hand is made, the state saved; bit for bit."""
    run, whole, before = tmp_path / "run", tmp_path / "whole", signal.getsignal(signal.SIGTERM)

    def take_back() -> None:
        while not read_rows(run / LOG):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=take_back)
    thread.start()
    assert main([*TRAIN, "--steps", "1000000", "--out", str(run)]) == 128 + signal.SIGTERM
    thread.join()
    assert signal.getsignal(signal.SIGTERM) is before
    step = read_tensors(run / CHECKPOINT)[1]["step"]
    word = (
        f"stopped by SIGTERM; step {step} is saved, go on with: cldfast train --resume --out {run}"
    )
    assert word in capsys.readouterr().err
    end = str(step + 3)
    assert main(["train", "--resume", "--steps", end, "--quiet", "--out", str(run)]) == 0
    assert main([*TRAIN, "--steps", end, "--out", str(whole)]) == 0
    a, b = (read_tensors(folder / CHECKPOINT)[0] for folder in (run, whole))
    assert a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())


def test_where_the_others_do_not_come(tmp_path: Path) -> None:
    env = ENV | {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    env["MASTER_PORT"] = str(free_port())
    command = [sys.executable, "-m", "cldfast", *TRAIN, "--out", str(tmp_path / "run")]
    begin = time.monotonic()
    done = subprocess.run([*command, "--patience", "2"], env=env, **PIPES, timeout=60)
    assert done.returncode == 2 and time.monotonic() - begin < 40
    said = done.stderr.strip().splitlines()[-1]
    assert said.startswith("cldfast: error: process 0 of 2: not all processes came within 2 s (")
    assert not (tmp_path / "run").exists()


def test_a_tracker_whose_package_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Accelerate would leave it out and say nothing."""
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert main([*TRAIN, "--out", str(tmp_path / "run"), "--track", "wandb"]) == 2
    said = capsys.readouterr().err
    assert "--track wandb: pip install 'cldfast[track]'" in said and not list(tmp_path.iterdir())


@pytest.fixture
def fresh_accelerate() -> Iterator[None]:
    """Accelerate keeps the settings of a process's first accelerator for the next ones."""
    state = importlib.import_module("accelerate.state").AcceleratorState
    state._reset_state(True)
    yield
    state._reset_state(True)


def test_a_tracker_of_accelerate_gets_what_the_log_has(
    tmp_path: Path, fresh_accelerate: None
) -> None:
    tracking = importlib.import_module("accelerate.tracking")
    told: list[dict[str, float]] = []

    class Kept(tracking.GeneralTracker):
        name, requires_logging_directory, tracker = "kept", False, None

        def store_init_configuration(self, values: dict[str, object]) -> None:
            pass

        def log(self, values: dict[str, float], step: int, **more: object) -> None:
            told.append(values | {"step": step})

    accelerator = importlib.import_module("accelerate").Accelerator(cpu=True, log_with=Kept())
    accelerator.init_trackers("training")
    config = TrainConfig(steps=4, batch_size=8, log_every=2, checkpoint_every=4)
    net, rows = MLPScore(2, width=8, depth=1), torch.randn(32, 2)
    Trainer(net, CLD(), rows, config, folder=tmp_path, accelerator=accelerator).fit()
    assert [row["step"] for row in told] == [2, 4]
    for row, kept in zip(told, read_rows(tmp_path / LOG), strict=True):
        assert row.items() >= {k: v for k, v in kept.items() if v is not None}.items()


def test_tensorboard(tmp_path: Path, fresh_accelerate: None) -> None:
    pytest.importorskip("tensorboard", reason="needs TensorBoard: cldfast[track]")
    events = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    run = tmp_path / "run"
    assert main([*TRAIN, "--steps", "10", "--out", str(run), "--track", "tensorboard"]) == 0
    found = events.EventAccumulator(str(run / "cldfast")).Reload()
    assert [event.step for event in found.Scalars("loss")] == [5, 10]
    for event, row in zip(found.Scalars("loss"), read_rows(run / LOG), strict=True):
        assert event.value == pytest.approx(row["loss"], rel=1e-6)
