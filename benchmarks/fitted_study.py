"""Fitted plans against the solvers that they start from, with learned and with exact scores.

    python benchmarks/fitted_study.py                       # several hours on one core
    python benchmarks/fitted_study.py --problems funnel --evaluations 8 --fits 1
    python benchmarks/fitted_study.py --draw                # the picture, of the rows so far

Problems: the Funnel in d = 20 (10,000 samples) and the handwritten digits (2,048 samples), networks
of `learned_nets.py`; 25 Gaussians with their exact score (20,000 samples). A fit sees training data
only, and its seeds are none of those that judge. Measure: sliced Wasserstein-2 (not squared) to
exact samples, or to the held-out digits; for the Gaussians also the error of the covariances within
the modes, for the digits the distance to the nearest training image, over that of test images.
Every row is written to the table as soon as it is there, so that a study that was stopped goes on
where it was; the plans are kept under `runs/studies/plans`.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import learned_nets
import numpy as np
import solver_study
import torch
from learned_study import funnel_distance
from output import new_parser
from torch import Tensor

import cldfast
from cldfast.app.training_data import training_data
from cldfast.lab import plots
from cldfast.lab.data import Digits
from cldfast.lab.metrics import nearest_ratio, sliced_w2
from cldfast.network import Network

EVALUATIONS = (4, 5, 6, 8, 10, 12, 20)
# label -> (solver, grid, options): the bases of fits, and what else might be run unfitted
BASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "multistep 3": ("multistep", "logistic", {"order": 3}),
    "stochastic_multistep 3": ("stochastic_multistep", "logistic", {"order": 3, "churn": 0.5}),
    "stochastic_multistep 3, quadratic": (
        "stochastic_multistep", "quadratic", {"order": 3, "churn": 0.5},
    ),
}  # fmt: skip
UNFITTED = BASES | {
    "unipc": ("unipc", "logistic", {}),
    "sscs2": ("sscs2", "logistic", {}),
}
BASELINE = ("em", "linear", {})
BASELINE_EVALUATIONS = 1000
# Seeds that judge; those of fits are counted from 0.
FIRST_SEED = 1_000
TABLE = "fitted_study.csv"
COLUMNS = (
    "problem", "case", "evaluations", "fit", "seed", "sliced_w2", "cov_error", "nearest_ratio",
    "seconds",
)  # fmt: skip


@dataclass(frozen=True)
class Problem:
    """A network with its process, what a fit of a plan for it is given, and how samples are judged.

    samples, batch: rows that are judged, and rows of a network call. fit: options of
    `cldfast.fit_plan`. measures: of samples. floor: of what is no sample of the network.
    """

    net: Network
    sde: cldfast.LinearPhaseSDE
    shape: tuple[int, ...]
    parameterization: str
    data: Tensor
    samples: int
    batch: int
    fit: dict[str, Any]
    measures: Callable[[Tensor], dict[str, float]]
    floor: Callable[[], list[dict[str, float]]]


def problem(name: str, root: Path, training_seed: int = 0) -> Problem:
    """By name: "funnel", "digits" or "exact"."""
    if name == "exact":
        return exact_problem()
    make = {"funnel": learned_nets.funnel, "digits": learned_nets.digits}[name]
    config = make(**({"seed": training_seed} if training_seed else {}))
    net, sde, _ = learned_nets.trained(config, root)
    data = training_data(config.data or {})
    rows, held_out = data.rows, data.held_out
    images = name == "digits"
    if not images:
        distance, floor = funnel_distance(config.shape[0], 10_000)
        samples, batch, fit = 10_000, 2_000, {"chunk_size": 512}
        floors = lambda: [{"sliced_w2": value} for value in floor()]  # noqa: E731
    else:
        digits = Digits()

        def distance(x: Tensor) -> float:
            return sliced_w2(x, digits.test_x)

        samples, batch, fit = 2_048, 128, {"chunk_size": 128}
        floors = lambda: [{"sliced_w2": distance(digits.train_x)}]  # noqa: E731

    def measures(x: Tensor) -> dict[str, float]:
        found = {"sliced_w2": distance(x)}
        return found | ({"nearest_ratio": nearest_ratio(x, rows, held_out)} if images else {})

    return Problem(
        net, sde, config.shape, config.parameterization, rows, samples, batch, fit, measures, floors
    )


def exact_problem() -> Problem:
    """25 Gaussians in two dimensions with their exact score, differentiable in time."""
    sde = cldfast.CLD()
    centres, spread = solver_study.CENTRES.double(), solver_study.SPREAD

    def net(u: Tensor, t: Tensor) -> Tensor:
        """`E[x0 | u]`: u tells of x0 by `y = m^T Sigma^-1 u / snr`, which is N(x0, 1/snr)."""
        marginal = sde.marginal(t[:1].double())
        weight = (marginal.precision @ marginal.mean[..., None])[0, :, 0]
        variance = 1.0 / (weight * marginal.mean[0]).sum()
        x, v = u.double().chunk(2, dim=1)
        y = (weight[0] * x + weight[1] * v) * variance
        total = spread**2 + variance
        share = (-(y[..., None] - centres).square() / (2.0 * total)).softmax(-1)
        kept: Tensor = (spread**2 * y + variance * (share @ centres)) / total
        return kept.to(u.dtype)

    samples, seeds = 20_000, range(9_000, 9_000 + solver_study.REFERENCES)
    references = [solver_study.projected(solver_study.exact_samples(samples, k)) for k in seeds]

    def measures(x: Tensor) -> dict[str, float]:
        found = solver_study.measures(x, references)
        return {name: found[name] for name in ("sliced_w2", "cov_error")}

    def floor() -> list[dict[str, float]]:
        return [measures(solver_study.exact_samples(samples, 7_000 + k)) for k in range(8)]

    data = solver_study.exact_samples(100_000, 1)
    return Problem(net, sde, (2,), "x0", data, samples, 4_000, {}, measures, floor)


class Table:
    """The rows of the study in a file that grows by one row at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, str]] = []
        if path.exists():
            with path.open(newline="", encoding="utf-8") as file:
                self.rows = list(csv.DictReader(file))
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(",".join(COLUMNS) + "\n", encoding="utf-8")

    def has(self, *key: object) -> bool:
        """key: the first five columns."""
        wanted = [str(part) for part in key]
        return any([row[name] for name in COLUMNS[:5]] == wanted for row in self.rows)

    def add(self, values: dict[str, Any]) -> None:
        """Write a row and print it."""
        row = {name: values.get(name, "") for name in COLUMNS}
        plain = {k: f"{v:.5g}" if isinstance(v, float) else str(v) for k, v in row.items()}
        self.rows.append(plain)
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, COLUMNS, lineterminator="\n").writerow(plain)
        print("  ".join(plain.values()), flush=True)


