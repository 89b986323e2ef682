"""Which unfitted solver and grid is best for a number of evaluations, with learned networks.

Networks of the recipe that `cldfast train` takes, on 25 Gaussians, the Funnel (d = 20) and the
digits, without and with noise on the position, two trainings each. The rule that `solver="auto"`
follows is chosen by the first training of each and judged by the second.

    python benchmarks/auto_study.py                 # rows that are there already stay
    python benchmarks/auto_study.py --summary       # each choice's worst ratio to the best

`sliced_w2` to fresh data, in their units, of samples of one seed; `steps` are evaluations.
"""

from __future__ import annotations

import csv
import sys
from typing import Any

import torch
from learning_study import DATA, PROJECTIONS, REFERENCE, ROWS, Recipe, train
from output import RESULTS, new_parser

import cldfast
from cldfast.lab.data import Digits, make_data
from cldfast.lab.metrics import sliced_w2
from cldfast.training.data_scale import DataScale

EVALUATIONS = (6, 8, 10, 15, 20, 50)
SOLVERS: dict[str, tuple[str, dict[str, Any]]] = {
    "multistep 2": ("multistep", {"order": 2}),
    "multistep 3": ("multistep", {"order": 3}),
    "stochastic_multistep 2": ("stochastic_multistep", {"order": 2, "churn": 0.5}),
    "stochastic_multistep 3": ("stochastic_multistep", {"order": 3, "churn": 0.5}),
    "unipc": ("unipc", {}),
}
GRIDS = ("logistic", "quadratic")
# data and the noise on the position
PROBLEMS = (
    ("gaussians25", 0.0), ("gaussians25", 0.25), ("funnel", 0.0), ("funnel", 0.25),
    ("digits", 0.0), ("digits", 0.25),
)  # fmt: skip
TRAININGS = (1, 2)
DRAWN, DIGITS_DRAWN, BATCH = 5_000, 1_024, 512
FIELDS = ("data", "x_noise", "training", "solver", "grid", "evaluations", "sliced_w2", "cldfast")
Key = tuple[str, ...]


def read(path: Any) -> dict[Key, float]:
    """The distances that are there, by all columns before them."""
    if not path.exists():
        return {}
    with path.open() as file:
        return {
            tuple(row[name] for name in FIELDS[:6]): float(row["sliced_w2"])
            for row in csv.DictReader(file)
        }


def summary(found: dict[Key, float], training: int) -> list[str]:
    """For each number of evaluations: every choice's ratio to the best one, the worst network's."""
    lines = []
    for count in EVALUATIONS:
        problems: dict[Key, dict[Key, float]] = {}
        for (data, x_noise, number, solver, grid, evaluations), w2 in found.items():
            if number == str(training) and evaluations == str(count):
                problems.setdefault((data, x_noise), {})[solver, grid] = w2
        choices = {choice for own in problems.values() for choice in own}
        worst = {
            choice: max(own[choice] / min(own.values()) for own in problems.values())
            for choice in choices
            if all(choice in own for own in problems.values())
        }
        ranked = sorted(worst.items(), key=lambda item: item[1])
        lines.append(
            f"{count:3d}  " + ", ".join(f"{s} {g} {ratio:.2f}" for (s, g), ratio in ranked)
        )
    return lines


def main() -> None:
    parser = new_parser(__doc__, RESULTS / "auto_study.csv")
    parser.add_argument("--summary", action="store_true", help="say what the rows say")
    args = parser.parse_args()
    found = read(args.out)
    if args.summary:
        for training in TRAININGS:
            print(f"training {training}", *summary(found, training), sep="\n")
        return
    for training in TRAININGS:
        for data, x_noise in PROBLEMS:
            dim, steps = DATA[data]
            wanted = {
                (data, str(x_noise), str(training), solver, grid, str(count))
                for solver in SOLVERS
                for grid in GRIDS
                for count in EVALUATIONS
            } - found.keys()
            if not wanted:
                continue
            source = make_data(data, dim)
            if isinstance(source, Digits):
                rows, fresh, drawn = source.train_x, source.test_x, DIGITS_DRAWN
            else:
                rows, fresh, drawn = (
                    source.sample(ROWS, seed=0),
                    source.sample(DRAWN, seed=200),
                    DRAWN,
                )
            scale = DataScale.fit(rows)
            # The default process, and the published one with noise on the position.
            sde = cldfast.CLD()
            if x_noise:
                sde = cldfast.CLD(a=1.0, sigma=2.0**0.5, x_noise=x_noise, v0_var=0.01)
            # None of the seeds of the other studies' trainings.
            recipe = Recipe("edm", reference=REFERENCE)
            net, form, _ = train(recipe, sde, scale.standardise(rows), steps, 100 + training)
            new = not args.out.exists()
            with args.out.open("a", newline="") as file:
                writer = csv.writer(file)
                if new:
                    writer.writerow(FIELDS)
                for key in sorted(wanted):
                    solver, options = SOLVERS[key[3]]
                    with torch.no_grad():
                        x = cldfast.sample(
                            net, sde, (drawn, *rows.shape[1:]), solver, int(key[5]), key[4],
                            t_min=1e-3, parameterization=form, seed=12345, batch_size=BATCH,
                            nonfinite="return", **options,
                        )  # fmt: skip
                    assert isinstance(x, torch.Tensor)
                    w2 = float("inf")
                    if bool(x.isfinite().all()):
                        x = scale.restore(x)
                        w2 = sliced_w2(x.flatten(1), fresh.flatten(1), PROJECTIONS)
                    writer.writerow([*key, f"{w2:.5f}", cldfast.__version__])
            print(f"{data} x_noise={x_noise} training {training}", file=sys.stderr)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
