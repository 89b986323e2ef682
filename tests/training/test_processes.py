"""Training in several processes: the same gradients as in one, and a clear end where one is lost."""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import shared_training
import torch
from processes import start

from cldfast import CLD
from cldfast.files import read_tensors
from cldfast.training import CHECKPOINT, LOG, Trainer
from cldfast.training.log import read_rows
from cldfast.training.processes import OneProcess, check_accelerator

pytest.importorskip("accelerate", reason="needs Hugging Face Accelerate: cldfast[train]")
pytest.importorskip("safetensors")


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """Two processes that train in all ways, one after another; then the second one is killed."""
    folder = tmp_path_factory.mktemp("shared")
    processes = start([shared_training.__file__, str(folder)], 2)
    lost = processes[1].communicate(timeout=400)
    begin = time.monotonic()
    said, errors = processes[0].communicate(timeout=60)
    assert processes[1].returncode == -signal.SIGKILL, lost[1]
    assert processes[0].returncode == 0, errors
    return {
        "folder": folder, "said": said, "seconds": time.monotonic() - begin,
        "kept": read_tensors(folder / "kept.safetensors")[0],
    }  # fmt: skip


def _kept(shared, name):
    return {
        k.removeprefix(f"{name}/"): v for k, v in shared["kept"].items() if k.startswith(f"{name}/")
    }


def test_losses_are_those_of_one_process(shared):
    """Times, noise, order and dropped labels are addressed: only sums are rounded otherwise."""
    alone = shared_training.losses(shared_training.trainer(shared_training.PLAIN), 12)
    torch.testing.assert_close(shared["kept"]["losses"], alone, rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_weights_are_those_of_one_process(shared, way):
    alone = shared_training.trainer()
    alone.fit()
    for name, value in alone.ema.model.state_dict().items():
        torch.testing.assert_close(_kept(shared, way)[name], value, rtol=1e-4, atol=1e-5)
    # What is learned beside the network, which no engine shares out.
    learned = read_tensors(shared["folder"] / way / CHECKPOINT)[0]["uncertainty/weight"]
    assert learned.abs().max() > 0.01
    torch.testing.assert_close(learned, alone.uncertainty.weight.detach(), rtol=1e-4, atol=1e-5)
    assert alone.validate() == pytest.approx(
        read_rows(shared["folder"] / way / LOG)[-1]["validation_loss"], rel=1e-4
    )


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_a_resumed_run_of_as_many_processes_is_exact(shared, way):
    whole, cut = (
        read_tensors(shared["folder"] / f"{way}{part}" / CHECKPOINT) for part in ("", "-cut")
    )
    assert whole[1]["step"] == cut[1]["step"] == 12
    assert whole[0].keys() == cut[0].keys()
    for name, tensor in whole[0].items():
        assert torch.equal(tensor, cut[0][name]), name
    assert whole[0]["rng/cpu"].shape[0] == 2  # a random state for each process


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_one_process_goes_on_from_several(shared, way):
    longer = shared_training.replace(shared_training.CONFIG, steps=16)
    alone = shared_training.trainer(longer)
    alone.fit()
    resumed = shared_training.trainer(longer)
    resumed.load(shared["folder"] / way / CHECKPOINT)
    assert resumed.step == 12
    resumed.fit()
    for p, q in zip(resumed.net.parameters(), alone.net.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)


def test_where_a_process_is_killed_the_others_end_and_say_what_is_safe(shared):
    assert shared["seconds"] < 60
    said = shared["said"].strip()
    assert "another process has ended" in said and "resume" in said
    path = shared["folder"] / "lost" / CHECKPOINT
    assert f"the checkpoint of step 8 in {path} is whole" in said
    again = shared_training.trainer(
        shared_training.replace(shared_training.CONFIG, steps=10),
        folder=shared["folder"] / "lost", resume=True,
    )  # fmt: skip
    assert again.step == 8
    again.fit()


def test_all_stop_where_one_is_asked_to(shared):
    assert read_tensors(shared["folder"] / "stopped" / CHECKPOINT)[1]["step"] == 3


def test_processes_that_are_alone_are_refused(monkeypatch):
    """Without a GPU Accelerate must be told so, or each process would train for itself."""

    class Accelerator:
        num_processes = 1

    monkeypatch.setenv("WORLD_SIZE", "2")
    check_accelerator(OneProcess())
    with pytest.raises(ValueError, match="2 processes were started and each is alone"):
        check_accelerator(Accelerator())


def test_batches_that_cannot_be_shared_out():
    class Three(OneProcess):
        num_processes = 3

    with pytest.raises(ValueError, match="multiple of 3 processes x accumulate = 6, got 16"):
        Trainer(shared_training.network(), CLD(), shared_training.data(), shared_training.CONFIG, accelerator=Three())  # fmt: skip


def test_a_user_program_alone_and_launched_trains_alike(tmp_path, monkeypatch):
    """A `Dataset`, a `DataLoader` and a network of one's own, by `accelerate launch`."""
    program = Path(__file__).parents[2] / "examples" / "train_in_processes.py"
    launch = [sys.executable, "-m", "accelerate.commands.launch"]
    launch += ["--multi_gpu", "--num_machines", "1", "--num_processes", "2"]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    done = subprocess.run(
        [*launch, str(program), str(tmp_path / "launched")],
        capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "2 processes trained UNet" in done.stdout
    monkeypatch.setattr(sys, "argv", [str(program), str(tmp_path / "alone")])
    runpy.run_path(str(program))
    launched, alone = (read_rows(tmp_path / name / LOG) for name in ("launched", "alone"))
    assert [row["step"] for row in launched] == [row["step"] for row in alone] == [50, 60]
    for a, b in zip(launched, alone, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
