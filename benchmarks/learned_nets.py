"""The networks of the studies, each trained once from a seed and kept under `runs/studies`."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import nn

from cldfast.app.new_run import run_config
from cldfast.app.runs import train_run
from cldfast.model.run_folder import METRICS, RunConfig, load_run
from cldfast.process.sde import LinearPhaseSDE

RUNS = Path(__file__).resolve().parents[1] / "runs" / "studies"
ROWS = 50_000


def funnel(dim: int = 20, **changes: Any) -> RunConfig:
    """An MLP on 50,000 points of the Funnel; changes: options of `cldfast train`, by name.

    Clipping is off: batches with points of the far tail have the large gradients, and a network
    trained with clip = 1 makes tails that are too light. The data are the same for every seed.
    """
    options = {
        "data": "funnel", "dim": dim, "rows": ROWS, "steps": 15_000, "batch_size": 512, "lr": 2e-3,
        "decay": "cosine", "clip": 0.0, "parameterization": "mixed", "times": "uniform",
        "standardise": False,
    }  # fmt: skip
    config = run_config(options | changes)
    return replace(config, data=(config.data or {}) | {"seed": 0})


def digits(**changes: Any) -> RunConfig:
    """The demo's U-Net on the digits; changes: options of `cldfast train`, by name."""
    options = {
        "data": "digits", "width": 32, "steps": 3_000, "batch_size": 128, "lr": 2e-3,
        "decay": "cosine", "ema_decay": 0.998, "parameterization": "noise",
        "times": "uniform", "standardise": False,
    }  # fmt: skip
    return run_config(options | changes)


def trained(
    config: RunConfig, root: Path = RUNS
) -> tuple[nn.Module, LinearPhaseSDE, dict[str, Any]]:
    """The network of a config, its process and its training's metrics; trains where none is kept.

    The folder's name is the config's: another setting is another network.
    """
    described = asdict(config)
    del described["versions"]
    # Networks of the default objective keep the names that they had before there was a choice.
    if described["train"]["objective"] == "hsm":
        del described["train"]["objective"]
    key = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:12]
    folder = root / f"{config.data['name']}-{key}"  # type: ignore[index]
    if not (folder / METRICS).exists():
        train_run(folder, config, resume=folder.exists())
    net, sde, _ = load_run(folder)
    return net, sde, json.loads((folder / METRICS).read_text())
