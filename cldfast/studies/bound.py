"""The Wasserstein bound of CLD against what is measured.

Strasman, Surendran et al. (2025) bound the distance of samples to the data by

    c1 exp(-c2 T) + c2 M + c3 sqrt(T/N)

with T the end time, M the size of the score's error and N the number of steps. Each term is
measured alone, for noise on the position or none: on Gaussian data exactly, from the law of the
plan; on the 25 Gaussians with exact scores from two sets of samples that share their noise, as the
sliced Wasserstein distance of the sets, and as the root mean squared distance of the pairs. The
latter is an upper bound of the Wasserstein distance; pairs that end in two Gaussians rule it.

The measured rates stand beside those of the bound. Where they differ the bound is loose: noise that
does not depend on the state (additive noise) lets the Euler scheme converge with order 1 and not
1/2, pathwise and in law.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy.stats import linregress
from scipy.stats import t as student
from torch import Tensor

from cldfast.extras import require
from cldfast.files import PathLike
from cldfast.lab import plots
from cldfast.lab.data import gaussians25
from cldfast.lab.metrics import sliced_w2
from cldfast.lab.mixture import GaussianMixture
from cldfast.network import Network
from cldfast.planner.make_plan import make_plan
from cldfast.sampling.run import initial_state, sample
from cldfast.studies.kept import Job, Row, add_run_options, open_study, run_jobs, write_table
from cldfast.studies.recipes import process

X_NOISE = (0.0, 0.25, 0.5, 1.0)
A = 1.0
DATA_MEAN, DATA_VAR = 0.5, 0.25
T_MIN = 1e-3
# The rates of the bound. The start forgets the data like exp(-a tau) and the way back forgets the
# start as fast again; at critical damping both times a polynomial in tau, which makes the measured
# rate over a finite range smaller.
BOUND = {
    "initialisation": 2.0 * A * float(process(A, 0.0).tau(1.0)),
    "score": 1.0,
    "steps": -0.5,
    "time": 0.5,
}
# What is varied, and the values: T, M, N, and T with N fixed.
VALUES: dict[str, tuple[float, ...]] = {
    "initialisation": (0.25, 0.5, 0.75, 1.0, 1.25),
    "score": (0.02, 0.05, 0.1, 0.2),
    "steps": (16, 32, 64, 128, 256),
    "time": (0.5, 1.0, 1.5, 2.0),
}
# Steps where they are not what is varied, and of the path that the others are measured against.
STEPS, FIXED_STEPS, FINE_STEPS = 128, 64, 1024
SAMPLES, REPEATS = 1_000, 3
_PROJECTIONS = 128


def exact_errors(term: str, x_noise: float, values: Sequence[float]) -> list[Row]:
    """One term on data `N(0.5, 0.25)`: Wasserstein-2 distances in x, by the law of the plan."""
    rows: list[Row] = []
    for value in values:
        end = value if term in ("initialisation", "time") else 1.0
        steps = {"steps": int(value), "time": FIXED_STEPS}.get(term, STEPS)
        size = value if term == "score" else 0.0
        form = "full_score" if x_noise else "score"
        plan = make_plan(
            process(A, x_noise, end),
            "em",
            steps,
            "linear",
            T_MIN,
            parameterization=form,
            denoise=False,
        )
        budget = plan.error_budget(DATA_MEAN, DATA_VAR, size)
        name = term if term in ("initialisation", "score") else "discretisation"
        rows.append(_row("gaussian", "W2", term, x_noise, value, 0, getattr(budget, name)))
    return rows


def coupled_errors(
    term: str, x_noise: float, values: Sequence[float], repeat: int, samples: int, fine: int
) -> list[Row]:
    """One term on the 25 Gaussians: distances of two sets of samples with the same noise."""
    data = gaussians25()
    draw = partial(_draw, data, x_noise, samples=samples, seed=repeat)
    rows: list[Row] = []
    for value in values:
        if term == "initialisation":
            steps = int(STEPS * max(1.0, value))
            pair = [draw(steps, value, exact_start=exact) for exact in (False, True)]
        elif term == "score":
            pair = [draw(STEPS, 1.0, size=size) for size in (0.0, value)]
        elif term == "steps":
            pair = [draw(steps, 1.0) for steps in (int(value), fine)]
        else:
            pair = [draw(steps, value) for steps in (FIXED_STEPS, fine)]
        errors = {
            "sliced W2": sliced_w2(pair[0], pair[1], _PROJECTIONS),
            "pathwise": float((pair[0] - pair[1]).square().sum(1).mean().sqrt()),
        }
        for measure, error in errors.items():
            rows.append(_row("gaussians25", measure, term, x_noise, value, repeat, error))
    return rows


def _draw(
    data: GaussianMixture,
    x_noise: float,
    steps: int,
    end: float,
    *,
    samples: int,
    seed: int,
    size: float = 0.0,
    exact_start: bool = False,
) -> Tensor:
    """Samples by `em` on one Brownian path for each, whatever the number of steps."""
    sde, form = process(A, x_noise, end), "full_score" if x_noise else "score"
    exact = data.network(sde, form)
    start = initial_state(sde, (samples, data.dim), seed=seed, dtype=torch.float64)
    if exact_start:
        # The same normals z, with the mean and the factor of the law at T for those of the start.
        law, prior = sde.marginal(sde.T), torch.from_numpy(sde.prior().factor)
        z = torch.linalg.solve(prior, start.unflatten(1, (2, -1)))
        x0 = data.sample(samples, seed).double()
        moved = torch.from_numpy(law.factor) @ z + torch.from_numpy(law.mean)[:, None] * x0[:, None]
        start = moved.flatten(1)

    def net(u: Tensor, t: Tensor) -> Tensor:
        out = exact(u, t)
        out[:, -1] += size  # on one velocity score, so that the error has this length
        return out

    network: Network = net if size else exact
    x = sample(
        network, sde, (samples, data.dim), "em", steps, "linear", t_min=T_MIN, seed=seed,
        noise="brownian", init=start, dtype=torch.float64, parameterization=form, denoise=False,
    )  # fmt: skip
    assert isinstance(x, Tensor)
    return x


def _row(
    data: str, measure: str, term: str, x_noise: float, value: float, repeat: int, error: float
) -> Row:
    return {
        "data": data, "measure": measure, "term": term, "x_noise": x_noise, "value": value,
        "repeat": repeat, "error": error,
    }  # fmt: skip


def rates(rows: Sequence[Row]) -> list[Row]:
    """For each term, x_noise and data the measured rate with a 95 % interval, and the bound's.

    The rate of the initialisation is that of an exponential in T, the others are exponents. On
    exact errors the interval is that of the line through the points: how far they are from one. On
    repeated ones it is that of the mean over the repeats.
    """
    found: list[Row] = []
    columns = ("data", "measure", "term", "x_noise")
    for key in dict.fromkeys(tuple(row[name] for name in columns) for row in rows):
        own = [row for row in rows if tuple(row[name] for name in columns) == key]
        term = key[2]
        lines = []
        for repeat in dict.fromkeys(row["repeat"] for row in own):
            points = [(row["value"], row["error"]) for row in own if row["repeat"] == repeat]
            x, y = np.log(np.array(points)).T
            if term == "initialisation":
                x = -np.exp(x)
            lines.append(linregress(x, y))
        slopes = np.array([line.slope for line in lines])
        if len(lines) > 1:
            error, freedom = slopes.std(ddof=1) / math.sqrt(len(slopes)), len(slopes) - 1
        else:
            error, freedom = lines[0].stderr, len(x) - 2
        reach = float(student.ppf(0.975, freedom) * error)
        rate = float(slopes.mean())
        made = {"rate": rate, "low": rate - reach, "high": rate + reach, "bound": BOUND[term]}
        found.append(dict(zip(columns, key, strict=True)) | made)
    return found


def bound_study(
    folder: PathLike,
    values: dict[str, tuple[float, ...]] | None = None,
    samples: int = SAMPLES,
    repeats: int = REPEATS,
    fine: int = FINE_STEPS,
    *,
    workers: int = 1,
    quiet: bool = False,
) -> list[Row]:
    """Measure every term and write bound.csv, bound_rates.csv and bound.png; returns the rates."""
    require("ot", "matplotlib")
    values = VALUES if values is None else values
    path = open_study(folder, {"values": values, "samples": samples, "fine": fine})
    cases = [(term, x_noise) for term in values for x_noise in X_NOISE]
    jobs = [
        Job(f"gaussian-{term}-x{x:g}", exact_errors, (term, x, values[term])) for term, x in cases
    ]
    jobs += [
        Job(f"gaussians25-{term}-x{x:g}-{repeat}", coupled_errors,
            (term, x, values[term], repeat, samples, fine))
        for repeat in range(1, repeats + 1) for term, x in cases
    ]  # fmt: skip
    rows = run_jobs(path, jobs, workers, quiet)
    found = rates(rows)
    write_table(path / "bound.csv", rows)
    write_table(path / "bound_rates.csv", found)
    plot(rows, path / "bound.png")
    return found


_LABELS: dict[str, tuple[str, str]] = {
    "initialisation": ("end time T", "initialisation"),
    "score": ("error M of the score", "score"),
    "steps": ("steps N, T = 1", "discretisation"),
    "time": (f"end time T, N = {FIXED_STEPS}", "discretisation"),
}


def plot(rows: Sequence[Row], path: PathLike) -> None:
    """A panel for each term and data; dotted, a line with the rate of the bound."""
    figure = plots.new_figure(12.0, 6.4)
    panels = figure.subplots(2, len(_LABELS), sharey="col", squeeze=False)
    titles = {"gaussian": "Gaussian data, exact W2", "gaussians25": "25 Gaussians, sliced W2"}
    for line, (data, title) in zip(panels, titles.items(), strict=True):
        for axes, (term, (label, name)) in zip(line, _LABELS.items(), strict=True):
            own = [
                row for row in rows
                if (row["data"], row["term"]) == (data, term) and row["measure"] != "pathwise"
            ]  # fmt: skip
            draw: Callable[..., Any] = axes.semilogy if term == "initialisation" else axes.loglog
            for index, x_noise in enumerate(X_NOISE):
                points = _means([row for row in own if row["x_noise"] == x_noise])
                draw(
                    *points, color=plots.COLOURS[index], marker=plots.MARKERS[index],
                    label=f"x_noise {x_noise:g}",
                )  # fmt: skip
            first, height = _means([row for row in own if row["x_noise"] == 0.0])
            slope = BOUND[term]
            x = np.array(first)
            guide = np.exp(-slope * (x - x[0])) if term == "initialisation" else (x / x[0]) ** slope
            draw(x, height[0] * guide, "k:", label="rate of the bound")
            axes.set(xlabel=label, title=f"{name}\n{title}" if axes is line[0] else name)
            axes.set_xticks(first, [f"{value:g}" for value in first])
            axes.minorticks_off()
            if term != "initialisation":
                plots.decimal_ticks(axes)
            axes.grid(True, alpha=0.3)
    for line in panels:
        line[0].set_ylabel("distance in x")
    panels[0, 0].legend(frameon=False, fontsize="small")
    plots.save(figure, path)


def _means(rows: Sequence[Row]) -> tuple[list[float], list[float]]:
    """The values and the means of their errors."""
    values = sorted({row["value"] for row in rows})
    errors = [[row["error"] for row in rows if row["value"] == value] for value in values]
    return values, [float(np.mean(found)) for found in errors]


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this study."""
    add_run_options(parser)
    parser.add_argument("--samples", type=int, default=SAMPLES, help="pairs (%(default)s)")
    parser.add_argument("--runs", type=int, default=REPEATS, help="repeats (%(default)s)")


def run(args: argparse.Namespace) -> list[str]:
    """The study of parsed options; the files it made. ValueError for options that do not fit."""
    for name, least in (("samples", 1), ("runs", 2)):
        if getattr(args, name) < least:
            raise ValueError(f"--{name}: expected at least {least}, got {getattr(args, name)}")
    how: dict[str, Any] = {"workers": args.workers, "quiet": args.quiet}
    if args.quick:
        few = {term: values[:3] for term, values in VALUES.items()}
        bound_study(args.out, few, 20, 2, 256, **how)
    else:
        bound_study(args.out, None, args.samples, args.runs, **how)
    return ["bound.csv", "bound_rates.csv", "bound.png"]
