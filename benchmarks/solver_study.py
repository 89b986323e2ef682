"""Sample quality against network evaluations, for every solver, with an exact score.

Data: 25 Gaussians on a grid in two dimensions, scaled to unit variance. Their score is known at
every time, so all that is left is the solver's error and chance. The floor is the distance between
two exact samples of the same size; "em" on a linear grid is the usual baseline.

    python benchmarks/solver_study.py                      # the full table, CSV and PNG
    python benchmarks/solver_study.py --seeds 1 --evaluations 12 20

Measures: `sliced_w2`, sliced Wasserstein-2 to fresh exact samples (not squared); `weight_error`,
root mean square of the modes' shares of the samples over 1/25, less 1; `cov_error`, mean over the
modes of the Frobenius norm of (covariance - exact) over that of the exact one; `stray`, the share
of samples farther than 4 standard deviations from every mode.
"""

from __future__ import annotations

import argparse
import csv
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import cldfast
from cldfast.mixture import GaussianMixture

EVALUATIONS = (8, 10, 12, 15, 20, 30, 50, 100, 200, 500, 1000)
SCALE = math.sqrt(2.01)  # standard deviation of the data: grid points -2, ..., 2 and noise of 0.1
CENTRES = torch.arange(-2.0, 3.0) / SCALE
SPREAD = 0.1 / SCALE
PROJECTIONS = 200

# label -> (solver, grid, evaluations per step, options)
CASES: dict[str, tuple[str, str, int, dict[str, Any]]] = {
    "em, linear": ("em", "linear", 1, {}),
    "em": ("em", "auto", 1, {}),
    "sscs": ("sscs", "auto", 1, {}),
    "sscs2": ("sscs2", "auto", 1, {}),
    "ancestral": ("ancestral", "auto", 1, {}),
    "leapfrog": ("leapfrog", "auto", 2, {}),
    "aboba": ("aboba", "auto", 1, {}),
    "obab": ("obab", "auto", 1, {}),
    "roba": ("roba", "auto", 1, {}),
    "stochastic_multistep": ("stochastic_multistep", "auto", 1, {}),
    "stochastic_multistep, churn 0.3": ("stochastic_multistep", "auto", 1, {"churn": 0.3}),
    "multistep 1": ("multistep", "auto", 1, {"order": 1}),
    "multistep 2": ("multistep", "auto", 1, {}),
    "multistep 3": ("multistep", "auto", 1, {"order": 3}),
    "multistep 4": ("multistep", "auto", 1, {"order": 4}),
    "multistep 2, R": ("multistep", "auto", 1, {"form": "R"}),
    "multistep 2, L": ("multistep", "auto", 1, {"form": "L"}),
    "unipc": ("unipc", "auto", 1, {}),
    "heun": ("heun", "auto", 2, {}),
    "dpm2": ("dpm2", "auto", 2, {}),
    "dpm3": ("dpm3", "auto", 3, {}),
}


def exact_score(sde: cldfast.LinearPhaseSDE) -> Callable[..., torch.Tensor]:
    """The velocity score; the 25 modes are a product, so it is that of 5 modes per coordinate."""
    line = GaussianMixture(torch.ones(5), CENTRES[:, None], torch.full((5, 1), SPREAD**2))
    network = line.network(sde)

    def net(u: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        pairs = u.unflatten(1, (2, 2)).transpose(1, 2).reshape(-1, 2)
        return network(pairs, t[:1].expand(len(pairs))).reshape(-1, 2)

    return net


def exact_samples(n: int, seed: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    modes = torch.randint(0, 5, (n, 2), generator=g)
    return CENTRES[modes] + SPREAD * torch.randn(n, 2, generator=g)


def measures(x: torch.Tensor, reference: torch.Tensor) -> dict[str, float]:
    angles = torch.arange(PROJECTIONS) * (math.pi / PROJECTIONS)
    directions = torch.stack([angles.cos(), angles.sin()])
    gap = (x @ directions).sort(0).values - (reference @ directions).sort(0).values
    column = ((x[:, :, None] - CENTRES).abs()).argmin(2)
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
        "sliced_w2": float(gap.square().mean().sqrt()),
        "weight_error": float((25.0 * share - 1.0).square().mean().sqrt()),
        "cov_error": float(np.mean(errors)),
        "stray": float(1.0 - near.float().mean()),
    }


def study(args: argparse.Namespace) -> list[dict[str, Any]]:
    sde = cldfast.CLD()
    net = exact_score(sde)
    references = [exact_samples(args.samples, 1000 + s) for s in range(args.seeds)]
    rows = []

    def add(label: str, evaluations: int, results: list[dict[str, float]], wall: float) -> None:
        row: dict[str, Any] = {"solver": label, "evaluations": evaluations, "seeds": len(results)}
        for key in results[0]:
            values = [r[key] for r in results]
            row[key], row[f"{key}_sd"] = float(np.mean(values)), float(np.std(values))
        row["seconds"] = wall / len(results)
        rows.append(row)
        print(
            f"{label:34s} {evaluations:5d}  " + "  ".join(f"{k} {row[k]:.4f}" for k in results[0]),
            flush=True,
        )

    floor = [measures(exact_samples(args.samples, s), references[s]) for s in range(args.seeds)]
    add("floor", 0, floor, 0.0)
    for label, (solver, grid, per_step, options) in CASES.items():
        if solver not in cldfast.solvers.SOLVERS or (args.cases and label not in args.cases):
            continue
        for budget in args.evaluations:
            steps = max(budget // per_step, 1)
            plan = cldfast.make_plan(sde, solver, steps, args.grid or grid, args.t_min, **options)
            start, results = time.perf_counter(), []
            for seed in range(args.seeds):
                u = cldfast.initial_state(sde, (args.samples, 2), seed=seed)
                x = cldfast.run(plan, net, u, seed=seed)[:, :2]
                results.append(measures(x, references[seed]))
            add(label, plan.evaluations, results, time.perf_counter() - start)
    return rows


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(17, 5.5))
    for axis, key in zip(axes, ("sliced_w2", "weight_error", "cov_error"), strict=True):
        for label in dict.fromkeys(r["solver"] for r in rows):
            points = [(r["evaluations"], r[key]) for r in rows if r["solver"] == label]
            if label == "floor":
                axis.axhline(points[0][1], color="black", linestyle=":", label="two exact samples")
            else:
                axis.loglog(*zip(*points, strict=True), marker="o", markersize=3, label=label)
        axis.set_xlabel("network evaluations")
        axis.set_title(key.replace("_", " "))
    axes[-1].legend(fontsize=7, loc="upper right")
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--evaluations", type=int, nargs="+", default=EVALUATIONS)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), help="some rows only")
    parser.add_argument("--grid", help="one grid for all, instead of each solver's automatic one")
    parser.add_argument("--t-min", type=float, default=1e-3)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    rows = study(args)
    args.out.mkdir(parents=True, exist_ok=True)
    with (args.out / "solver_study.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    plot(rows, args.out / "solver_study.png")


if __name__ == "__main__":
    main()
