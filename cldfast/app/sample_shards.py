"""Samples of a run folder in shards: the same files for any number of processes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cldfast.app.launched import process
from cldfast.app.runs import sample_run
from cldfast.files import PathLike
from cldfast.model.run_folder import CONFIG, MODEL, RunConfig
from cldfast.network import device_of
from cldfast.planner.plan import Plan
from cldfast.process.sde import LinearPhaseSDE
from cldfast.sampling.fixed_calls import FixedCalls
from cldfast.sampling.shards import Manifest, Shards

SHARD_ROWS = 16_384
CALL_ROWS = 256
# The names of the files have six digits.
_MOST_SHARDS = 10**6


def fill_shards(
    run: PathLike,
    folder: PathLike,
    net: nn.Module,
    sde: LinearPhaseSDE,
    config: RunConfig,
    n: int,
    *,
    files: str = "safetensors",
    shard_rows: int = SHARD_ROWS,
    call_rows: int = CALL_ROWS,
    labels_of: Callable[[int, int], Tensor] | None = None,
    chosen: list[str] | None = None,
    shards: Sequence[str] = (),
    plan: Plan | None = None,
    progress: bool = False,
    first_index: int = 0,
    batch_size: int | None = None,
    backend: str = "auto",
    **settings: Any,
) -> None:
    """Make what a folder of shards of a loaded run lacks, and say what was made.

    call_rows: of a network call. batch_size: rows in memory at once, cut down to whole calls; None
        is a shard. labels_of: labels of `count` samples from number `first` on.
    shards: numbers such as "3" and "5-7", or "all", which the processes take by number, without
        locks; none is all shards, each taken by who is free.
    settings: of `cldfast.sample`.

    Raises ValueError for a folder of other samples, and where samples come out non-finite.
    """
    if call_rows < 1:
        raise ValueError(f"call_rows: expected at least 1, got {call_rows}")
    guided = settings.get("guidance_scale") is not None
    manifest = Manifest(n, config.shape, shard_rows, files, {
        "network": _digest((Path(run) / MODEL).read_bytes(), (Path(run) / CONFIG).read_bytes()),
        "call_rows": call_rows,
        "sampler": settings | {"first_index": first_index, "labels": chosen},
        "plan": None if plan is None else _digest(*(m.tobytes() for m in plan.matrices())),
        "torch": torch.__version__, "device": device_of(net).type, "backend": backend,
    })  # fmt: skip
    at_once = max(1, min(batch_size or shard_rows, shard_rows) // call_rows) * call_rows

    def make(first: int, count: int) -> tuple[Tensor, Tensor | None]:
        parts, labels = [], []
        for start in range(0, count, at_once):
            size, where = min(at_once, count - start), first_index + first + start
            own = None if labels_of is None else labels_of(where, size)
            on_device = None if own is None else own.to(device_of(net))
            calls = FixedCalls(net, call_rows, on_device, guided)
            parts.append(
                sample_run(
                    calls,
                    sde,
                    config,
                    size,
                    plan=plan,
                    first_index=where,
                    backend=backend,
                    **settings,
                )  # fmt: skip
            )
            labels += [] if own is None else [own]
        return torch.cat(parts), torch.cat(labels) if labels else None

    rank, processes = process()
    by_number = (rank, processes) if shards else None
    to_make = Shards(folder, manifest, by_number, _numbers(shards))
    made = to_make.fill(make, progress=progress and rank == 0)
    who = f"process {rank} of {processes}" if processes > 1 else "this process"
    print(f"{folder}: {n} samples in {manifest.shards} shards, {made} by {who}")


def _numbers(texts: Sequence[str]) -> list[int] | None:
    """The numbers that texts such as "3" and "5-7" name; None for all."""
    if not texts or list(texts) == ["all"]:
        return None
    numbers: list[int] = []
    for text in texts:
        first, dash, last = text.partition("-")
        ends = (first, last if dash else first)
        if not all(end.isdecimal() for end in ends) or int(ends[0]) > int(ends[1]):
            raise ValueError(f"--shards: expected all, or numbers such as 3 and 5-7, got {text!r}")
        if int(ends[1]) >= _MOST_SHARDS:
            raise ValueError(f"--shards: expected numbers below {_MOST_SHARDS}, got {text!r}")
        numbers += range(int(ends[0]), int(ends[1]) + 1)
    return numbers


def _digest(*parts: bytes) -> str:
    return hashlib.sha256(b"".join(parts)).hexdigest()[:16]
