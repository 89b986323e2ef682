"""The law of the samples of two codebases beside those of their replacements, on Gaussian data.

    CLDFAST_UPSTREAM=~/checkouts python benchmarks/backends_moments.py

StanislasStrasman/CLD and mandt-lab/PSLD, each sampler as it is and as `cldfast.compat` has it.
Data N(0.5, 0.3) in one dimension with the exact score; 1,000,000 samples. Mean and variance of x
and v, how far they are from the codebase's in standard errors of the difference, the same moments
of the plan by computation, without samples, and the distance from these. Strasman's samplers return
x alone: v is what the network is last asked at.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import backends_psld
import backends_strasman
import numpy as np
import torch
from output import RESULTS, write_csv

from cldfast.compat.psld.process import factor, process_of, rows_of
from cldfast.compat.psld.samplers import Request
from cldfast.compat.strasman import published as strasman_published
from cldfast.planner.law import exact_network
from cldfast.planner.make_plan import make_plan
from cldfast.planner.plan import Plan
from cldfast.planner.stage import Stage
from cldfast.process.sde import LinearPhaseSDE

MEAN, VARIANCE, ROWS, EPS = 0.5, 0.3, 1_000_000, 1e-3
STRASMAN_STEPS, PSLD_STEPS = 200, 100
FIELDS = (
    "codebase", "case", "sampler", "moment", "value", "standard error",
    "from the codebase in standard errors", "computed law of the plan",
    "from the computed in standard errors",
)  # fmt: skip
MOMENTS = ("mean x", "mean v", "var x", "var v")
# Constant and rising rates.
STRASMAN = {"velocity score": (4.0, 4.0), "both scores, epsilon 0.25": (1.0, 7.0)}
PSLD: dict[str, dict[str, Any]] = {
    "gamma 0.01": {},
    "gamma 0, beta 2 to 14": {"gamma": 0.0, "nu": 4.0, "beta_min": 2.0, "beta_max": 14.0},
    "gamma 0.01, upper": {"decomp_mode": "upper"},
}
Moments = list[float]
Contestant = tuple[Callable[[], tuple[torch.Tensor, torch.Tensor]], Moments]


def measured(x: torch.Tensor, v: torch.Tensor) -> tuple[Moments, Moments]:
    """Means and variances of x and v, and their standard errors."""
    planes = [plane.double() for plane in (x, v)]
    values = [float(p.mean()) for p in planes] + [float(p.var()) for p in planes]
    means = [math.sqrt(s / ROWS) for s in values[2:]]
    return values, means + [s * math.sqrt(2.0 / ROWS) for s in values[2:]]


def computed(
    stages: tuple[Stage, ...], process: LinearPhaseSDE, parameterization: str, grid: np.ndarray
) -> Moments:
    """The same moments of the exact output law of stages."""
    plan = Plan(stages, process, "", 1, parameterization, grid)
    law = plan.gaussian_law(data_mean=MEAN, data_var=VARIANCE)
    return [float(law.mean[0]), float(law.mean[1]), float(law.cov[0, 0]), float(law.cov[1, 1])]


class ExactScore(torch.nn.Module):
    """What a perfect network returns; keeps the velocity that it was last asked at."""

    def __init__(self, process: LinearPhaseSDE, parameterization: str) -> None:
        super().__init__()
        self.process = process
        self.parameterization = parameterization

    def forward(self, u: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """u (B, 2), t (B,) or a scalar, one time a call."""
        self.velocity = u[:, 1:].clone()  # our samplers write over their state
        at = [float(t.reshape(-1)[0])]
        gain, shift = exact_network(self.process, at, self.parameterization, MEAN, VARIANCE)
        x, v = u.chunk(2, dim=1)
        rows = zip(gain[0].tolist(), shift[0].tolist(), strict=True)
        return torch.cat([g * x + h * v + s for (g, h), s in rows], dim=1)


def strasman_cases() -> Iterator[tuple[str, dict[str, Contestant]]]:
    """Both samplers, both kinds of network."""
    for model, rates in STRASMAN.items():
        epsilon, is_cld = backends_strasman.MODELS[model]
        name = "score" if is_cld else "full_score"
        changes = {"beta_min": rates[0], "beta_max": rates[1], "epsilon": epsilon}
        with backends_strasman.contestants(**changes) as sdes:
            here = sdes["published"]
            times = strasman_published.time_steps(STRASMAN_STEPS, EPS, "cpu")
            length = (times[0] - times[1]).item()
            for solver, method in backends_strasman.SAMPLERS.items():
                published = tuple(here.stages(solver, times, length, is_cld))
                process = here.process
                exact = make_plan(process, solver, STRASMAN_STEPS, "linear", EPS, name)
                found = {}
                for who, sde in sdes.items():
                    stages = exact.stages if who == "exact" else published
                    end, before = (computed(s, process, name, exact.grid)
                                   for s in (stages, stages[:-1]))  # fmt: skip

                    def call(
                        sde: Any = sde, method: str = method, is_cld: bool = is_cld
                    ) -> tuple[torch.Tensor, torch.Tensor]:
                        score = ExactScore(process, name)
                        start = sde.sample_final(ROWS, 1)
                        x = getattr(sde, method)(start, score, STRASMAN_STEPS, EPS, is_cld)
                        return x, score.velocity

                    found[who] = (call, [end[0], before[1], end[2], before[3]])
                rate = f"beta {rates[0]:g} to {rates[1]:g}"
                yield f"{solver}, {model}, {rate}, {STRASMAN_STEPS} steps", found


class ExactNoise:
    """The prediction of the noise of the codebase's factor."""

    def __init__(self, sde: Any) -> None:
        self.sde = sde
        self.score = ExactScore(process_of(sde), "full_score")

    def columns(self, t: float) -> np.ndarray:
        """The noises as rows of the score, (r, 2)."""
        cov = process_of(self.sde).marginal(t).covariance
        result: np.ndarray = -factor(cov, self.sde.decomp_mode).T[list(rows_of(self.sde))]
        return result

    def __call__(self, u: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """u (B, 2), t (B,), one time a call."""
        x, v = self.score(u, t).chunk(2, dim=1)
        return torch.cat([g * x + h * v for g, h in self.columns(float(t[0])).tolist()], dim=1)

    def read(self, stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
        """Stages that read the predicted noise, made to read the score."""
        return tuple(
            s if s.t is None else replace(s, E=(s.E[0] @ self.columns(s.t),)) for s in stages
        )


def psld_cases() -> Iterator[tuple[str, dict[str, Contestant]]]:
    """Both samplers, three processes, a last step without noise."""
    ts = backends_psld.times(PSLD_STEPS - 1)
    for model, changes in PSLD.items():
        for name in backends_psld.SAMPLERS:
            with backends_psld.contestants(name, **changes) as (sde, samplers):
                noise = ExactNoise(sde)
                asked = Request(None, ts, True, EPS, None)
                laws = {}
                for who in ("exact", "published"):
                    plan = samplers[who].plan(asked)
                    stages = noise.read(plan.stages)
                    laws[who] = computed(stages, plan.sde, "full_score", plan.grid)
                calls = backends_psld.calls(
                    samplers, noise, lambda sde=sde: sde.prior_sampling((ROWS, 1)), len(ts) - 1
                )

                def states(call: Callable[[], Any]) -> tuple[torch.Tensor, torch.Tensor]:
                    x, v = call().chunk(2, dim=1)
                    return x, v

                found = {
                    who: (
                        lambda call=call: states(call),
                        laws["exact" if who == "exact" else "published"],
                    )
                    for who, call in calls.items()
                }
                yield f"{name}, {model}, {PSLD_STEPS} steps", found


def compared(codebase: str, case: str, found: dict[Any, Contestant]) -> Iterator[list[Any]]:
    """The rows of a case, columns as in `FIELDS`."""
    reference: tuple[Moments, Moments] | None = None
    for who, (call, law) in found.items():
        values, errors = measured(*call())
        reference = reference or (values, errors)
        for k, moment in enumerate(MOMENTS):
            apart = (values[k] - reference[0][k]) / math.hypot(errors[k], reference[1][k])
            off = (values[k] - law[k]) / errors[k]
            yield [
                codebase, case, who, moment, f"{values[k]:.6g}", f"{errors[k]:.2g}",
                f"{apart:.2f}", f"{law[k]:.6g}", f"{off:.2f}",
            ]  # fmt: skip


def main() -> None:
    """Sample all, print and write the table."""
    rows = []
    torch.manual_seed(0)
    for codebase, cases in (("CLD", strasman_cases), ("PSLD", psld_cases)):
        for case, found in cases():
            for row in compared(codebase, case, found):
                print(*row, sep=", ", flush=True)
                rows.append(dict(zip(FIELDS, row, strict=True)))
    write_csv(RESULTS / "backends_moments.csv", rows)


if __name__ == "__main__":
    main()
