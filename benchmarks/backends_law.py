"""The law of CLD-SGM's own SSCS samples beside those of its replacements, on Gaussian data.

    CLDFAST_UPSTREAM=~/checkouts python benchmarks/backends_law.py

Data N(0.5, 0.3) in one dimension with the exact score; 1,000,000 samples, 500 linear steps, no
jitter. For each sampler: mean and variance of x and v, how far they are from the codebase's in
standard errors of the difference, and the same moments of its plan by computation, without samples.
"""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import torch
import upstream_cld_sgm

from cldfast.compat import cld_sgm
from cldfast.compat.cld_sgm.plans import published_sscs, time_grid
from cldfast.planner.law import GaussianLaw
from cldfast.planner.plan import Plan
from cldfast.planner.solvers.sscs import sscs

MEAN, VARIANCE, ROWS, EPS = 0.5, 0.3, 1_000_000, 1e-3
RESULTS = Path(__file__).parent / "results" / "backends_law.csv"
MOMENTS = ("mean x", "mean v", "var x", "var v")


class ExactScore(torch.nn.Module):
    """The velocity score of the data in the codebase's noise form; one time a call."""

    def __init__(self, sde: cld_sgm.CLD) -> None:
        super().__init__()
        self.sde = sde

    def forward(self, u: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        kernel = self.sde.process.marginal(float(t[0]))
        mean = kernel.mean
        row = np.linalg.inv(kernel.cov + VARIANCE * np.outer(mean, mean))[1] / kernel.ell
        x, v = u.chunk(2, dim=1)
        centre = MEAN * float(row @ mean)
        return float(row[0]) * x + float(row[1]) * v - centre


def moments(x: torch.Tensor, v: torch.Tensor) -> tuple[list[float], list[float]]:
    """Means and variances of x and v, and their standard errors."""
    planes = [plane.double() for plane in (x, v)]
    values = [float(p.mean()) for p in planes] + [float(p.var()) for p in planes]
    means = [math.sqrt(s / ROWS) for s in values[2:]]
    return values, means + [s * math.sqrt(2.0 / ROWS) for s in values[2:]]


def computed(law: GaussianLaw) -> list[float]:
    """The same moments of an exact output law."""
    return [float(law.mean[0]), float(law.mean[1]), float(law.cov[0, 0]), float(law.cov[1, 1])]


def main() -> None:
    """Sample all, print and write the table."""
    rows = []
    with upstream_cld_sgm.opened() as theirs:
        for beta0, beta1 in ((4.0, 0.0), (1.0, 6.0)):
            config = upstream_cld_sgm.options(
                n_discrete_steps=500, numerical_eps=0.0, sscs_num_stab=0.0,
                beta0=beta0, beta1=beta1,
            )  # fmt: skip
            sde = upstream_cld_sgm.process(theirs, config)
            here = cld_sgm.CLD(config, sde.beta_fn, sde.beta_int_fn, "published")
            grid = time_grid(config, EPS)
            plans = {
                "exact": sscs(here.process, grid, "full_score"),
                "published": published_sscs(here, grid, False, 0.0),
            }
            laws = {
                mode: computed(
                    Plan(stages, here.process, "sscs", 1, "full_score", grid).gaussian_law(
                        data_mean=MEAN, data_var=VARIANCE
                    )
                )
                for mode, stages in plans.items()
            }
            reference: tuple[list[float], list[float]] | None = None
            for name, mode in (
                ("CLD-SGM", "published"),
                ("cldfast", "published"),
                ("cldfast", "exact"),
            ):
                torch.manual_seed(len(rows))
                if name == "CLD-SGM":
                    sampler = theirs.sampling.get_sampling_fn(config, sde, (ROWS, 1), EPS)
                else:
                    sampler = cld_sgm.get_sampling_fn(config, sde, (ROWS, 1), EPS, mode=mode)
                x, v, _ = sampler(ExactScore(here))
                values, errors = moments(x, v)
                reference = reference or (values, errors)
                for k, moment in enumerate(MOMENTS):
                    apart = (values[k] - reference[0][k]) / math.hypot(errors[k], reference[1][k])
                    rows.append(
                        [
                            f"{beta0} + {beta1} t",
                            name,
                            mode,
                            moment,
                            f"{values[k]:.6g}",
                            f"{errors[k]:.2g}",
                            f"{apart:.2f}",
                            f"{laws[mode][k]:.6g}",
                        ]  # fmt: skip
                    )
                    print(*rows[-1], sep=", ", flush=True)
    with RESULTS.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(
            ["beta", "sampler", "mode", "moment", "value", "standard error",
             "from CLD-SGM in standard errors", "computed law of the plan"]
        )  # fmt: skip
        writer.writerows(rows)


if __name__ == "__main__":
    main()
