"""Threads, forks and interrupts: a call is the same whoever makes it, and can be ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

import cldfast
from cldfast import NoiseAddress, kernels
from cldfast.lab.models import MLPScore

if kernels.missing_backend("cpu"):
    pytest.skip("the compiled core was not built", allow_module_level=True)

SDE = cldfast.CLD(x_noise=0.2)
MATRIX = torch.tensor([[[1.0, 0.1, 0.5, 0.0], [0.0, 0.9, 0.1, 0.5]]], dtype=torch.float64)


@pytest.fixture
def two_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


def together(*calls: Callable[[], object]) -> list[object]:
    """What the calls return, each from a thread of its own; all begin at once."""
    made: list[object] = [None] * len(calls)
    start = threading.Barrier(len(calls))

    def body(index: int) -> None:
        start.wait()
        made[index] = calls[index]()

    threads = [threading.Thread(target=body, args=(index,)) for index in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60.0)
    return made


def stage(u: torch.Tensor, seed: int = 1, out: torch.Tensor | None = None) -> torch.Tensor:
    made = kernels.stage(u, weights=MATRIX, noise=NoiseAddress(seed, 0), backend="cpu", out=out)
    return made.state


def test_two_samplers_in_two_threads_give_the_samples_of_each_alone(two_threads: None) -> None:
    torch.manual_seed(0)
    net = MLPScore(2, width=16, depth=1, time_width=8)
    torch.nn.init.normal_(net.last.weight)

    def draw(solver: str, seed: int) -> torch.Tensor:
        return cldfast.sample(net, SDE, (20_000, 2), solver=solver, steps=4, seed=seed)

    calls = [("multistep", 1), ("em", 2)]
    alone = [draw(*call) for call in calls]
    for made, wanted in zip(
        together(*(lambda call=call: draw(*call) for call in calls)), alone, strict=True
    ):
        assert isinstance(made, torch.Tensor) and torch.equal(made, wanted)


def test_tables_that_several_threads_ask_for_first() -> None:
    """Coefficients of a loss are made at their first use, here by six threads at once."""
    net = lambda u, t: 0.1 * u[:, 2:]  # noqa: E731
    rows = torch.randn(3_000, 2)

    def loss(sde: cldfast.CLD) -> float:
        return float(cldfast.hsm_loss(net, sde, rows, "reweighted", "noise", seed=3))

    alone = loss(cldfast.CLD(a=1.7))
    shared = cldfast.CLD(a=1.7)
    assert together(*([lambda: loss(shared)] * 6)) == [alone] * 6


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork() here")
def test_a_child_of_a_process_that_has_used_its_threads(two_threads: None) -> None:
    """As the workers of a DataLoader are; a child that waited for the threads would wait forever."""
    u, out = torch.ones(100_000, 2), torch.zeros(100_000, 2)
    # The child itself calls nothing of PyTorch's that has threads.
    wanted, made = stage(u).numpy(), out.numpy()
    child = os.fork()
    if child == 0:
        stage(u, out=out)
        os._exit(0 if np.array_equal(made, wanted) else 1)
    end = time.monotonic() + 30.0
    done, status = 0, 0
    while not done and time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        time.sleep(0.01)
    if not done:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert done and status == 0
    assert np.array_equal(stage(u).numpy(), wanted)


_INTERRUPTED = """
import os, signal, threading, time, torch
from cldfast import NoiseAddress, kernels
u, rows = torch.ones(2, 20_000_000), torch.ones(2, 1_000)
w = torch.eye(2, dtype=torch.float64)[None].repeat(1, 1, 2)
few = lambda: kernels.stage(rows, weights=w, noise=NoiseAddress(1, 0), backend="cpu")
before = few().state
core = kernels.get_backend("cpu", "cpu")
core.level = "portable"
# A parent that ignores interrupts, such as a shell's background job, hands that on.
signal.signal(signal.SIGINT, signal.default_int_handler)
sent = []
def interrupt():
    sent.append(time.process_time())
    os.kill(os.getpid(), signal.SIGINT)
threading.Timer(0.1, interrupt).start()
try:
    while True:
        kernels.stage(u, weights=w, noise=NoiseAddress(1, 0), backend="cpu", out=u)
except KeyboardInterrupt:
    waited = time.process_time() - sent[0]  # other processes do not count
core.level = ""
print(waited, torch.equal(few().state, before))
"""


def test_an_interrupt_ends_a_long_stage() -> None:
    """Within a second, and the process goes on as before: here a stage takes some seconds."""
    done = subprocess.run(
        [sys.executable, "-c", _INTERRUPTED],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    waited, same = done.stdout.split()
    assert float(waited) < 1.0 and same == "True"


def test_pauses_change_no_number(two_threads: None) -> None:
    """More pairs than one span: the same as in two calls, bit for bit."""
    rows = (1 << 22) + 1_000
    u = torch.ones(rows, 2)
    first = kernels.stage(
        u[: 1 << 20], weights=MATRIX, noise=NoiseAddress(1, 0), backend="cpu"
    ).state
    rest = kernels.stage(
        u[1 << 20 :], weights=MATRIX, noise=NoiseAddress(1, 1 << 20), backend="cpu"
    ).state
    assert torch.equal(stage(u), torch.cat([first, rest]))


def test_a_python_without_its_lock_is_refused() -> None:
    code = "import sys; sys._is_gil_enabled = lambda: False\nimport cldfast"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and "PYTHON_GIL=1" in done.stderr.splitlines()[-1]
