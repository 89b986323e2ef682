"""Sample quality against network evaluations, for every solver, with an exact score.

Data: 25 Gaussians on a grid in two dimensions, scaled to unit variance. Their score is known at
every time, so all that is left is the solver's error and chance. The floor is the distance between
two exact samples of the same size; "em" on a linear grid is the usual baseline.

    python benchmarks/solver_study.py                      # the full table, CSV and PNG
    python benchmarks/solver_study.py --seeds 1 --evaluations 12 20

Measures: `sliced_w2`, sliced Wasserstein-2 (not squared), the mean over several fresh exact
samples; `weight_error`, root mean square of the modes' shares of the samples over 1/25, less 1;
`cov_error`, mean over the modes of the Frobenius norm of (covariance - exact) over that of the
exact one; `stray`, the share of samples farther than 4 standard deviations from every mode. `_sd`
is the standard deviation over seeds, `over_floor` the ratio of mean sliced W2 to that of the floor.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from output import new_parser, write_csv
from torch import Tensor

import cldfast
from cldfast.lab import plots
from cldfast.lab.mixture import sufficient_statistic

EVALUATIONS = (8, 10, 12, 15, 20, 30, 50, 100, 200, 500, 1000)
SCALE = math.sqrt(2.01)  # standard deviation of the data: grid points -2, ..., 2 and noise of 0.1
CENTRES = torch.arange(-2.0, 3.0) / SCALE
SPREAD = 0.1 / SCALE
# Directions evenly spread over half a turn.
PROJECTIONS = 64
# One distance between two samples of this size varies by a tenth; the floor is a mean over so many.
REFERENCES = 8
FLOOR_SAMPLES = 16

# label -> (solver, grid, options), of solvers with noise and of those without
NOISY: dict[str, tuple[str, str, dict[str, Any]]] = {
    "em, linear": ("em", "linear", {}),
    "em": ("em", "auto", {}),
    "sscs": ("sscs", "auto", {}),
    "sscs, quadratic": ("sscs", "quadratic", {}),
    "sscs2": ("sscs2", "logistic", {}),
    "sscs2, linear": ("sscs2", "linear", {}),
    "sscs2, quadratic": ("sscs2", "quadratic", {}),
    "ancestral": ("ancestral", "auto", {}),
    "leapfrog": ("leapfrog", "auto", {}),
    "aboba": ("aboba", "auto", {}),
    "obab": ("obab", "auto", {}),
    "roba": ("roba", "auto", {}),
    "stochastic_multistep": ("stochastic_multistep", "auto", {}),
    "stochastic_multistep, churn 0.3": ("stochastic_multistep", "auto", {"churn": 0.3}),
    "stochastic_multistep 3, churn 0.5, quadratic": (
        "stochastic_multistep", "quadratic", {"order": 3, "churn": 0.5},
    ),
}  # fmt: skip
NOISE_FREE: dict[str, tuple[str, str, dict[str, Any]]] = {
    "multistep 1": ("multistep", "auto", {"order": 1}),
    "multistep 2": ("multistep", "auto", {}),
    "multistep 2, quadratic": ("multistep", "quadratic", {}),
    "multistep 3": ("multistep", "auto", {"order": 3}),
    "multistep 3, quadratic": ("multistep", "quadratic", {"order": 3}),
    "multistep 4": ("multistep", "auto", {"order": 4}),
    "multistep 2, R": ("multistep", "auto", {"form": "R"}),
    "multistep 2, L": ("multistep", "auto", {"form": "L"}),
    "unipc": ("unipc", "logistic", {}),
    "unipc, quadratic": ("unipc", "quadratic", {}),
    "heun": ("heun", "auto", {}),
    "dpm2": ("dpm2", "auto", {}),
    "dpm3": ("dpm3", "auto", {}),
}
CASES = NOISY | NOISE_FREE
# From this budget on all solvers are about level, and fewer seeds say so.
LONG, LONG_SEEDS = 200, 2
# What is drawn, and the top of its axis: what lies above is of no use.
MEASURES = {"sliced_w2": 1.0, "weight_error": 1.0, "cov_error": 3.0}


def exact_score(sde: cldfast.LinearPhaseSDE) -> Callable[[Tensor, Tensor], Tensor]:
    """The velocity score in float32, as `GaussianMixture` has it but for modes of one spread.

    Of u, the pair y = a.(x, v), w = q.(x, v) is independent given x0, with y ~ N(x0, s2) and w free
    of x0; the 25 modes are a product, so each coordinate sees a mixture of 5.
    """

    @cache
    def coefficients(t: float) -> tuple[float, ...]:
        along, across, kappa, s2 = sufficient_statistic(sde.marginal(t), t)
        return *along, *across, kappa, SPREAD**2 + s2

    def net(u: Tensor, t: Tensor) -> Tensor:
        a_x, a_v, q_x, q_v, kappa, var = coefficients(float(t[0]))
        x, v = u[:, :2], u[:, 2:]
        y = (a_x * x + a_v * v).reshape(-1)
        shift = CENTRES.square() / (-2.0 * var)
        posterior = torch.addmm(shift[:, None], CENTRES[:, None] / var, y[None]).softmax(0)
        pull = (y - CENTRES @ posterior) / var
        return (-a_v * pull).view(x.shape) - (q_v * q_x / kappa) * x - (q_v * q_v / kappa) * v

    return net


def exact_samples(n: int, seed: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    modes = torch.randint(0, 5, (n, 2), generator=g)
    return CENTRES[modes] + SPREAD * torch.randn(n, 2, generator=g)


def projected(x: Tensor) -> Tensor:
    """Sorted projections (directions, samples)."""
    angles = torch.arange(PROJECTIONS) * (math.pi / PROJECTIONS)
    return (torch.stack([angles.cos(), angles.sin()], 1) @ x.T).sort(1).values


def measures(x: Tensor, references: list[Tensor]) -> dict[str, float]:
    """Of samples x, against the sorted projections of exact ones."""
    if not bool(x.isfinite().all()):
        return dict.fromkeys(("sliced_w2", "weight_error", "cov_error", "stray"), math.inf)
    own = projected(x)
    distances = [float((own - reference).square().mean().sqrt()) for reference in references]
    column = (x[:, :, None] - CENTRES).abs().argmin(2)
    centred = (x - CENTRES[column]) / SPREAD
    near = centred.norm(dim=1) < 4.0
    label = column[:, 0] * 5 + column[:, 1]
    share = torch.bincount(label, minlength=25) / len(x)
    errors = []
    for k in range(25):
        rows = centred[(label == k) & near]
        cov = rows.T @ rows / max(len(rows), 1)
        errors.append(float((cov - torch.eye(2)).norm() / math.sqrt(2.0)))
    return {
        "sliced_w2": float(np.mean(distances)),
        "weight_error": float((25.0 * share - 1.0).square().mean().sqrt()),
        "cov_error": float(np.mean(errors)),
        "stray": float(1.0 - near.float().mean()),
    }


def fitting_plan(
    sde: cldfast.LinearPhaseSDE, label: str, budget: int, grid: str | None, t_min: float
) -> cldfast.Plan | None:
    """The longest plan within the budget, None where float64 cannot resolve so many steps."""
    solver, own_grid, own = CASES[label]
    try:
        return cldfast.make_plan(sde, solver, None, grid or own_grid, t_min, nfe=budget, **own)
    except ValueError:
        return None


def study(args: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for each solver and budget, the floor first."""
    sde = cldfast.CLD()
    net = exact_score(sde)
    references = [projected(exact_samples(args.samples, 1000 + s)) for s in range(REFERENCES)]
    rows: list[dict[str, Any]] = []

    def add(label: str, budget: int, evaluations: int, results: list[Any], wall: float) -> None:
        row: dict[str, Any] = {"solver": label, "budget": budget, "evaluations": evaluations}
        row |= {"seeds": len(results), "samples": args.samples}
        for key in results[0]:
            values = [r[key] for r in results]
            with np.errstate(invalid="ignore"):
                row[key], row[f"{key}_sd"] = float(np.mean(values)), float(np.std(values))
        row["over_floor"] = row["sliced_w2"] / (rows[0] if rows else row)["sliced_w2"]
        row["seconds"] = wall / len(results)
        rows.append(row)
        print(
            f"{label:34s} {evaluations:5d}  " + "  ".join(f"{k} {row[k]:.4f}" for k in results[0]),
            flush=True,
        )

    exact = [measures(exact_samples(args.samples, s), references) for s in range(FLOOR_SAMPLES)]
    add("floor", 0, 0, exact, 0.0)
    for label in args.cases or CASES:
        for budget in args.evaluations:
            plan = fitting_plan(sde, label, budget, args.grid, args.t_min)
            if plan is None:
                continue
            start, results = time.perf_counter(), []
            for seed in range(args.seeds if budget < LONG else min(args.seeds, LONG_SEEDS)):
                u = cldfast.initial_state(sde, (args.samples, 2), seed=seed)
                x = cldfast.run(plan, net, u, seed=seed, nonfinite="return")[:, :2]
                results.append(measures(x, references))
            add(label, budget, plan.evaluations, results, time.perf_counter() - start)
    return rows


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Rows of panels: solvers with noise, without noise; columns: three measures."""
    from matplotlib import colormaps

    figure = plots.new_figure(16, 9)
    axes = figure.subplots(2, 3, sharex=True, sharey="col")
    labels = [label for label in dict.fromkeys(r["solver"] for r in rows) if label != "floor"]
    for line, (kind, own) in zip(axes, {"with": NOISY, "without": NOISE_FREE}.items(), strict=True):
        shown = [label for label in labels if label in own]
        for axis, (key, top) in zip(line, MEASURES.items(), strict=True):
            axis.axhline(rows[0][key], color="black", linestyle=":", label="two exact samples")
            for number, label in enumerate(shown):
                points = [(r["evaluations"], r[key]) for r in rows if r["solver"] == label]
                look = {"marker": "os^vDPX*"[number % 8], "color": colormaps["tab20"](number)}
                axis.loglog(*zip(*points, strict=True), markersize=4, label=label, **look)
            axis.set_ylim(top=top, bottom=0.6 * rows[0][key])
            axis.set_title(f"{kind} noise: {key.replace('_', ' ')}")
            axis.grid(True, which="major", alpha=0.3)
        line[-1].legend(fontsize=7, loc="upper right")
    for axis in axes[-1]:
        axis.set_xlabel("network evaluations")
    plots.save(figure, path)


def main(arguments: list[str] | None = None) -> None:
    """Measure, write, draw."""
    parser = new_parser(__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--evaluations", type=int, nargs="+", default=EVALUATIONS)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), help="some rows only")
    parser.add_argument("--grid", help="one grid for all, instead of each solver's automatic one")
    parser.add_argument("--t-min", type=float, default=1e-3)
    args = parser.parse_args(arguments)
    rows = study(args)
    write_csv(args.out / "solver_study.csv", rows)
    plot(rows, args.out / "solver_study.png")


if __name__ == "__main__":
    main()