def judge(
    given: Problem, table: Table, key: dict[str, Any], plan: cldfast.Plan, seeds: int
) -> None:
    """Rows of a plan, one for each seed."""
    for seed in range(FIRST_SEED, FIRST_SEED + seeds):
        if table.has(*key.values(), seed):
            continue
        x = cldfast.sample(
            given.net, given.sde, (given.samples, *given.shape), plan=plan, seed=seed,
            batch_size=given.batch, nonfinite="return",
        )  # fmt: skip
        assert isinstance(x, Tensor)
        finite = bool(x.isfinite().all())
        measured = given.measures(x) if finite else {"sliced_w2": float("inf")}
        table.add(key | {"seed": seed} | measured)


def unfitted(
    given: Problem, name: str, table: Table, evaluations: tuple[int, ...], seeds: int
) -> None:
    """Rows of all solvers as they are, and of the long run of `em`."""
    runs = [(label, n, case) for n in evaluations for label, case in UNFITTED.items()]
    if BASELINE_EVALUATIONS in evaluations:
        runs = [run for run in runs if run[1] != BASELINE_EVALUATIONS]
        runs.append(("em, linear", BASELINE_EVALUATIONS, BASELINE))
    for label, n, (solver, grid, options) in runs:
        plan = cldfast.make_plan(
            given.sde, solver, n, grid, parameterization=given.parameterization, **options
        )
        key = {"problem": name, "case": label, "evaluations": n, "fit": ""}
        judge(given, table, key, plan, seeds)


def floor(given: Problem, name: str, table: Table) -> None:
    """The row of what is no sample of the network."""
    if not table.has(name, "floor", 0, "", ""):
        found = given.floor()
        mean = {k: float(np.mean([values[k] for values in found])) for k in found[0]}
        table.add({"problem": name, "case": "floor", "evaluations": 0} | mean)


