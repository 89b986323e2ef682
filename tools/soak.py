"""Mixed calls for hours; memory, open files and threads must stay as they are: `make soak`.

    python tools/soak.py [MINUTES]

The first fifth of the time fills caches and pools. From then on resident memory is looked at after
each round; its median over the last fifth may exceed that over the second one by 1 %.
"""

from __future__ import annotations

import contextlib
import gc
import io
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

import cldfast
from cldfast.app.cli import main as cli
from cldfast.app.new_run import run_config
from cldfast.app.runs import train_run
from cldfast.lab.models import MLPScore
from cldfast.planner.plan import Plan
from cldfast.process.sde import LinearPhaseSDE

MOST_GROWTH = 0.01
FORM = "noise"


def calls(folder: Path) -> list[Callable[[int], object]]:
    """The calls of a round, each given the number of the round."""
    torch.manual_seed(0)
    sde = cldfast.CLD(x_noise=0.2, beta=cldfast.LinearBeta(1.0, 6.0))
    net = MLPScore(2, width=32, depth=1, time_width=16)
    torch.nn.init.normal_(net.last.weight, std=0.1)
    rows, optimizer = torch.randn(256, 2), torch.optim.Adam(net.parameters())
    run = folder / "run"
    config = run_config({"data": "gaussians25", "steps": 5, "width": 16, "rows": 64})
    train_run(run, config)

    def draw(solver: str) -> Callable[[int], object]:
        return lambda n: cldfast.sample(
            net, sde, (64, 2), solver=solver, steps=4 + n % 5, seed=n, parameterization=FORM
        )

    def learn(n: int) -> None:
        optimizer.zero_grad()
        cldfast.hsm_loss(net, sde, rows, "reweighted", FORM, seed=n).backward()
        optimizer.step()

    def new_process(n: int) -> LinearPhaseSDE:
        """Of other numbers each time, so that caches by process would grow without end."""
        process = cldfast.CLD(a=1.0 + 1e-6 * n)
        cldfast.perturb(process, rows, torch.full((256,), 0.3), seed=n)
        cldfast.hsm_loss(net, process, rows, "reweighted", FORM, seed=n)
        return process

    def plan(n: int) -> Plan:
        made = cldfast.make_plan(sde, "multistep", 4 + n % 5)
        made.save(folder / "plan.json")
        return Plan.load(folder / "plan.json", sde)

    def threads(n: int) -> None:
        with ThreadPoolExecutor(2) as pool:
            for drawn in [pool.submit(draw(name), n) for name in ("em", "unipc")]:
                drawn.result()

    def command(n: int) -> None:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            assert cli(["sample", str(run), "-n", "16", "--steps", "3", "--no-picture"]) == 0
            assert cli(["sample", str(folder / "none"), "--no-picture"]) == 2

    def train(n: int) -> None:
        (run / "checkpoint.safetensors").unlink()
        train_run(run, config, resume=True)

    solvers = ("em", "sscs", "multistep", "stochastic_multistep", "unipc", "leapfrog")
    return [*map(draw, solvers), learn, new_process, plan, threads, command, train]


def resident() -> int:
    """Bytes of this process in memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> int:
    minutes = float(sys.argv[1]) if len(sys.argv) > 1 else 60.0
    seen: list[tuple[float, int]] = []
    with tempfile.TemporaryDirectory() as folder:
        work = calls(Path(folder))
        start, rounds, opened = time.monotonic(), 0, 0
        while (now := (time.monotonic() - start) / 60.0) < minutes:
            for call in work:
                call(rounds)
            rounds += 1
            gc.collect()
            seen.append((now / minutes, resident()))
            if now < minutes / 5.0:
                opened, running = len(os.listdir("/proc/self/fd")), threading.active_count()
        now_opened, now_running = len(os.listdir("/proc/self/fd")), threading.active_count()
    first = statistics.median(m for at, m in seen if 0.2 <= at < 0.4)
    last = statistics.median(m for at, m in seen if at >= 0.8)
    growth = last / first - 1.0
    print(
        f"{minutes:g} minutes, {rounds} rounds of {len(work)} calls: resident "
        f"{first / 2**20:.1f} -> {last / 2**20:.1f} MiB ({growth:+.2%}), "
        f"files {opened} -> {now_opened}, "
        f"threads {running} -> {now_running}"
    )
    return int(growth > MOST_GROWTH or now_opened > opened or now_running > running)


if __name__ == "__main__":
    sys.exit(main())
