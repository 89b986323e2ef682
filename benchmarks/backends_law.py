"""The law of CLD-SGM's own SSCS samples beside those of its replacements, on Gaussian data.

    CLDFAST_UPSTREAM=~/checkouts python benchmarks/backends_law.py

Data N(0.5, 0.3) in one dimension with the exact score; 1,000,000 samples, 500 linear steps, no
jitter. For each sampler: mean and variance of x and v, how far they are from the codebase's in
standard errors of the difference, and the same moments of its plan by computation, without samples.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import upstream_cld_sgm
from backends_moments import ROWS, Contestant, ExactScore, compared, computed
from output import RESULTS, write_csv

from cldfast.compat import cld_sgm

EPS = 1e-3
FIELDS = (
    "beta", "sampler", "mode", "moment", "value", "standard error",
    "from CLD-SGM in standard errors", "computed law of the plan",
)  # fmt: skip


def main() -> None:
    """Sample all, print and write the table."""
    rows: list[dict[str, Any]] = []
    with upstream_cld_sgm.opened() as theirs:
        for beta0, beta1 in ((4.0, 0.0), (1.0, 6.0)):
            config = upstream_cld_sgm.options(
                n_discrete_steps=500, numerical_eps=0.0, sscs_num_stab=0.0,
                beta0=beta0, beta1=beta1,
            )  # fmt: skip
            sde = upstream_cld_sgm.process(theirs, config)
            here = cld_sgm.CLD(config, sde.beta_fn, sde.beta_int_fn, "published")
            shape, grid = (ROWS, 1), np.linspace(1.0, EPS, config.n_discrete_steps + 1)
            laws = {}
            for mode in ("exact", "published"):
                plan = cld_sgm.get_sscs_sampler(config, sde, shape, EPS, mode=mode).stages()
                laws[mode] = computed(tuple(plan), here.process, "full_score", grid)

            def sampled(make: Any, **mode: str) -> Contestant:
                def call() -> tuple[torch.Tensor, torch.Tensor]:
                    torch.manual_seed(len(rows))
                    sampler = make(config, sde, shape, EPS, **mode)
                    return sampler(ExactScore(here.process, "noise"))[:2]

                return call, laws[mode.get("mode", "published")]

            ours = cld_sgm.get_sampling_fn
            found = {
                ("CLD-SGM", "published"): sampled(theirs.sampling.get_sampling_fn),
                ("cldfast", "published"): sampled(ours, mode="published"),
                ("cldfast", "exact"): sampled(ours, mode="exact"),
            }
            for _, beta, who, *numbers, _ in compared("", f"{beta0} + {beta1} t", found):
                row = (beta, *who, *numbers)
                rows.append(dict(zip(FIELDS, row, strict=True)))
                print(*row, sep=", ", flush=True)
    write_csv(RESULTS / "backends_law.csv", rows)


if __name__ == "__main__":
    main()
