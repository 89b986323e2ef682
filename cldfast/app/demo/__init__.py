"""The demo: handwritten digits from a small network that comes with the package, or a new one.

Writes into one folder: `samples.png`, `quality.png`, `loss.png`, `report.json`, and where it trains
first the run folder `run/`.
"""

from __future__ import annotations

import os
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cldfast.app.demo.quality import (
    CURVES,
    EVALUATIONS,
    FITTED,
    Sampler,
    equal_quality,
    measure,
    series,
)
from cldfast.app.demo.table import table
from cldfast.app.new_run import run_config
from cldfast.app.plans import fit_run, plan_path
from cldfast.app.runs import remove_run, sample_run, train_run
from cldfast.bench.results import processor
from cldfast.extras import require
from cldfast.files import PathLike, write_json
from cldfast.info import info
from cldfast.lab.data import Digits
from cldfast.lab.metrics import classify, nearest_ratio, sliced_w2
from cldfast.lab.models import build_model
from cldfast.lab.plots import image_grid, loss_curve, quality_curve
from cldfast.model.run_folder import RunConfig, load_run
from cldfast.planner.plan import Plan
from cldfast.process.sde import LinearPhaseSDE, sde_from_config
from cldfast.training import TrainConfig, Trainer

# The run folder in the package, made by `cldfast train` and `cldfast fit` with these options; the
# commands stand in docs/learning.md.
NETWORK = Path(__file__).parent / "network"
TRAINED_BY: dict[str, Any] = {
    "data": "digits", "conditional": True, "width": 16, "steps": 3_000, "lr": 2e-3,
    "decay": "cosine", "ema_decay": 0.998,
}  # fmt: skip
FITTED_BY: dict[str, Any] = {"steps": 60, "batch_size": 512}

SAMPLES = 512
# Examples of each digit in the picture.
COLUMNS = 16
# Without `minutes` the demo ends within two minutes: training takes what is left of this many
# seconds, at least the second number and at most the third.
_SECONDS, _LEAST, _MOST = 105.0, 15.0, 60.0
# Steps whose mean is the loss before and after a short training.
_AVERAGED = 20

SAMPLES_PLOT, QUALITY_PLOT, LOSS_PLOT = "samples.png", "quality.png", "loss.png"
REPORT = "report.json"

Report = dict[str, Any]
_say = partial(print, flush=True)


def run_demo(
    out: PathLike = "demo",
    *,
    minutes: float | None = None,
    train: bool = False,
    samples: int = SAMPLES,
    seed: int = 0,
    progress: bool = False,
) -> Report:
    """Sample, measure, train for a while, write and print; returns what `report.json` holds.

    out: folder, made if needed; what an earlier demo left in it is replaced. minutes: of training
    after the sampling, 0 for none; None is one at most. train: train the network and fit its plan
    first, instead of taking that of the package. samples: images to draw for the measurements.
    seed: of sampling and training.

    Raises ValueError for bad numbers or a path that is no folder, ImportError for missing extras.
    """
    started = time.perf_counter()
    require("sklearn", "matplotlib", "ot")
    if samples < 2:
        raise ValueError(f"samples: expected at least 2, got {samples}")
    if minutes is not None and not 0.0 <= minutes < float("inf"):
        raise ValueError(f"minutes: expected a finite number >= 0, got {minutes}")
    folder = _emptied(out)
    report: Report = {"machine": {"processor": processor(), "cpus": os.cpu_count(), **info()}}
    run = NETWORK
    if train:
        run = folder / "run"
        report["training"] = _train(run, seed, progress)
    # From here on the demo uses what any reader of a run folder gets.
    net, sde, config = load_run(run)
    report |= _sampling(folder, net, sde, config, plan_path(run, EVALUATIONS), samples, seed)
    if not train and minutes != 0.0:
        seconds = min(_MOST, max(_LEAST, _SECONDS - (time.perf_counter() - started)))
        seconds = seconds if minutes is None else 60.0 * minutes
        report["training"] = _train_a_while(folder, seconds, seed)
    report["seconds"] = round(time.perf_counter() - started, 3)
    write_json(folder / REPORT, report)
    _say(table(report))
    _say(f"\nin {folder}: {', '.join(sorted(p.name for p in folder.iterdir()))}")
    return report


