"""Where the error of `em` and `sscs` comes from, over the number of steps: exact, no sampling.

    python benchmarks/error_budget.py

Writes benchmarks/results/error_budget.csv and .png: Wasserstein-2 distances in x on data
N(0.5, 0.25) with a score error of 0.01, from the stationary law at T to t_min = 1e-3.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
from output import RESULTS, write_csv

from cldfast import CLD, make_plan
from cldfast.lab import plots
from cldfast.planner.error_budget import ErrorBudget

STEPS = tuple(int(round(n)) for n in np.geomspace(10, 2000, 16))
SOLVERS = ("em", "sscs")
DATA_MEAN, DATA_VAR, SCORE_ERROR = 0.5, 0.25, 0.01
# The published process, and one with less noise: the start forgets the data like exp(-a tau), and
# the way back forgets the start as fast again, so initialisation falls like exp(-2 a beta).
BETAS = (4.0, 1.5)


def budgets(beta: float, solver: str) -> list[ErrorBudget]:
    """One budget for each number of steps."""
    sde = CLD(a=2.0, beta=beta)
    plans = (make_plan(sde, solver, steps, "quadratic", 1e-3) for steps in STEPS)
    return [plan.error_budget(DATA_MEAN, DATA_VAR, SCORE_ERROR) for plan in plans]


def plot(results: dict[tuple[float, str], list[ErrorBudget]], path: Path) -> None:
    """One panel a process and solver, one line a source."""
    styles = {
        "discretisation": ("tab:blue", "-"),
        "initialisation": ("tab:green", "-"),
        "score": ("tab:orange", "-"),
        "total": ("black", "--"),
    }
    figure = plots.new_figure(9.0, 6.6)
    axes = figure.subplots(len(BETAS), len(SOLVERS), sharex=True, sharey=True)
    for axis, ((beta, solver), rows) in zip(axes.flat, results.items(), strict=True):
        for source, (colour, line) in styles.items():
            values = [getattr(row, source) for row in rows]
            axis.loglog(STEPS, values, line, color=colour, label=source)
        axis.set_title(f"{solver}, beta = {beta:g}")
        axis.grid(True, which="major", alpha=0.3)
        # Below this nothing but the crossing of two signs is to be seen.
        axis.set_ylim(bottom=1e-7)
    for axis in axes[-1]:
        axis.set_xlabel("steps (network evaluations)")
    for axis in axes[:, 0]:
        axis.set_ylabel("W2 in x, per coordinate")
    axes[0, 0].legend(frameon=False, fontsize="small")
    plots.save(figure, path)


def main() -> None:
    """Compute, write, and say where."""
    results = {(beta, solver): budgets(beta, solver) for beta in BETAS for solver in SOLVERS}
    table = RESULTS / "error_budget.csv"
    rows = [
        {"beta": str(beta), "solver": solver, "steps": steps}
        | {source: f"{value:.6e}" for source, value in asdict(budget).items()}
        for (beta, solver), found in results.items()
        for steps, budget in zip(STEPS, found, strict=True)
    ]
    write_csv(table, rows)
    picture = RESULTS / "error_budget.png"
    plot(results, picture)
    print(f"wrote {table} and {picture}")


if __name__ == "__main__":
    main()
