"""What the network sees, what it returns and at which times it is trained: several trainings each.

Networks of one width are trained with equally many steps on the same rows, standardised, and judged
by the sliced Wasserstein-2 distance of their samples, in the units of the data, to fresh exact
ones. The floor is that distance between exact samples. Two questions, a part of the file each:

    position noise   x_noise > 0: data_noise and edm (d outputs) beside a network of both rows of
                     the score (2 d outputs) and the velocity score (the recipe until then)
    preconditioning  x_noise = 0: times, preconditioning, input and averaged targets apart

    python benchmarks/learning_study.py            # both; rows that are there already stay
    python benchmarks/learning_study.py --data gaussians25 --trainings 1 --steps 200 --out try.csv

One setting of width, steps, step size and t_min serves all forms and was chosen beforehand. The
times and the weighting of the last recipe were chosen among twelve on other trainings (seed 0) of
`edm` with x_noise = 0.25, by the same distance; the trainings here are others.
"""

from __future__ import annotations

import csv
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from output import RESULTS, new_parser
from torch import Tensor, nn

import cldfast
from cldfast.lab.data import Digits, make_data
from cldfast.lab.metrics import sliced_w2
from cldfast.lab.models import MLPScore, UNetScore
from cldfast.network import Network
from cldfast.planner.data_forms import Preconditioned
from cldfast.planner.parameterization import Parameterization, data_form, named_form, output_planes
from cldfast.training import TrainConfig, Trainer
from cldfast.training.data_scale import DataScale

WIDTH, DEPTH, BATCH, LR = 96, 3, 256, 2e-3
ROWS, DRAWN, PROJECTIONS = 50_000, 10_000, 256
# data -> (coordinates, training steps)
DATA = {"gaussians25": (2, 3_000), "funnel": (20, 4_000), "digits": (64, 1_500)}
# Of the digits, whose network is the demo's U-Net: batch, samples, and the recipes compared.
DIGITS_BATCH, DIGITS_DRAWN = 128, 2_048
DIGITS_RECIPES = (
    "noise, uniform times", "mixed, uniform times", "edm, half_log times, edm weighting",
    "edm, half_log times, edm weighting, averaged targets",
)  # fmt: skip
# Rows over which targets are averaged.
REFERENCE = 2_048
X_NOISE = (0.1, 0.25, 0.5, 1.0)
# solver, evaluations, options
SAMPLERS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "multistep 3, 20": ("multistep", 20, {"order": 3, "grid": "logistic"}),
    "stochastic_multistep, 20": ("stochastic_multistep", 20, {"grid": "auto"}),
}


@dataclass(frozen=True)
class Recipe:
    """A parameterisation with its training times and the weighting of its loss.

    preconditioned: by `PreconditionedState`. reference: rows over which targets are averaged.
    trainings: how many at most.
    """

    parameterization: str
    times: str = "half_log"
    weighting: str = "edm"
    preconditioned: bool = False
    reference: int = 0
    trainings: int = 1


POSITION_NOISE = {
    "noise, uniform times": Recipe("noise", "uniform", "reweighted"),
    "full_noise": Recipe("full_noise", trainings=5),
    "data_noise": Recipe("data_noise", trainings=5),
    "edm": Recipe("edm", trainings=5),
}
PRECONDITIONING = {
    "noise, uniform times": Recipe("noise", "uniform", "reweighted", trainings=5),
    "mixed, uniform times": Recipe("mixed", "uniform", "reweighted", trainings=5),
    "mixed, half_log times": Recipe("mixed", "half_log", "reweighted"),
    "mixed, half_log times, edm weighting": Recipe("mixed"),
    "preconditioned (x, v), uniform times": Recipe("data_noise", "uniform", "reweighted", True),
    "preconditioned (x, v), half_log times, edm weighting": Recipe(
        "data_noise", preconditioned=True
    ),
    "preconditioned (x, v), half_log times, edm weighting, averaged targets": Recipe(
        "data_noise", preconditioned=True, reference=REFERENCE
    ),
    "edm, uniform times": Recipe("edm", "uniform", "reweighted"),
    "edm, half_log times, edm weighting": Recipe("edm", trainings=5),
    "edm, half_log times, edm weighting, averaged targets": Recipe(
        "edm", reference=REFERENCE, trainings=5
    ),
}
FIELDS = (
    "data", "x_noise", "recipe", "training", "steps", "sampler", "sliced_w2", "floor",
    "step_milliseconds", "threads", "torch", "cldfast",
)  # fmt: skip


