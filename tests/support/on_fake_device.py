"""Run by test_gpu_scripts.py in a process of its own: the library on `fake_device`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fake_device
import gpu_bench
import gpu_check
import gpu_contests
import numpy as np
import pytest
import torch
from emulated_gpu import WrongMemoryError
from fake_device import HostWaitError

import cldfast
from cldfast import NoiseAddress, kernels
from cldfast.kernels.backends.cuda import CudaBackend
from cldfast.lab.models import MLPScore
from cldfast.planner.solvers import SOLVERS
from cldfast.sampling import recorders
from cldfast.training import TrainConfig, Trainer
from cldfast.training.row_weights import WEIGHTINGS
from cldfast.training.times import TIME_SAMPLING

SDE = cldfast.CLD(beta=cldfast.LinearBeta(1.0, 6.0), x_noise=0.2)
F64 = torch.float64
Case = Callable[[str], torch.Tensor]


def mlp(device: str, **options: Any) -> Any:
    torch.manual_seed(1)
    net = MLPScore(3, width=16, depth=1, time_width=8, **options)
    torch.nn.init.normal_(net.last.weight, std=0.2)
    return net.to(device)


def same(make: Case, rtol: float = 1e-4, uploads: bool = True) -> None:
    """Both devices make the same, and the host does not wait for the fake one.

    uploads: nor does it copy to the device.
    """
    wanted = make("cpu")
    make("cuda")  # tables are brought to the device by the first call
    with fake_device.refused(uploads=uploads):
        made = make("cuda")
    assert made.device == torch.device("cuda", 0)
    torch.testing.assert_close(made.cpu(), wanted, rtol=rtol, atol=1e-5)


def test_devices_do_not_mix() -> None:
    u = torch.zeros(2, 4, device="cuda")
    assert u.is_cuda and u.device == torch.device("cuda", 0) and (u + 1).device == u.device
    with pytest.raises(RuntimeError, match="on the same device"):
        u + torch.zeros(2, 4)
    with pytest.raises(ValueError, match="must be on cuda:0 like the state"):
        kernels.stage(u, (torch.zeros(2, 2),), weights=torch.zeros(1, 2, 5, dtype=F64))
    with pytest.raises(TypeError, match="use Tensor.cpu"):
        np.asarray(u)


def test_looks_at_values_are_found() -> None:
    u = torch.randn(5, device="cuda")
    looks: list[Callable[[], object]] = [
        u[0].item, u.cpu, u.tolist, u.nonzero, lambda: bool(u[0] > 0), lambda: u[u > 0],
        lambda: torch.equal(u, u), lambda: torch.zeros(5).copy_(u), u.unique, lambda: u.to("cpu"),
    ]  # fmt: skip
    for look in looks:
        look()
        with pytest.raises(HostWaitError), fake_device.refused():
            look()
    uploads: list[Callable[[], object]] = [
        lambda: torch.tensor([1.0], device="cuda"), lambda: torch.zeros(5).to("cuda"),
        lambda: u.copy_(torch.zeros(5)), lambda: u[torch.tensor([0, 1])],
    ]  # fmt: skip
    for upload in uploads:
        with pytest.raises(HostWaitError), fake_device.refused():
            upload()
    with fake_device.refused():
        assert torch.zeros(5, device="cuda").copy_(u).sum().dim() == 0


def test_a_planted_missing_device_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where PyTorch sees the tensor, and where a kernel alone gets its address."""
    empty, arange = torch.empty, torch.arange
    output = torch.zeros(2, 3, device="cuda")
    offset, weights = torch.ones_like(output), torch.ones(2, 1, 2, dtype=F64).to("cuda")
    make = loss_maker("reweighted", "uniform")
    kernels.residual(output, offset, weights)
    make("cuda")
    monkeypatch.setattr(torch, "empty", lambda *size, device=None, **more: empty(*size, **more))
    with pytest.raises(WrongMemoryError, match="an address of the host's memory"):
        kernels.residual(output, offset, weights)
    monkeypatch.undo()
    monkeypatch.setattr(torch, "arange", lambda *ends, device=None, **more: arange(*ends, **more))
    with pytest.raises(RuntimeError, match="on the same device"):
        kernels.get_backend("reference", "cuda").words(NoiseAddress(1), 5, torch.device("cuda"))


