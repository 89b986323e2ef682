"""What coefficients cost: a plan of 1,000 steps, and the marginals of 65,536 training times.

    python benchmarks/planner_cost.py

Prints the best of several runs each, with the threads PyTorch uses. Targets: 20 ms and 5 ms.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from cldfast import CLD, PSLD, LinearBeta, LinearPhaseSDE, make_plan

STEPS, ROWS, REPEATS = 1_000, 65_536, 30


def milliseconds(function: Callable[[], Any], repeats: int = REPEATS) -> float:
    """Best of `repeats` after one call that warms caches."""
    function()
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        best = min(best, time.perf_counter() - start)
    return 1e3 * best


def training_marginals(sde: LinearPhaseSDE, t: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """All that a loss reads: mean, factor and ell, per row."""
    marginal = sde.marginal(t)
    return marginal.mean, marginal.factor, marginal.ell


def main() -> None:
    """Print the table."""
    beta = LinearBeta(0.5, 8.0)
    processes = {
        "CLD": CLD(beta=beta),
        "CLD, x_noise = 0.25": CLD(x_noise=0.25, beta=beta),
        "CLD, underdamped": CLD(damping=0.5, beta=beta),
        "CLD, overdamped": CLD(damping=2.0, beta=beta),
        "PSLD": PSLD(beta=beta),
    }
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; best of {REPEATS}, ms")
    for solver in ("em", "sscs"):
        cost = milliseconds(lambda solver=solver: make_plan(processes["CLD"], solver, STEPS))
        print(f"make_plan {solver}, {STEPS} steps: {cost:.2f}")
    for rows in (1_024, ROWS):
        t = torch.rand(rows, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        for name, sde in processes.items():
            cost = milliseconds(lambda sde=sde, t=t: training_marginals(sde, t))
            print(f"marginals of {rows} times, {name}: {cost:.2f}")


if __name__ == "__main__":
    main()