def _emptied(out: PathLike) -> Path:
    """The folder, without what an earlier demo left in it."""
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder}: expected a folder, found a file")
    folder.mkdir(parents=True, exist_ok=True)
    remove_run(folder / "run")
    for name in (SAMPLES_PLOT, QUALITY_PLOT, LOSS_PLOT, REPORT):
        (folder / name).unlink(missing_ok=True)
    return folder


def _train(run: Path, seed: int, progress: bool) -> Report:
    """Train the network and fit its plan, as those of the package."""
    config = run_config(TRAINED_BY | {"seed": seed})
    _say(f"training a U-Net on the digits, {TRAINED_BY['steps']} steps, and fitting a plan")
    report = train_run(run, config, progress=progress)
    fit_run(run, EVALUATIONS, progress=progress, **FITTED_BY)
    return report


def _sampling(
    folder: Path,
    net: torch.nn.Module,
    sde: LinearPhaseSDE,
    config: RunConfig,
    fitted: Path,
    samples: int,
    seed: int,
) -> Report:
    """The picture and the measurements."""
    plan = Plan.load(fitted, sde, config.form)
    improved = Plan.figures(fitted).get("improved")
    digits = Digits()
    labels = torch.arange(samples, device="cpu") % config.model["classes"]
    draw = partial(sample_run, net, sde, config, seed=seed)
    _say(f"drawing digits with {plan.evaluations} evaluations of the network")
    shown = torch.arange(10, device="cpu").repeat_interleave(COLUMNS)
    image_grid(draw(len(shown), labels=shown, plan=plan), folder / SAMPLES_PLOT, 10, COLUMNS)
    _say(f"measuring quality against evaluations, {samples} digits each")
    samplers = [Sampler(name, n, published) for name, published, counts in CURVES for n in counts]
    samplers.insert(0, Sampler(FITTED, plan.evaluations, plan=plan))
    drawn, points = measure(samplers, partial(draw, samples, labels=labels), digits.test_x)
    floor = sliced_w2(digits.train_x, digits.test_x)
    quality_curve(series(points), floor, folder / QUALITY_PLOT, f"{samples} digits")
    read = classify(drawn, digits.train_x, digits.train_y)
    return {
        "sampling": {
            "samples": samples, "seed": seed, "t_min": config.t_min, "floor": floor,
            "points": points, "equal_quality": equal_quality(points),
        },
        "fitted": {
            "evaluations": plan.evaluations, "improved": improved,
            "read_as_asked": float((torch.from_numpy(read) == labels).double().mean()),
            "nearest_train_over_test_median": nearest_ratio(drawn, digits.train_x, digits.test_x),
        },
        "parameters": sum(p.numel() for p in net.parameters()),
    }  # fmt: skip


def _train_a_while(folder: Path, seconds: float, seed: int) -> Report:
    """Train a new network for so many seconds, and draw its loss."""
    _say(f"training a new network for {seconds:.0f} s")
    # A short warm-up, so that little time shows a fall.
    config = run_config(TRAINED_BY | {"seed": seed, "decay": "constant", "warmup": _AVERAGED})
    assert config.train is not None
    digits = Digits()
    data: tuple[Tensor, Tensor] = (config.scaled(digits.train_x), digits.train_y)
    torch.manual_seed(seed)
    net = build_model(config.model)
    trainer = Trainer(net, sde_from_config(config.sde), data, TrainConfig.from_dict(config.train))
    losses: list[float] = []
    began = time.perf_counter()
    # One step at least, however little time there is.
    while not losses or time.perf_counter() - began < seconds:
        losses.append(trainer.train_step()[0])
    loss_curve(range(1, len(losses) + 1), losses, folder / LOSS_PLOT)
    averaged = max(1, min(_AVERAGED, len(losses) // 2))
    return {
        "steps": len(losses), "seconds": round(time.perf_counter() - began, 3),
        "loss_at_first": sum(losses[:averaged]) / averaged,
        "loss_at_last": sum(losses[-averaged:]) / averaged,
    }  # fmt: skip