class PreconditionedState(nn.Module):
    """The preconditioning of Karras et al. (2022) around a network of the state: it returns nu.

    Each half of the state is divided by its standard deviation; c_skip and c_out are those of y.
    """

    def __init__(self, net: nn.Module, sde: cldfast.LinearPhaseSDE) -> None:
        super().__init__()
        self.net, self.sde = net, sde

    def forward(self, u: Tensor, t: Tensor) -> Tensor:
        shared = t[:1] if t.stride(0) == 0 else t
        marginal = self.sde.marginal(shared.double())
        size = (marginal.cov.diagonal(dim1=1, dim2=2) + marginal.mean**2).sqrt()
        made = Preconditioned().coefficients(marginal.sigma_y)
        x, v = u.chunk(2, dim=1)
        seen = torch.cat([x / size[:, :1].to(u.dtype), v / size[:, 1:].to(u.dtype)], 1)
        row = marginal.statistic.to(u.dtype)
        y = row[:, :1] * x + row[:, 1:] * v
        keep = (made.drop / marginal.sigma_y).to(u.dtype)[:, None]
        gain = (made.gain / marginal.sigma_y).to(u.dtype)[:, None]
        return keep * y - gain * self.net(seen, t)


def network(recipe: Recipe, sde: cldfast.LinearPhaseSDE, rows: Tensor) -> nn.Module:
    """A fresh network of the recipe, for data like the rows."""
    form = data_form(recipe.parameterization)
    sees: dict[str, Any] = {}
    if form is not None and form.sees_y:
        sees = {"in_planes": 1, "conditioning": "c_noise"}
    planes = output_planes(recipe.parameterization)
    if rows.dim() == 4:
        return UNetScore(rows.shape[1], planes * rows.shape[1], width=16, **sees)
    dim = rows.shape[1]
    net = MLPScore(dim, planes * dim, width=WIDTH, depth=DEPTH, **sees)
    return PreconditionedState(net, sde) if recipe.preconditioned else net


def train(
    recipe: Recipe, sde: cldfast.LinearPhaseSDE, rows: Tensor, steps: int, seed: int
) -> tuple[nn.Module, Parameterization, float]:
    """The averaged network, its parameterisation, and the seconds of a step."""
    torch.manual_seed(seed)
    config = TrainConfig(
        steps=steps, batch_size=BATCH if rows.dim() == 2 else DIGITS_BATCH, lr=LR, decay="cosine",
        clip=None, ema_decay=0.995,
        parameterization=recipe.parameterization, times=recipe.times, weighting=recipe.weighting,
        seed=seed, t_min=1e-3, reference=recipe.reference,
        log_every=1_000_000, validate_every=1_000_000,
    )  # fmt: skip
    trainer = Trainer(network(recipe, sde, rows), sde, rows, config)
    start = time.perf_counter()
    net = trainer.fit()
    return net, named_form(recipe.parameterization), (time.perf_counter() - start) / steps


def judge(
    net: Network,
    sde: cldfast.LinearPhaseSDE,
    form: Parameterization,
    shape: tuple[int, ...],
    distance: Callable[[Tensor], float],
) -> dict[str, float]:
    """The distance of the samples of each sampler; infinite where one is not finite."""
    result = {}
    for name, (solver, evaluations, options) in SAMPLERS.items():
        with torch.no_grad():
            x = cldfast.sample(
                net, sde, shape, solver, nfe=evaluations, parameterization=form, seed=12345,
                nonfinite="return", **options,
            )  # fmt: skip
        assert isinstance(x, Tensor)
        result[name] = distance(x) if bool(x.isfinite().all()) else float("inf")
    return result


