"""The networks of the studies, each trained once from a seed and kept under `runs/studies`."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from cldfast.app.run_folder import METRICS, RunConfig, load_run
from cldfast.app.runs import train_run
from cldfast.lab.models import MLPScore, UNetScore
from cldfast.process.sde import CLD, LinearPhaseSDE
from cldfast.training.config import TrainConfig

RUNS = Path(__file__).resolve().parents[1] / "runs" / "studies"
ROWS = 50_000


def funnel(
    dim: int = 20,
    *,
    sde: LinearPhaseSDE | None = None,
    parameterization: str = "mixed",
    steps: int = 15_000,
    width: int = 256,
    batch_size: int = 512,
    clip: float | None = None,
    seed: int = 0,
) -> RunConfig:
    """An MLP on 50,000 points of the Funnel; the last layer has 2 dim outputs for a full score.

    Clipping is off: batches with points of the far tail have the large gradients, and a network
    trained with clip = 1 makes tails that are too light.
    """
    train = TrainConfig(
        steps=steps, batch_size=batch_size, lr=2e-3, decay="cosine", clip=clip,
        parameterization=parameterization, seed=seed,
    )  # fmt: skip
    planes = 2 if parameterization.startswith("full") else 1
    return RunConfig(
        sde=(sde or CLD()).config(),
        model=MLPScore(dim, planes * dim, width).config(),
        shape=(dim,),
        parameterization=parameterization,
        t_min=train.t_min,
        data={"name": "funnel", "dim": dim, "rows": ROWS, "seed": 0, "scale": 1.0},
        train=asdict(train),
    )


def digits(*, steps: int = 3_000, width: int = 32, seed: int = 0) -> RunConfig:
    """The demo's U-Net on the digits."""
    train = TrainConfig(
        steps=steps, batch_size=128, lr=2e-3, decay="cosine", ema_decay=0.998,
        parameterization="noise", seed=seed,
    )  # fmt: skip
    return RunConfig(
        sde=CLD().config(),
        model=UNetScore(channels=1, width=width).config(),
        shape=(1, 8, 8),
        parameterization=train.parameterization,
        t_min=train.t_min,
        data={"name": "digits", "dim": 64, "scale": 1.0},
        train=asdict(train),
    )


def trained(
    config: RunConfig, root: Path = RUNS
) -> tuple[nn.Module, LinearPhaseSDE, dict[str, Any]]:
    """The network of a config, its process and its training's metrics; trains where none is kept.

    The folder's name is the config's: another setting is another network.
    """
    described = asdict(config)
    del described["versions"]
    key = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:12]
    folder = root / f"{config.data['name']}-{key}"  # type: ignore[index]
    if not (folder / METRICS).exists():
        train_run(folder, config, resume=folder.exists())
    net, sde, _ = load_run(folder)
    return net, sde, json.loads((folder / METRICS).read_text())
