"""Several processes, and what happens to them: `make scale-faults`, some minutes on two cores.

Trains in 1, 2 and 4 processes and compares; kills one of two at random moments, again and again;
samples 20,000 rows in 1, 2 and 3 processes with kills; fills a small disk (as root on Linux);
measures the memory of a million samples; trains on two "machines", network namespaces (as root);
trains by the command line under `accelerate launch` and `torchrun`.
Each figure goes to standard output as one line. Exit code 1 where something did not hold.

Processes are forked from one that has imported everything, so that starting one costs nothing.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # which wrapping a network imports, at two seconds a process
import torch.distributed.checkpoint.state_dict
import torch.distributed.fsdp
import torch.onnx
from accelerate import Accelerator, InitProcessGroupKwargs
from scale_launchers import launchers

from cldfast import CLD
from cldfast.app.cli import main as cldfast
from cldfast.files import read_tensors
from cldfast.lab.models import MLPScore
from cldfast.model.run_folder import RunConfig, save_run
from cldfast.training import CHECKPOINT, TrainConfig, Trainer

CONFIG = TrainConfig(
    steps=200, batch_size=64, accumulate=2, lr=2e-3, warmup=20, times="stratified", log_every=50,
    checkpoint_every=10,
)  # fmt: skip
_port = 20_000 + os.getpid() % 10_000
_held = True


def tell(what: str, figure: object, holds: bool) -> None:
    global _held
    _held &= holds
    print(f"{'ok  ' if holds else 'FAIL'} {what}: {figure}", flush=True)


def fork(work: Callable[[], object], rank: int, processes: int, **env: str) -> int:
    """A process that does the work with its output in a file named by its rank; returns its id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.environ.update(
            RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(processes),
            LOCAL_WORLD_SIZE=str(processes), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(_port),
            ACCELERATE_USE_CPU="1",
        )  # fmt: skip
        os.environ.update(env)
        log = os.open(
            f"{tempfile.gettempdir()}/rank{rank}.log", os.O_CREAT | os.O_WRONLY | os.O_TRUNC
        )
        os.dup2(log, 1)
        os.dup2(log, 2)
        code = int(work() or 0)  # type: ignore[call-overload]
    except BaseException as error:
        print(type(error).__name__, error, flush=True)
    finally:
        sys.stdout.flush()
        os._exit(code)


def said(rank: int) -> str:
    return Path(f"{tempfile.gettempdir()}/rank{rank}.log").read_text()


def start(work: Callable[[], object], processes: int, **env: str) -> list[int]:
    global _port
    _port += 1
    return [fork(work, rank, processes, **env) for rank in range(processes)]


def wait(children: list[int]) -> list[int]:
    """Exit codes, negative for signals."""
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def train(folder: Path, config: TrainConfig = CONFIG, pause: float = 0.0) -> None:
    torch.manual_seed(0)
    net = MLPScore(2, width=64, depth=2)
    data = torch.randn(1_000, 2, generator=torch.Generator().manual_seed(1))
    accelerator = together() if int(os.environ["WORLD_SIZE"]) > 1 else None
    trainer = Trainer(net, CLD(), data, config, folder=folder, resume=True, accelerator=accelerator)
    while trainer.step < config.steps:
        trainer.fit(steps=trainer.step + 10)
        time.sleep(pause)


def together() -> Accelerator:
    """Processes without a GPU, which wait for each other for a minute."""
    patience = InitProcessGroupKwargs(timeout=timedelta(minutes=1))
    return Accelerator(cpu=True, kwargs_handlers=[patience])


def losses_of(folder: Path, processes: int) -> torch.Tensor:
    def work() -> None:
        torch.manual_seed(0)
        net = MLPScore(2, width=64, depth=2)
        data = torch.randn(1_000, 2, generator=torch.Generator().manual_seed(1))
        accelerator = together() if processes > 1 else None
        trainer = Trainer(net, CLD(), data, CONFIG, accelerator=accelerator)
        values = torch.tensor([trainer.train_step() for _ in range(CONFIG.steps)])
        if os.environ["RANK"] == "0":
            torch.save((values, trainer.net.state_dict()), folder / f"losses{processes}")

    codes = wait(start(work, processes))
    assert codes == [0] * processes, (codes, said(0))
    return torch.load(folder / f"losses{processes}", weights_only=True)  # type: ignore[no-any-return]


def equal_training(folder: Path) -> None:
    alone = losses_of(folder, 1)
    for processes in (2, 4):
        values, weights = losses_of(folder, processes)
        off = float(((values[:, 0] - alone[0][:, 0]) / alone[0][:, 0]).abs().max())
        tell(
            f"losses of 200 steps, {processes} processes against 1, relative",
            f"{off:.2g}",
            off < 1e-5,
        )
        off = max(float((weights[k] - v).abs().max()) for k, v in alone[1].items())
        tell(f"final weights, {processes} processes against 1", f"{off:.2g}", off < 1e-4)


