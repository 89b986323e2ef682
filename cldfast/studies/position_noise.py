"""Samples against the noise on the position: the experiment that the method is known for.

For each a and x_noise several networks are trained, and the sliced Wasserstein-2 distance of their
samples to the training rows is measured, in the units of the data, by several samplers. The floor
is that distance for exact samples.

Source: Strasman, Surendran et al. (2025), whose data, standardisation and distance these are:
50,000 rows drawn once and standardised by coordinate, 50,000 samples brought back to the units of
the data, 2,000 projections.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor, nn

from cldfast.extras import require
from cldfast.files import PathLike, read_tensors, write_tensors
from cldfast.fitting.fit import fit_plan
from cldfast.lab import plots
from cldfast.lab.data import make_data
from cldfast.lab.metrics import sliced_w2
from cldfast.sampling.run import sample
from cldfast.studies.kept import (
    Job,
    Row,
    add_run_options,
    environment,
    open_study,
    run_jobs,
    write_table,
)
from cldfast.studies.recipes import RECIPES, process
from cldfast.training import CHECKPOINT, Trainer
from cldfast.training.data_scale import DataScale

MODEL = "model.safetensors"
# Rows of a network call in sampling: the activations of so many stay in a processor's caches.
_BATCH = 2048
# The data are drawn once for all networks; exact samples for the floor have seeds of their own.
_DATA_SEED, _FLOOR_SEED = 0, 1000


@dataclass(frozen=True)
class Sampler:
    """A curve of the study: a solver with its options, or a plan fitted to each network."""

    solver: str
    steps: int
    options: tuple[tuple[str, Any], ...] = ()


SAMPLERS = {
    "auto 20": Sampler("auto", 20),
    "multistep 3, 20": Sampler("multistep", 20, (("order", 3), ("grid", "logistic"))),
    "fitted 8": Sampler("fitted", 8),
    "em 1000": Sampler("em", 1000, (("grid", "linear"),)),
    # As the published code samples: down to t = 0, with the noise of the last step.
    "em 1000, published": Sampler("em", 1000, (("grid", "linear"), ("t_min", 0.0))),
}


@dataclass(frozen=True)
class Sweep:
    """What is trained and measured.

    data, dim: of `cldfast.lab.data.make_data`. a, x_noise: of the published process. runs:
    networks for each. recipe: of `RECIPES`. steps: of training. samplers: of `SAMPLERS`. rows: of
    data, and samples drawn.
    """

    data: str
    dim: int
    a: tuple[float, ...] = (1.0,)
    x_noise: tuple[float, ...] = (0.0, 0.1, 0.25, 0.5, 1.0)
    runs: int = 5
    recipe: str = "edm"
    steps: int = 6_000
    samplers: tuple[str, ...] = ("auto 20", "multistep 3, 20", "em 1000")
    rows: int = 50_000
    projections: int = 2_000

    def __post_init__(self) -> None:
        for name in ("runs", "steps", "projections"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.rows < 2:
            raise ValueError(f"rows: expected at least 2, got {self.rows}")
        if self.recipe not in RECIPES:
            raise ValueError(f"recipe: expected one of {', '.join(RECIPES)}, got {self.recipe!r}")
        for name in self.samplers:
            if name not in SAMPLERS:
                raise ValueError(f"sampler: expected one of {', '.join(SAMPLERS)}, got {name!r}")
        make_data(self.data, self.dim)
        for a in self.a:
            for x_noise in self.x_noise:
                process(a, x_noise)


SWEEPS = {
    "funnel": Sweep("funnel", 100),
    "mg25": Sweep("gaussians25", 100, runs=2),
    "diamonds": Sweep("diamonds", 2, runs=2, steps=5_000, projections=256),
    "swiss-roll": Sweep("swiss_roll", 2, runs=2, steps=5_000, projections=256),
}
# Sliced W2 by x_noise of their figure for a = 1 and the funnel in d = 100: `em`, 1,000 evaluations.
_PUBLISHED = {0.0: 0.225, 0.25: 0.137}
# What `--quick` makes of a sweep: every part of it runs, and its figures say nothing.
_QUICK = {"runs": 1, "steps": 20, "rows": 500, "projections": 16, "x_noise": (0.0, 0.25)}


def position_noise_study(
    folder: PathLike, sweep: Sweep, *, device: str = "cpu", workers: int = 1, quiet: bool = False
) -> list[Row]:
    """Train, sample and measure, and write the table and the figure of a sweep; returns the rows.

    folder: made here; a study that is there already goes on. device: of training and sampling.
    workers: networks that are trained at the same time.

    Raises ValueError for a folder with another study, ImportError without POT or matplotlib.
    """
    require("ot", "matplotlib")
    path = open_study(folder, _deciding(sweep) | {"device": device})
    where = (str(path), sweep, device)
    cases = [
        (a, x, run) for run in range(1, sweep.runs + 1) for a in sweep.a for x in sweep.x_noise
    ]
    phases = [[Job(f"floor-{k}", _floor, (sweep, k)) for k in range(1, max(sweep.runs, 2) + 1)]]
    # Sampler by sampler, so that a study which is not done yet has whole curves.
    phases += [
        [
            Job(
                f"{_name(*case)}-{name.replace(',', '').replace(' ', '-')}",
                _judge,
                (*where, *case, name),
            )
            for case in cases
        ]
        for name in sweep.samplers
    ]
    rows: list[Row] = []
    for jobs in phases:
        rows += run_jobs(path, jobs, workers, quiet)
        write_table(path / f"{sweep.data}.csv", rows)
    plot(rows, path / f"{sweep.data}.png", sweep)
    return rows


def _deciding(sweep: Sweep) -> dict[str, Any]:
    """What a result depends on. Runs, processes and samplers may be added to a study later."""
    kept = ("data", "dim", "recipe", "steps", "rows", "projections")
    return {name: getattr(sweep, name) for name in kept}


def _name(a: float, x_noise: float, run: int) -> str:
    return f"a{a:g}-x{x_noise:g}-run{run}"


def _data(sweep: Sweep) -> tuple[Tensor, DataScale]:
    rows = make_data(sweep.data, sweep.dim).sample(sweep.rows, _DATA_SEED)
    return rows, DataScale.fit(rows)


def _distance(samples: Tensor, rows: Tensor, sweep: Sweep) -> float:
    return sliced_w2(samples.cpu(), rows, sweep.projections)


def _row(
    sweep: Sweep,
    a: float | None,
    x_noise: float | None,
    run: int,
    sampler: str,
    w2: float,
    device: str,
) -> Row:
    return {
        "data": sweep.data, "dim": sweep.dim, "a": a, "x_noise": x_noise, "recipe": sweep.recipe,
        "training_steps": sweep.steps, "run": run, "sampler": sampler, "sliced_w2": w2,
        **environment(device),
    }  # fmt: skip


def _floor(sweep: Sweep, number: int) -> list[Row]:
    """The distance of exact samples to the rows."""
    rows, _ = _data(sweep)
    exact = make_data(sweep.data, sweep.dim).sample(sweep.rows, _FLOOR_SEED + number)
    w2 = _distance(exact, rows, sweep)
    return [_row(sweep, None, None, number, "exact samples", w2, "cpu")]


def _network(
    folder: str, sweep: Sweep, device: str, a: float, x_noise: float, run: int
) -> nn.Module:
    """The network of a case; where it is not trained yet it is now, from its last checkpoint."""
    own = Path(folder) / "networks" / _name(a, x_noise, run)
    recipe = RECIPES[sweep.recipe]
    torch.manual_seed(run)
    net = recipe.network(sweep.dim, x_noise).to(device)
    if (own / MODEL).exists():
        net.load_state_dict(read_tensors(own / MODEL)[0])
        return net.eval()
    rows, scale = _data(sweep)
    trainer = Trainer(
        net, process(a, x_noise), scale.standardise(rows), recipe.config(x_noise, sweep.steps, run),
        folder=own, resume=True,
    )  # fmt: skip
    averaged = trainer.fit()
    write_tensors(own / MODEL, averaged.state_dict())
    (own / CHECKPOINT).unlink()
    return averaged


def _judge(
    folder: str, sweep: Sweep, device: str, a: float, x_noise: float, run: int, name: str
) -> list[Row]:
    """The distance of the samples that a sampler makes with the network of a case."""
    net = _network(folder, sweep, device, a, x_noise, run)
    rows, scale = _data(sweep)
    sde, recipe, sampler = process(a, x_noise), RECIPES[sweep.recipe], SAMPLERS[name]
    form = recipe.form(x_noise)
    how: dict[str, Any] = dict(sampler.options)
    if sampler.solver == "fitted":
        standardised = scale.standardise(rows).to(device)
        fit = fit_plan(net, sde, standardised, sampler.steps, parameterization=form, seed=run)
        how["plan"] = fit.plan
    else:
        how |= {"solver": sampler.solver, "steps": sampler.steps, "parameterization": form}
    with torch.no_grad():
        x = sample(
            net, sde, (sweep.rows, sweep.dim), seed=run, batch_size=_BATCH, device=device, **how
        )  # fmt: skip
    assert isinstance(x, Tensor)  # no velocity is asked for
    w2 = _distance(scale.restore(x), rows, sweep)
    return [_row(sweep, a, x_noise, run, name, w2, device)]


def plot(rows: Sequence[Row], path: PathLike, sweep: Sweep) -> None:
    """Distance against x_noise: a panel for each a, a curve for each sampler, and the floor.

    Points are means over runs, bars one standard deviation of a run.
    """
    figure = plots.new_figure(1.2 + 4.0 * len(sweep.a), 4.2)
    panels = figure.subplots(1, len(sweep.a), sharey=True, squeeze=False)[0]
    floor = [row["sliced_w2"] for row in rows if row["sampler"] == "exact samples"]
    for axes, a in zip(panels, sweep.a, strict=True):
        axes.axhspan(min(floor), max(floor), color="0.6", alpha=0.5, label="two exact samples")
        for index, sampler in enumerate(sweep.samplers):
            points = []
            for x_noise in sweep.x_noise:
                found = [
                    row["sliced_w2"] for row in rows
                    if (row["a"], row["x_noise"], row["sampler"]) == (a, x_noise, sampler)
                ]  # fmt: skip
                if found:
                    spread = stdev(found) if len(found) > 1 else 0.0
                    points.append((x_noise, mean(found), spread))
            if points:
                where, height, spreads = zip(*points, strict=True)
                axes.errorbar(
                    where, height, yerr=spreads, capsize=3,
                    color=plots.COLOURS[index], marker=plots.MARKERS[index], label=sampler,
                )  # fmt: skip
        if (sweep.data, sweep.dim, a) == ("funnel", 100, 1.0):
            axes.plot(*zip(*_PUBLISHED.items(), strict=True), "k*", label="published, em 1000")
        axes.set(xlabel="x_noise", title=f"{sweep.data}, d = {sweep.dim}, a = {a:g}")
        axes.set_ylim(bottom=0.0)
        axes.grid(True, alpha=0.3)
    panels[0].set_ylabel("sliced W2 to the training rows")
    panels[0].legend(frameon=False, fontsize="small")
    plots.save(figure, path)


def add_options(parser: argparse.ArgumentParser, sweep: Sweep) -> None:
    """The options of a sweep, whose defaults are its own."""
    add_run_options(parser)
    parser.add_argument("--device", default="cpu", help="of the networks (%(default)s)")
    if sweep.data in ("funnel", "gaussians25"):
        parser.add_argument("--dim", type=int, default=sweep.dim, help="coordinates (%(default)s)")
    for name, text in (("a", "inverse time scales"), ("x_noise", "noise on the position")):
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=float, nargs="+", default=getattr(sweep, name),
            metavar="VALUE", help=f"{text} (%(default)s)",
        )  # fmt: skip
    for name, text in (("runs", "networks for each point"), ("steps", "training steps")):
        parser.add_argument(
            f"--{name}", type=int, default=getattr(sweep, name), help=f"{text} (%(default)s)"
        )
    parser.add_argument(
        "--samplers", nargs="+", choices=SAMPLERS, default=None, metavar="SAMPLER",
        help=f"curves, of {', '.join(SAMPLERS)} ({', '.join(sweep.samplers)})",
    )  # fmt: skip
    parser.add_argument(
        "--published",
        action="store_true",
        help="the networks, losses and settings of the published code, and its sampler",
    )


def run(args: argparse.Namespace, sweep: Sweep) -> list[str]:
    """The study of parsed options; the files it made."""
    given: dict[str, Any] = {
        "dim": getattr(args, "dim", sweep.dim), "a": tuple(args.a), "x_noise": tuple(args.x_noise),
        "runs": args.runs, "steps": args.steps,
    }  # fmt: skip
    if args.published:
        given |= {"recipe": "published", "samplers": ("em 1000, published",)}
    if args.samplers is not None:
        given["samplers"] = tuple(args.samplers)
    chosen = replace(sweep, **(given | (_QUICK if args.quick else {})))
    position_noise_study(
        args.out, chosen, device=args.device, workers=args.workers, quiet=args.quiet
    )
    return [f"{sweep.data}.csv", f"{sweep.data}.png"]
