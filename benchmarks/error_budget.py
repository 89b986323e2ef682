"""Where the error of `em` and `sscs` comes from, over the number of steps: exact, no sampling.

    python benchmarks/error_budget.py

Writes benchmarks/results/error_budget.csv and .png: Wasserstein-2 distances in x on data
N(0.5, 0.25) with a score error of 0.01, from the stationary law at T to t_min = 1e-3.
"""

from __future__ import annotations

import csv
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np

from cldfast import CLD, make_plan
from cldfast.planner.error_budget import ErrorBudget

RESULTS = Path(__file__).parent / "results"
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
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    styles = {
        "discretisation": ("tab:blue", "-"),
        "initialisation": ("tab:green", "-"),
        "score": ("tab:orange", "-"),
        "total": ("black", "--"),
    }
    figure, axes = plt.subplots(
        len(BETAS), len(SOLVERS), figsize=(9.0, 6.6), sharex=True, sharey=True
    )
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
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def main() -> None:
    """Compute, write, and say where."""
    RESULTS.mkdir(exist_ok=True)
    results = {(beta, solver): budgets(beta, solver) for beta in BETAS for solver in SOLVERS}
    table = RESULTS / "error_budget.csv"
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["beta", "solver", "steps", *(f.name for f in fields(ErrorBudget))])
        for (beta, solver), rows in results.items():
            for steps, row in zip(STEPS, rows, strict=True):
                values = (f"{x:.6e}" for x in asdict(row).values())
                writer.writerow([beta, solver, steps, *values])
    picture = RESULTS / "error_budget.png"
    plot(results, picture)
    print(f"wrote {table} and {picture}")


if __name__ == "__main__":
    main()