def test_a_planted_wait_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    make = loss_maker("reweighted", "uniform")
    make("cuda")
    monkeypatch.setattr(CudaBackend, "covers", lambda self, at: bool(at.table.covers(at.t).all()))
    with pytest.raises(HostWaitError, match="reads values"), fake_device.refused():
        make("cuda")

    def looking(u: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return u[:, :3] if u.sum() > 0 else -u[:, :3]

    with pytest.raises(HostWaitError, match="reads values"), fake_device.refused(uploads=False):
        sampler("em", looking)("cuda")


def loss_maker(weighting: str, times: str) -> Case:
    """Losses of all forms with their gradients, of data and networks that are on a device before."""
    forms = {"score": 1, "data_noise": 1, "edm": 1, "full_score": 2}
    inputs = {
        device: (
            torch.linspace(-1.0, 1.0, 15).reshape(5, 3).to(device),
            {
                form: mlp(device, out_dim=3 * planes, in_planes=1 if form == "edm" else 2)
                for form, planes in forms.items()
                if form != "data_noise"
            },
        )
        for device in ("cpu", "cuda")
    }

    def make(device: str) -> torch.Tensor:
        x0, nets = inputs[device]
        made = []
        for form, net in nets.items():
            net.zero_grad()
            value = cldfast.hsm_loss(net, SDE, x0, weighting, form, seed=3, t_min=1e-3, times=times)
            value.backward()
            made += [value.detach().reshape(1), net.last.bias.grad]
        return torch.cat(made)

    return make


@pytest.mark.filterwarnings("ignore::cldfast.training.losses.BlindLossWarning")
@pytest.mark.parametrize(
    ("weighting", "times"),
    [*((name, "uniform") for name in WEIGHTINGS), *(("det", name) for name in TIME_SAMPLING[1:])],
)
def test_losses(weighting: str, times: str) -> None:
    same(loss_maker(weighting, times), rtol=1e-3)


def sampler(solver: str, net: Any = None, steps: int = 5, **options: Any) -> Case:
    nets = {device: net or mlp(device) for device in ("cpu", "cuda")}

    def make(device: str) -> torch.Tensor:
        return cldfast.sample(
            nets[device], SDE, (4, 3), solver=solver, steps=steps, seed=1, device=device,
            nonfinite="return", **options,
        )  # fmt: skip

    return make


@pytest.mark.parametrize("solver", SOLVERS)
def test_samplers(solver: str) -> None:
    same(sampler(solver), uploads=False)


@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_no_copy_to_the_device_for_each_step(backend: str) -> None:
    counts = []
    for steps in (3, 6):
        before = len(fake_device.copies)
        sampler("sscs", steps=steps, backend=backend)("cuda")
        counts.append(len(fake_device.copies) - before)
    assert counts[0] == counts[1]


def test_training() -> None:
    def train(device: str) -> torch.Tensor:
        data = torch.linspace(-1.0, 1.0, 60).reshape(20, 3)
        config = TrainConfig(batch_size=4, lr=1e-3, clip=0.5, ema_decay=0.9)
        trainer = Trainer(mlp(device), SDE, data.to(device), config)
        losses = [trainer.train_step() for _ in range(3)]
        weights = [p.detach().cpu().flatten() for p in trainer.ema.model.parameters()]
        return torch.cat([torch.tensor(losses).flatten(), *weights])

    torch.testing.assert_close(train("cuda"), train("cpu"), rtol=1e-3, atol=1e-5)


class Event:
    """A device event, for work that is done when it is asked for."""

    def __init__(self, enable_timing: bool) -> None:
        self.time = 0.0

    def record(self) -> None:
        self.time = time.perf_counter()

    def elapsed_time(self, end: Event) -> float:
        return 1e3 * (end.time - self.time)


@pytest.fixture
def rehearsal(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What would be captured is run again, what would be compiled is run as it is."""
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch, "compile", lambda function: function)
    monkeypatch.setattr(recorders, "CudaGraphs", lambda device: recorders.Recorder())
    yield
    torch.set_default_device(None)


@pytest.mark.filterwarnings("ignore::cldfast.training.losses.BlindLossWarning")
def test_the_check_is_rehearsed(
    rehearsal: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu_check, "BACKENDS", ("cuda",))  # the interpreter would take minutes
    monkeypatch.setattr(gpu_check, "LONG", [(2, 3000), (70, 1028)])
    monkeypatch.setattr(gpu_check, "REPEATS", 2)
    monkeypatch.setattr(gpu_check, "STEPS", 4)
    monkeypatch.setattr(gpu_check, "MANY", 2**10)
    monkeypatch.setattr(gpu_check, "SHARE", (1, 3))
    gpu_check.run_checks()
    told = capsys.readouterr().out
    for check in gpu_check.CHECKS:
        assert f"  {check.__name__}: passed" in told


def test_the_benchmark_is_rehearsed(
    rehearsal: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(gpu_bench, "RESULTS", tmp_path)
    monkeypatch.setattr(gpu_bench, "_BEGUN", tmp_path / "begun")
    monkeypatch.setattr(gpu_contests, "PAIRS", (2**10, 2**11))
    monkeypatch.setattr(gpu_contests, "SETS_BYTES", 0)
    for name in ("ROUNDS", "RUN_ROUNDS"):
        monkeypatch.setattr(gpu_contests, name, 1)
    for name, value in {"STEPS": 2, "BATCHES": (2, 1), "WIDTHS": (16, 8), "SIDE": 8}.items():
        monkeypatch.setattr(gpu_contests, name, value)
    # One contestant fails, and another takes the process with it.
    perturb, measured = kernels.perturb, gpu_bench.measured

    def failing(*arguments: Any, backend: str, **more: Any) -> object:
        if backend == "triton":
            raise ValueError("planted")
        return perturb(*arguments, backend=backend, **more)

    def ending(contest: Any, results: Any) -> Any:
        if contest.contestant == "SSCS loop, eager":
            raise KeyboardInterrupt
        return measured(contest, results)

    monkeypatch.setattr(kernels, "perturb", failing)
    with monkeypatch.context() as planted, pytest.raises(KeyboardInterrupt):
        planted.setattr(gpu_bench, "measured", ending)
        gpu_bench.measure()
    first = gpu_bench.read(tmp_path / "fake-host.csv")
    gpu_bench.measure(again=True)
    rows = gpu_bench.read(tmp_path / "fake-host.csv")
    assert rows[: len(first)] == first and len(rows) > 45
    wrong = {(row.case.split(",")[0], row.contestant): row.error for row in rows if row.error}
    assert wrong == {
        ("perturbation", "triton"): "ValueError: planted",
        ("MLP 3 x 16", "SSCS loop, eager"): "it ended the process that measured it",
    }
    assert (tmp_path / "fake-host.png").stat().st_size > 0
