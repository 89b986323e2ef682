"""The command line under its launchers, as a case of `benchmarks/scale_faults.py`.

`accelerate launch` begins a training in two processes and is told to end; `torchrun` goes on with
it; one of its processes is killed; it goes on again. All of it is compared with one process.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from cldfast.app.cli import main as cldfast
from cldfast.files import read_tensors
from cldfast.training import CHECKPOINT, LOG
from cldfast.training.log import read_rows

TRAIN = ["train", "gaussians25", "--rows", "300", "--batch-size", "32", "--width", "16"]
TRAIN += ["--log-every", "5", "--checkpoint-every", "5", "--quiet"]
ENV = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"}
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
# Rounding grows from step to step, by a factor of ten in some hundreds: so many are compared.
STEPS, RELATIVE = 300, 1e-4

Tell = Callable[[str, object, bool], None]


def launchers(folder: Path, tell: Tell) -> None:
    """Begin by one launcher, end by SIGTERM, go on by another, lose a process, end."""
    run, alone = folder / "run", folder / "alone"
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = str(found.getsockname()[1])
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu"]
    launch += ["--num_machines", "1", "--num_processes", "2", "--main_process_port", port]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    new = [*launch, "-m", "cldfast", *TRAIN, "--steps", "100000", "--out", str(run)]
    begun = _started(new)
    _wait_for_rows(run, 0)
    begin = time.monotonic()
    begun.send_signal(signal.SIGTERM)
    said = begun.communicate(timeout=60)[1]
    step = read_tensors(run / CHECKPOINT)[1]["step"]
    word = f"stopped by SIGTERM; step {step} is saved, go on with: cldfast train --resume"
    tell(
        f"accelerate launch, SIGTERM: both processes end with step {step} saved, after",
        f"{time.monotonic() - begin:.1f} s",
        said.count(word) == 2 and begun.returncode != 0,
    )
    resume = [*TORCHRUN, "-m", "cldfast", "train", "--resume", "--quiet", "--out", str(run)]
    lost = _started([*resume, "--steps", "100000"])
    _wait_for_rows(run, step)
    children = _children(lost.pid)
    begin = time.monotonic()
    os.kill(children[-1], signal.SIGKILL)
    said = lost.communicate(timeout=120)[1]
    found_step = re.search(r"the checkpoint of step (\d+) in \S+ is whole", said)
    tell(
        f"torchrun, one of {len(children)} processes killed: the other names step "
        f"{found_step and found_step[1]}, all end after",
        f"{time.monotonic() - begin:.1f} s",
        found_step is not None and len(children) == 2 and time.monotonic() - begin < 60,
    )
    end = str(max(STEPS, read_tensors(run / CHECKPOINT)[1]["step"] + 5))
    done = _started([*resume, "--steps", end])
    said = "".join(done.communicate(timeout=300))
    tell(f"torchrun goes on to step {end}", done.returncode, done.returncode == 0)
    assert cldfast([*TRAIN, "--steps", end, "--out", str(alone)]) == 0
    pairs = list(zip(read_rows(run / LOG), read_rows(alone / LOG), strict=True))
    off = max(abs(a["loss"] / b["loss"] - 1.0) for a, b in pairs if a["step"] <= STEPS)
    same = all(a["step"] == b["step"] for a, b in pairs)
    tell(
        f"losses of {STEPS} steps against one process, relative",
        f"{off:.2g}",
        same and off < RELATIVE,
    )


def _started(command: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def _wait_for_rows(run: Path, step: int) -> None:
    """Until the log has a row of a later step."""
    end = time.monotonic() + 300
    while not any(row["step"] > step for row in read_rows(run / LOG)):
        if time.monotonic() > end:
            raise TimeoutError(f"{run / LOG}: no row after step {step} within 300 s")
        time.sleep(0.02)


def _children(process: int) -> list[int]:
    """The processes that a launcher has started (Linux)."""
    text = Path(f"/proc/{process}/task/{process}/children").read_text()
    return [int(number) for number in text.split()]