def step_of(checkpoint: Path) -> int:
    return int(read_tensors(checkpoint)[1]["step"]) if checkpoint.exists() else -1


def kills_in_training(folder: Path, count: int) -> None:
    """Kills at moments that lie all over the run."""
    config = replace(CONFIG, steps=300, checkpoint_every=5)
    assert wait(start(lambda: train(folder / "whole", config), 2)) == [0, 0], said(0)
    path, moment, slowest, clear = folder / "killed" / CHECKPOINT, random.Random(0), 0.0, 0
    steps = []
    for number in range(count):
        # Not the last steps, so that nobody is done; and a step that was not made before, so that
        # the two have found each other.
        least = max((number + 1) * (config.steps - 40) // count, step_of(path) + 1)
        end = time.monotonic() + 120
        children = start(lambda: train(folder / "killed", config, pause=0.05), 2)
        while step_of(path) < least:
            assert time.monotonic() < end, said(0) + said(1)
            time.sleep(0.05)
        time.sleep(moment.uniform(0.0, 0.1))
        victim = number % 2
        os.kill(children[victim], signal.SIGKILL)
        begin = time.monotonic()
        codes = wait(children)
        slowest = max(slowest, time.monotonic() - begin)
        text = said(1 - victim)
        told = "another process has ended" in text and "is whole: start all" in text
        clear += codes[1 - victim] == 1 and told
        steps.append(step_of(path))
    assert wait(start(lambda: train(folder / "killed", config), 2)) == [0, 0], said(0)
    a, b = (read_tensors(folder / name / CHECKPOINT)[0] for name in ("whole", "killed"))
    same = a.keys() == b.keys() and all(torch.equal(v, b[k]) for k, v in a.items())
    tell(
        f"{count} kills of one of two processes, after steps {steps[0]} to {steps[-1]} of "
        f"{config.steps}: the other one ends within",
        f"{slowest:.1f} s",
        slowest < 60,
    )
    tell("of them with a message that names the checkpoint", clear, clear == count)
    tell("the state after all kills is that of a run without, bit for bit", same, same)


def run_folder(folder: Path) -> Path:
    torch.manual_seed(0)
    net = MLPScore(2, 2, width=32, depth=2)
    torch.nn.init.normal_(net.last.weight, std=0.1)
    config = RunConfig(CLD().config(), net.config(), (2,), "mixed")
    return save_run(folder / "run", net, config)


def sample(run: Path, out: Path, n: int, *more: str) -> int:
    torch.set_num_threads(1)
    arguments = ["sample", str(run), "-n", str(n), "--steps", "4", "--out", str(out), "--quiet"]
    return cldfast([*arguments, "--shard-rows", "1000", *more])


def digest(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir())
    parts = [name.encode() + (folder / name).read_bytes() for name in names]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def kills_in_sampling(folder: Path) -> None:
    run, found = run_folder(folder), {}
    for processes, size in ((1, 1_000), (2, 300), (3, 10_000)):
        out = folder / f"samples{processes}"
        codes = wait(
            start(lambda o=out, s=size: sample(run, o, 20_000, "--batch-size", str(s)), processes)
        )  # type: ignore[misc]
        assert codes == [0] * processes, said(0)
        found[f"{processes} processes"] = digest(out)
    out = folder / "killed"
    for killed in ([0], [0, 1, 2]):
        children = start(lambda: sample(run, out, 20_000), 3)
        while len(list(out.glob("shard-*"))) < (5 if len(killed) == 1 else 10):
            time.sleep(0.005)
        for victim in killed:
            os.kill(children[victim], signal.SIGKILL)
        if len(killed) == 1:  # and then the others too, before they have taken over all of it
            time.sleep(0.05)
            for child in children[1:]:
                os.kill(child, signal.SIGKILL)
        wait(children)
    whole = len(list(out.glob("shard-*")))
    assert wait(start(lambda: sample(run, out, 20_000), 2)) == [0, 0], said(0)
    found[f"killed with {whole} of 20 shards, resumed"] = digest(out)
    children = start(lambda: sample(run, folder / "taken", 20_000), 3)
    while len(list((folder / "taken").glob("shard-*"))) < 3:
        time.sleep(0.005)
    os.kill(children[0], signal.SIGKILL)
    codes = wait(children)
    found[f"one of 3 killed, the others take over (exit codes {codes})"] = digest(folder / "taken")
    for name, value in found.items():
        tell(f"20,000 rows, {name}", value[:12], value == found["1 processes"])


@contextmanager
def small_disk(folder: Path, size: str) -> Any:
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def full_disk(folder: Path) -> None:
    run = run_folder(folder / "of")
    for files in ("safetensors", "npy"):
        with small_disk(folder / files, "256k") as disk:
            (filler := disk / "filler").write_bytes(bytes(150_000))
            out = disk / "samples"
            codes = wait(start(lambda o=out, f=files: sample(run, o, 20_000, "--files", f), 2))  # type: ignore[misc]
            message = said(0).strip().splitlines()[-1]
            good = (
                codes == [2, 2] and "No space left on device" in message and "make room" in message
            )
            tell(f"full disk, {files}", message.replace(str(folder), ""), good)
            half = [
                p.name for p in out.iterdir() if not p.name.startswith(".") and p.suffix == ".tmp"
            ]
            for shard in out.glob("*.safetensors"):
                read_tensors(shard)
            filler.unlink()
            again = wait(start(lambda o=out, f=files: sample(run, o, 20_000, "--files", f), 2))  # type: ignore[misc]
            whole = not half and again == [0, 0]
            tell("no half file, and the same command goes on after room is made", whole, whole)


def full_disk_in_training(folder: Path) -> None:
    with small_disk(folder / "training", "2m") as disk:
        (filler := disk / "filler").write_bytes(bytes(1_450_000))  # room for the first checkpoint
        wide = replace(CONFIG, steps=20)
        codes = wait(start(lambda: train(disk / "run", wide), 2))
        text = said(0) + said(1)
        good = codes == [1, 1] and "No space left on device" in text and "another process" in text
        tell("full disk in training, both processes end", good, good)
        step = read_tensors(disk / "run" / CHECKPOINT)[1]["step"]
        tell("the checkpoint before is whole, of step", step, step == 0)
        filler.unlink()
        again = wait(start(lambda: train(disk / "run", wide), 2))
        tell("and training goes on after room is made", again == [0, 0], again == [0, 0])


def memory(folder: Path) -> None:
    run, peaks = run_folder(folder), {}
    for n in (16_384, 1_000_000):

        def work(n: int = n) -> int:
            code = sample(run, folder / f"n{n}", n, "--shard-rows", "16384")
            print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
            return code

        assert wait(start(work, 1)) == [0], said(0)
        peaks[n] = int(said(0).split()[-1])
    ratio = peaks[1_000_000] / peaks[16_384]
    tell(
        "peak memory of 1,000,000 x 2 over that of one shard",
        f"{ratio:.3f} ({peaks} KiB)",
        ratio < 1.2,
    )


def two_machines(folder: Path) -> None:
    """A process in each of two network namespaces with a cable between them."""
    names = ["cldfast-a", "cldfast-b"]
    for name in names:
        subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        ends = [["veth-a", "netns", names[0]], ["veth-b", "netns", names[1]]]
        subprocess.run(
            [
                "ip",
                "link",
                "add",
                *ends[0][:1],
                "netns",
                names[0],
                "type",
                "veth",
                "peer",
                "name",
                *ends[1],
            ],
            check=True,
        )
        for number, (name, end) in enumerate(zip(names, ("veth-a", "veth-b"), strict=True), 1):
            for more in (
                ["addr", "add", f"10.77.0.{number}/24", "dev", end],
                ["link", "set", end, "up"],
                ["link", "set", "lo", "up"],
            ):
                subprocess.run(["ip", "-n", name, *more], check=True)
        global _port
        _port += 1

        def work(rank: int) -> None:
            handle = os.open(f"/run/netns/{names[rank]}", os.O_RDONLY)
            if ctypes.CDLL(None, use_errno=True).setns(handle, 0x40000000):  # CLONE_NEWNET
                raise OSError(ctypes.get_errno(), "setns")
            os.environ["GLOO_SOCKET_IFNAME"] = ("veth-a", "veth-b")[rank]
            train(folder / "two", replace(CONFIG, steps=50))

        address = {"MASTER_ADDR": "10.77.0.1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
        codes = wait([fork(lambda r=r: work(r), r, 2, **address) for r in range(2)])  # type: ignore[misc]
        tell(
            "50 steps on two machines (network namespaces)", f"exit codes {codes}", codes == [0, 0]
        )
        assert wait(start(lambda: train(folder / "one", replace(CONFIG, steps=50)), 2)) == [0, 0]
        a, b = (read_tensors(folder / name / CHECKPOINT)[0] for name in ("two", "one"))
        same = all(torch.equal(v, b[k]) for k, v in a.items())
        tell("the same state as two processes on one machine, bit for bit", same, same)
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=True)


CASES: dict[str, Callable[[Path], None]] = {
    "equal": equal_training,
    "kills": lambda folder: kills_in_training(folder, 25),
    "sampling": kills_in_sampling,
    "disk": full_disk,
    "disk-training": full_disk_in_training,
    "memory": memory,
    "machines": two_machines,
    "launchers": lambda folder: launchers(folder, tell),
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cases", nargs="*", choices=[*CASES, []], help="all")
    torch.set_num_threads(1)
    for case in parser.parse_args().cases or CASES:
        folder = Path(tempfile.mkdtemp(prefix="cldfast-"))
        begin = time.monotonic()
        try:
            CASES[case](folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        print(f"     {case}: {time.monotonic() - begin:.0f} s", flush=True)
    return 0 if _held else 1


if __name__ == "__main__":
    sys.exit(main())