def main() -> None:
    parser = new_parser(__doc__, RESULTS / "learning_study.csv")
    parser.add_argument("--data", nargs="+", default=list(DATA), choices=list(DATA))
    parser.add_argument("--trainings", type=int, default=5)
    parser.add_argument("--steps", type=int, help="training steps, for a trial")
    parser.add_argument("--shard", type=int, nargs=2, default=(0, 1), metavar=("K", "N"))
    args = parser.parse_args()
    done = set()
    if args.out.exists():
        with args.out.open() as file:
            done = {
                (r["data"], float(r["x_noise"]), r["recipe"], int(r["training"]), int(r["steps"]))
                for r in csv.DictReader(file)
            }
    jobs = [
        (training, data, x_noise, name, recipe)
        for training in range(1, args.trainings + 1)
        for data in args.data
        for x_noise, recipes in [(0.0, PRECONDITIONING), *((x, POSITION_NOISE) for x in X_NOISE)]
        for name, recipe in recipes.items()
        if training <= recipe.trainings
        if data != "digits" or (x_noise == 0.0 and name in DIGITS_RECIPES)
    ][args.shard[0] :: args.shard[1]]
    known: dict[str, tuple[DataScale, Tensor, Callable[[Tensor], float], float]] = {}
    for number, (training, data, x_noise, name, recipe) in enumerate(jobs):
        dim, steps = DATA[data]
        steps = args.steps or steps
        if (data, x_noise, name, training, steps) in done:
            continue
        if data not in known:
            source = make_data(data, dim)
            if isinstance(source, Digits):
                # There are no more test digits: the floor is the training set's distance to them.
                rows, fresh, exact = source.train_x, [source.test_x], source.train_x
            else:
                rows = source.sample(ROWS, seed=0)
                fresh = [source.sample(DRAWN, seed=100 + k) for k in range(2)]
                exact = source.sample(DRAWN, seed=99)
            scale = DataScale.fit(rows)

            def distance(
                x: Tensor, scale: DataScale | None = scale, fresh: list[Tensor] = fresh
            ) -> float:
                x = x if scale is None else scale.restore(x)
                distances = [sliced_w2(x.flatten(1), y.flatten(1), PROJECTIONS) for y in fresh]
                return sum(distances) / len(distances)

            known[data] = scale, scale.standardise(rows), distance, distance(exact, None)
        scale, rows, distance, floor = known[data]
        shape = (DRAWN if rows.dim() == 2 else DIGITS_DRAWN, *rows.shape[1:])
        # a = 1 and sigma^2 = 2, the process of the published position-noise experiments; for the
        # digits that of the demo.
        sde = cldfast.CLD(a=1.0, sigma=2.0**0.5, x_noise=x_noise, v0_var=0.01)
        if data == "digits":
            sde = cldfast.CLD()
        net, form, seconds = train(recipe, sde, rows, steps, seed=training)
        for sampler, w2 in judge(net, sde, form, shape, distance).items():
            row = {
                "data": data, "x_noise": x_noise, "recipe": name, "training": training,
                "steps": steps, "sampler": sampler, "sliced_w2": f"{w2:.5f}",
                "floor": f"{floor:.5f}", "step_milliseconds": f"{1e3 * seconds:.3f}",
                "threads": torch.get_num_threads(), "torch": torch.__version__,
                "cldfast": cldfast.__version__,
            }  # fmt: skip
            new = not args.out.exists()
            with args.out.open("a", newline="") as file:
                writer = csv.DictWriter(file, FIELDS)
                if new:
                    writer.writeheader()
                writer.writerow(row)
        print(
            f"{number + 1}/{len(jobs)} {data} x_noise={x_noise} {name}: {w2:.4f}", file=sys.stderr
        )


if __name__ == "__main__":
    main()
