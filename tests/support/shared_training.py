"""What `tests/training/test_processes.py` runs in several processes, and in one to compare with."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cldfast import CLD
from cldfast.files import write_tensors
from cldfast.lab.models import MLPScore
from cldfast.training import LostProcess, TrainConfig, Trainer

CONFIG = TrainConfig(
    steps=12, batch_size=16, accumulate=2, lr=1e-2, warmup=3, times="stratified",
    label_dropout=0.3, uncertainty=True, log_every=5, validate_every=6, checkpoint_every=4,
)  # fmt: skip
PLAIN = replace(CONFIG, uncertainty=False)


def network() -> MLPScore:
    torch.manual_seed(0)
    return MLPScore(2, width=8, depth=1, time_width=8, classes=3)


def data(rows: int = 50) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(rows, 2, generator=generator), torch.arange(rows) % 3


def trainer(config: TrainConfig = CONFIG, **options: Any) -> Trainer:
    return Trainer(network(), CLD(), data(), config, validation=data(30), **options)


class Sharding:
    """An accelerator that shards, which Accelerate itself does on GPUs alone."""

    def __init__(self, accelerator: Any) -> None:
        self.inner = accelerator

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def prepare(self, net: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[Any, Any]:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        fully_shard(net, mesh=init_device_mesh("cpu", (self.num_processes,)))
        optimizer.param_groups[0]["params"] = list(net.parameters())
        return net, optimizer

    def no_sync(self, net: Any) -> Any:
        return self.inner.no_sync(nn.Identity())


def losses(shared: Trainer, steps: int) -> torch.Tensor:
    return torch.tensor([shared.train_step() for _ in range(steps)], dtype=torch.float64)


def main(folder: Path) -> None:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    keep: dict[str, torch.Tensor] = {}

    def kept(name: str, shared: Trainer) -> None:
        state = shared.fit().state_dict()
        keep.update({f"{name}/{key}": value for key, value in state.items()})

    keep["losses"] = losses(trainer(PLAIN, accelerator=accelerator), 12)
    for name, way in (("ddp", accelerator), ("fsdp", Sharding(accelerator))):
        kept(name, trainer(folder=folder / name, accelerator=way))
        trainer(folder=folder / f"{name}-cut", accelerator=way).fit(steps=7)
        accelerator.wait_for_everyone()
        again = trainer(folder=folder / f"{name}-cut", accelerator=way, resume=True)
        assert again.step == 4
        kept(f"{name}-cut", again)
    if accelerator.is_main_process:
        write_tensors(folder / "kept.safetensors", keep)
    # One process is asked to stop, and all do.
    stopped = trainer(folder=folder / "stopped", accelerator=accelerator)
    stopped.fit(steps=2)
    if accelerator.process_index == 1:
        stopped.stop()
    stopped.fit()
    assert stopped.stopped and stopped.step == 3
    # The last process ends in the middle of a run.
    lost = trainer(replace(CONFIG, steps=10**6), folder=folder / "lost", accelerator=accelerator)
    lost.fit(steps=9)
    if accelerator.process_index == accelerator.num_processes - 1:
        print("ends", flush=True)
        sys.stdout.flush()
        import os
        import signal

        os.kill(os.getpid(), signal.SIGKILL)
    try:
        lost.fit()
    except LostProcess as error:
        print(error, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