def fitted(
    given: Problem, name: str, table: Table, n: int, fit: int, base: str, options: dict[str, Any],
    seeds: int, plans: Path,
) -> None:  # fmt: skip
    """Rows of one fit."""
    label = f"fitted {base}"
    path = plans / f"{name}-{n}-{base.replace(' ', '-')}-{fit}.json"
    if not path.exists():
        solver, grid, own = BASES[base]
        start = cldfast.make_plan(
            given.sde, solver, n, grid, parameterization=given.parameterization,
            **(own | {"order": min(own["order"], n)}),
        )  # fmt: skip
        result = cldfast.fit_plan(
            given.net, given.sde, given.data, n, base=start, seed=fit,
            parameterization=given.parameterization, **(given.fit | options),
        )  # fmt: skip
        path.parent.mkdir(parents=True, exist_ok=True)
        figures = {
            "before": result.before, "after": result.after, "seconds": result.seconds,
            "history": [list(row[:1] + row[2:]) for row in result.history],
        }  # fmt: skip
        result.plan.save(path, figures)
        print(path.name, figures, flush=True)
    plan = cldfast.Plan.load(path, given.sde, given.parameterization)
    seconds = cldfast.Plan.figures(path)["seconds"]
    key = {"problem": name, "case": label, "evaluations": n, "fit": fit}
    if not table.has(*key.values(), ""):
        table.add(key | {"seed": "", "seconds": float(seconds)})
    judge(given, table, key, plan, seeds)


def draw(table: Table, path: Path) -> None:
    """A panel for each problem: sliced W2 against evaluations."""
    names = [row["problem"] for row in table.rows if row["case"] == "floor"]
    figure = plots.new_figure(6 * len(names), 5)
    axes = figure.subplots(1, len(names), squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        own = [row for row in table.rows if row["problem"] == name and row["sliced_w2"]]
        lines: dict[str, dict[int, list[float]]] = {}
        for row in own:
            line = lines.setdefault(row["case"], {})
            line.setdefault(int(row["evaluations"]), []).append(float(row["sliced_w2"]))
        least = np.mean(lines.pop("floor")[0])
        axis.axhline(least, color="black", linestyle=":", label="floor")
        if "em, linear" in lines:
            level = np.mean(lines.pop("em, linear")[BASELINE_EVALUATIONS])
            axis.axhline(level, color="black", linestyle="--", label="em, 1,000 evaluations")
        for number, (label, line) in enumerate(lines.items()):
            points = sorted((n, float(np.mean(values))) for n, values in line.items())
            style = "-" if label.startswith("fitted") else ":"
            axis.plot(*zip(*points, strict=True), style, marker="os^vDPX*"[number % 8], label=label)
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_ylim(0.9 * least, 15 * least)
        axis.set_xlabel("network evaluations")
        axis.set_title(f"{name}: sliced W2 to test data")
        axis.grid(True, which="both", alpha=0.3)
    axes[0][0].legend(fontsize=8)
    plots.save(figure, path)


def main(arguments: list[str] | None = None) -> None:
    """Measure, write, draw."""
    parser = new_parser(__doc__)
    parser.add_argument("--problems", nargs="+", default=["funnel", "digits", "exact"])
    numbers = "1000, for what is not fitted, is a run of em"
    parser.add_argument("--evaluations", nargs="+", type=int, default=EVALUATIONS, help=numbers)
    parser.add_argument("--bases", nargs="+", default=list(BASES), choices=list(BASES))
    parser.add_argument("--fits", nargs="+", type=int, default=[0, 1, 2], help="seeds of fits")
    parser.add_argument("--seeds", type=int, default=5, help="sampling seeds that judge")
    parser.add_argument("--unfitted", action="store_true", help="only what is not fitted")
    parser.add_argument("--options", type=json.loads, default={}, help="of fit_plan, as JSON")
    parser.add_argument("--root", type=Path, default=learned_nets.RUNS, help="networks and plans")
    parser.add_argument("--draw", action="store_true", help="only the picture")
    args = parser.parse_args(arguments)
    table = Table(args.out / TABLE)
    for name in [] if args.draw else args.problems:
        given = problem(name, args.root)
        floor(given, name, table)
        if args.unfitted:
            unfitted(given, name, table, tuple(args.evaluations), args.seeds)
            continue
        for n in args.evaluations:
            for base in args.bases:
                for fit in args.fits:
                    fitted(
                        given, name, table, n, fit, base, args.options, args.seeds,
                        args.root / "plans",
                    )  # fmt: skip
    draw(table, args.out / "fitted_study.png")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
