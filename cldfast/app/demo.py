"""The demo: train on real handwritten digits, sample them, and measure quality and speed.

Writes into one folder: `run/` (a run folder), `samples.png`, `quality.png`, `report.json`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from cldfast.app.new_run import run_config
from cldfast.app.runs import plot_losses, remove_run, sample_run, train_run
from cldfast.bench.cases import Network
from cldfast.bench.measure import TimedNetwork
from cldfast.bench.results import processor
from cldfast.extras import require
from cldfast.files import PathLike, write_json
from cldfast.info import info
from cldfast.kernels import missing_backend
from cldfast.lab.data import Digits
from cldfast.lab.metrics import class_fractions, nearest_ratio, sliced_w2
from cldfast.lab.plots import image_grid, quality_curve
from cldfast.model.run_folder import load_run

TRAIN_STEPS = 3_000
SAMPLES = 1_024
EVALUATIONS = 50
# For the quality curve; the last evaluation of each is spent on the clean estimate.
CURVE_EVALUATIONS = (5, 10, 20, 50, 100)
# Uniform grey has a smaller distance than this, so the curve leaves out what is farther away.
DIVERGED = 1.0
# Of the quality curve: the default beside two others, with their grids; None is that of "auto".
SOLVERS = {"em": "quadratic", "sscs": "quadratic", "auto": None}

SAMPLES_PLOT = "samples.png"
QUALITY_PLOT = "quality.png"
REPORT = "report.json"

# A time is the smallest of this many rounds, taken in turns: other work can only make it longer.
TIMING_ROUNDS = 2

Report = dict[str, Any]
Curve = dict[str, list[float | None]]
_say = partial(print, flush=True)
# `draw(net, steps=...)`, with more options of `cldfast.sample`; each run ends with one evaluation
# more than it has steps, the clean estimate.
Draw = Callable[..., Tensor]


def run_demo(
    out: PathLike = "demo",
    *,
    train_steps: int = TRAIN_STEPS,
    samples: int = SAMPLES,
    seed: int = 0,
    progress: bool = False,
) -> Report:
    """Train, sample, measure, write and print; returns what `report.json` holds.

    out: folder, made if needed; what an earlier demo left in it is replaced. samples: images to
    draw. seed: of weights, data order, training and sampling noise.

    Raises ValueError for bad numbers or a path that is no folder, ImportError for missing extras.
    """
    require("sklearn", "matplotlib", "ot")
    if samples < 2:
        raise ValueError(f"samples: expected at least 2, got {samples}")
    started = time.perf_counter()
    config = run_config(
        {
            "data": "digits", "width": 32, "steps": train_steps, "batch_size": 128, "lr": 2e-3,
            "decay": "cosine", "ema_decay": 0.998, "parameterization": "noise", "seed": seed,
        }
    )  # fmt: skip
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder}: expected a folder, found a file")
    folder.mkdir(parents=True, exist_ok=True)
    digits = Digits()
    run = folder / "run"
    # Nothing of an earlier demo may stand beside the results of this one.
    remove_run(run)
    for name in (SAMPLES_PLOT, QUALITY_PLOT, REPORT):
        (folder / name).unlink(missing_ok=True)
    _say(f"training a U-Net on {len(digits.train_x)} digits, {train_steps} steps")
    training = train_run(run, config, progress=progress)
    plot_losses(run)
    # From here on the demo uses what any reader of the run folder gets.
    net, sde, config = load_run(run)

    _say(f"drawing {samples} digits with {EVALUATIONS} network evaluations")
    floor = sliced_w2(digits.train_x, digits.test_x)
    draw = partial(sample_run, sde=sde, config=config, n=samples, denoise=True, seed=seed)
    drawn, speed = _compare_backends(net, draw)
    image_grid(drawn, folder / SAMPLES_PLOT)
    _say("measuring quality against network evaluations")
    curve = _quality(net, draw, digits.test_x)
    _plot_quality(curve, floor, folder / QUALITY_PLOT, f"{samples} digits")
    distance = sliced_w2(drawn, digits.test_x)
    fractions = class_fractions(drawn, digits.train_x, digits.train_y)
    report: Report = {
        "training": training,
        "sampling": {
            "samples": samples, "solver": "auto", "evaluations": EVALUATIONS,
            "t_min": config.t_min, "seed": seed,
        },
        "quality": {
            "sliced_w2_samples_to_test": distance,
            "sliced_w2_train_to_test": floor,
            "ratio": distance / floor,
            "class_fractions": fractions.tolist(),
            "nearest_train_over_test_median": nearest_ratio(drawn, digits.train_x, digits.test_x),
            "evaluations": list(CURVE_EVALUATIONS),
            "sliced_w2_by_solver": curve,
        },
        "speed": speed,
        "seconds": round(time.perf_counter() - started, 3),
        "machine": {"processor": processor(), "cpus": os.cpu_count(), **info()},
    }  # fmt: skip
    write_json(folder / REPORT, report)
    _say(_table(report))
    return report


def _compare_backends(net: Network, draw: Draw) -> tuple[Tensor, Report]:
    """Samples of the fused kernel, and its times beside those of plain PyTorch, noise alike."""
    missing = missing_backend("cpu")
    names = ["reference"] if missing else ["cpu", "reference"]
    drawn: dict[str, Tensor] = {}
    speed: Report = {"rounds": TIMING_ROUNDS}
    for name in names * TIMING_ROUNDS:
        # Thread pools start and memory is mapped before the clock runs.
        draw(net, steps=1, backend=name)
        timed = TimedNetwork(net)
        start = time.perf_counter()
        drawn[name] = draw(timed, steps=EVALUATIONS - 1, backend=name)
        seconds = {
            "network_seconds": timed.seconds,
            "integrator_seconds": time.perf_counter() - start - timed.seconds,
        }
        best = speed.setdefault("fused" if name == "cpu" else name, seconds)
        for what, value in seconds.items():
            best[what] = min(best[what], value)
    if missing:
        speed |= {"fused": None, "core_missing": missing}
    else:
        reference = drawn["reference"]
        gap = (drawn["cpu"] - reference).abs().max() / reference.abs().max()
        speed["largest_relative_difference"] = float(gap)
        speed["integrator_reference_over_fused"] = (
            speed["reference"]["integrator_seconds"] / speed["fused"]["integrator_seconds"]
        )
    return drawn[names[0]], speed


def _quality(net: Network, draw: Draw, test: Tensor) -> Curve:
    """Sliced W2 to the test set by solver and number of evaluations; None where it diverged."""
    curve: Curve = {name: [] for name in SOLVERS}
    for name, values in curve.items():
        for evaluations in CURVE_EVALUATIONS:
            try:
                drawn = draw(net, steps=evaluations - 1, solver=name, grid=SOLVERS[name])
                values.append(sliced_w2(drawn, test))
            except ValueError as error:
                if "diverged" not in str(error):
                    raise
                values.append(None)
    return curve


def _plot_quality(curve: Curve, floor: float, path: Path, title: str) -> None:
    series = {
        name: (CURVE_EVALUATIONS, [np.nan if w is None or w > DIVERGED else w for w in values])
        for name, values in curve.items()
    }
    quality_curve(series, floor, path, title=title)


def _table(report: Report) -> str:
    quality, speed = report["quality"], report["speed"]
    fractions = quality["class_fractions"]
    lines = [
        "",
        f"sliced W2 to the test set   samples {quality['sliced_w2_samples_to_test']:.4f}, "
        f"training set {quality['sliced_w2_train_to_test']:.4f}, ratio {quality['ratio']:.2f}",
        f"classes                     {sum(f > 0 for f in fractions)} of 10 found, "
        f"{100 * min(fractions):.1f} % to {100 * max(fractions):.1f} % each",
        f"nearest training image      {quality['nearest_train_over_test_median']:.2f} of a test "
        "image's distance",
        "",
        "sliced W2 by evaluations    " + "".join(f"{n:>9}" for n in quality["evaluations"]),
    ]
    for name, values in quality["sliced_w2_by_solver"].items():
        cells = "".join(f"{'diverged' if w is None else format(w, '.4f'):>9}" for w in values)
        lines.append(f"  {name:<26}{cells}")
    lines += ["", f"seconds, {EVALUATIONS} evaluations      {'network':>9}{'integrator':>12}"]
    for name in ("fused", "reference"):
        if row := speed[name]:
            network, integrator = row["network_seconds"], row["integrator_seconds"]
            lines.append(f"  {name:<26}{network:>9.2f}{integrator:>12.4f}")
    if speed["fused"] is not None:
        lines.append(
            f"  integrator {speed['integrator_reference_over_fused']:.1f} times faster, same "
            f"samples to {speed['largest_relative_difference']:.1e}"
        )
    seconds, training = report["seconds"], report["training"]["seconds"]
    lines += ["", f"{seconds:.0f} s in all, {training:.0f} s of them training"]
    return "\n".join(lines)
