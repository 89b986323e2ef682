"""Sample quality against network evaluations, for solvers with learned velocity scores.

    python benchmarks/learned_study.py                        # about half an hour on one idle core
    python benchmarks/learned_study.py --problems digits --seeds 1
    python benchmarks/learned_study.py --speed                # times of whole runs

Problems: the Funnel in d = 20 (an MLP, 10,000 samples) and the handwritten digits (a U-Net, 512
samples). Each network is trained once, see `learned_nets.py`; the seeds are those of the initial
states and the noise, the same for every solver. Measure: sliced Wasserstein-2 (not squared) to
exact samples, or to the held-out digits. Floor: the same distance from other exact samples, or from
the training digits. Every distance is kept under `runs/studies/measured`, so that a study that was
stopped goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import learned_nets
import numpy as np
import torch
from output import new_parser, write_csv
from torch import Tensor

import cldfast
from cldfast.lab import plots
from cldfast.lab.data import Digits, Funnel
from cldfast.lab.metrics import sliced_w2
from cldfast.model.run_folder import RunConfig

BASELINE = "em, linear"
# label -> (solver, grid, options); quadratic grids where nothing is said
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    BASELINE: ("em", "linear", {}),
    "sscs2": ("sscs2", "quadratic", {}),
    "sscs2, linear": ("sscs2", "linear", {}),
    "multistep 3": ("multistep", "quadratic", {"order": 3}),
    "stochastic_multistep 3": ("stochastic_multistep", "quadratic", {"order": 3, "churn": 0.5}),
    "unipc": ("unipc", "quadratic", {}),
    "unipc, power 1.5": ("unipc", "power", {"rho": 1.5}),
}
EVALUATIONS = (20, 50)
BASELINE_EVALUATIONS = (20, 1000)
# Rows a network call: what fits a core's cache is fastest.
BATCH = {"funnel": 2_000, "digits": 128}
SPEED_CASES = ((BASELINE, 1000), ("stochastic_multistep 3", 20), ("stochastic_multistep 3", 50))
SPEED_ROUNDS = 3
SPEED_SAMPLES = {"funnel": 100, "digits": 8}

TEST_SEED = 5_000
TEST_SETS = 4
PROJECTIONS = 500


@dataclass(frozen=True)
class Problem:
    """A network, and how far samples are from what it has learned."""

    config: RunConfig
    samples: int
    distance: Callable[[Tensor], float]
    floor: Callable[[], list[float]]


def funnel_distance(dim: int, samples: int) -> tuple[Callable[[Tensor], float], Any]:
    """Mean sliced W2 to a few exact samples of the same size, and its floor from others."""

    @cache
    def directions() -> Tensor:
        draws = np.random.default_rng(0).standard_normal((dim, PROJECTIONS))
        return torch.from_numpy(draws / np.linalg.norm(draws, axis=0)).float()

    def projected(x: Tensor) -> Tensor:
        return (directions().T @ x.T).sort(1).values

    @cache
    def references() -> list[Tensor]:
        return [projected(Funnel(dim).sample(samples, TEST_SEED + k)) for k in range(TEST_SETS)]

    def distance(x: Tensor) -> float:
        own = projected(x)
        return float(np.mean([float((own - r).square().mean().sqrt()) for r in references()]))

    def floor() -> list[float]:
        first = TEST_SEED + TEST_SETS
        return [distance(Funnel(dim).sample(samples, first + k)) for k in range(2 * TEST_SETS)]

    return distance, floor


def problem(name: str, samples: int | None = None, **training: Any) -> Problem:
    """By name, "funnel" or "digits"; training: of the functions of `learned_nets`."""
    if name == "funnel":
        config = learned_nets.funnel(**training)
        size = samples or 10_000
        return Problem(config, size, *funnel_distance(config.shape[0], size))
    data = Digits()
    return Problem(
        learned_nets.digits(**training),
        samples or 512,
        lambda x: sliced_w2(x, data.test_x),
        lambda: [sliced_w2(data.train_x, data.test_x)],
    )


def measure(
    given: Problem, solver: str, evaluations: int, grid: str, options: dict[str, Any], seed: int,
    root: Path, only_kept: bool = False,
) -> float | None:  # fmt: skip
    """Sliced W2 (infinite where samples are) of one run, kept under `root`.

    only_kept: None for a run that has not been made.
    """
    what = [asdict(given.config), given.samples, solver, evaluations, grid, options, seed]
    del what[0]["versions"]
    name = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]
    kept = root / "measured" / f"{name}.json"
    if kept.exists():
        return float(json.loads(kept.read_text())["sliced_w2"])
    if only_kept:
        return None
    net, sde, _ = learned_nets.trained(given.config, root)
    x = cldfast.sample(
        net, sde, (given.samples, *given.config.shape), solver, evaluations, grid,
        t_min=given.config.t_min, parameterization=given.config.parameterization, seed=seed,
        batch_size=BATCH[given.config.data["name"]], nonfinite="return", **options,
    )  # fmt: skip
    assert isinstance(x, Tensor)
    distance = given.distance(x) if bool(x.isfinite().all()) else float("inf")
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps({"sliced_w2": distance}))
    return distance


def study(
    name: str, seeds: int, cases: dict[str, Any], budgets: dict[str, tuple[int, ...]], root: Path,
    only_kept: bool = False, **options: Any,
) -> list[dict[str, Any]]:  # fmt: skip
    """Rows of one problem: the floor, the baseline, every case.

    `over_baseline` compares means over the seeds that both have.
    """
    given = problem(name, **options)
    floor = given.floor()
    wanted = [(label, n) for label in cases for n in budgets.get(label, EVALUATIONS)]
    distances: dict[tuple[str, int], dict[int, float]] = {case: {} for case in wanted}
    # Seeds outside: what a stopped study leaves can be compared.
    for seed in range(seeds):
        for label, evaluations in wanted:
            solver, grid, own = cases[label]
            distance = measure(given, solver, evaluations, grid, own, seed, root, only_kept)
            if distance is not None:
                distances[label, evaluations][seed] = distance
    reference = distances[max(case for case in wanted if case[0] == BASELINE)]
    rows = [summary(name, "floor", 0, dict(enumerate(floor)), floor, {})]
    for (label, evaluations), own in distances.items():
        if own:
            rows.append(summary(name, label, evaluations, own, floor, reference))
    return rows


def summary(
    name: str, label: str, evaluations: int, distances: dict[int, float], floor: list[float],
    reference: dict[int, float],
) -> dict[str, Any]:  # fmt: skip
    """One row of the results; distances and those of the baseline are by seed."""
    values = list(distances.values())
    both = sorted(distances.keys() & reference.keys())
    with np.errstate(invalid="ignore"):
        mean, sd = float(np.mean(values)), float(np.std(values))
    ratio = ""
    if both:
        ratio = f"{sum(distances[k] for k in both) / sum(reference[k] for k in both):.4f}"
    print(f"{name:8s} {label:28s} {evaluations:5d}  {mean:.4f} +- {sd:.4f}  {ratio}", flush=True)
    return {
        "problem": name, "solver": label, "evaluations": evaluations, "seeds": len(values),
        "sliced_w2": mean, "sliced_w2_sd": sd, "over_floor": mean / float(np.mean(floor)),
        "over_baseline": ratio, "seeds_of_both": len(both),
    }  # fmt: skip


def speed(
    name: str, cases: Sequence[tuple[str, int]], root: Path, **options: Any
) -> list[dict[str, Any]]:
    """Processor seconds of whole runs on one batch and one thread, which is wall-clock time where
    nothing else runs: medians over rounds in which all cases take turns.

    cases: (label of `CASES`, evaluations) of each; the first is what the others are compared with.
    """
    given = problem(name, **options)
    net, sde, _ = learned_nets.trained(given.config, root)
    batch = SPEED_SAMPLES[name]
    times: dict[tuple[str, int], list[float]] = {case: [] for case in cases}
    for _ in range(SPEED_ROUNDS):
        for (label, evaluations), own in times.items():
            solver, grid, settings = CASES[label]
            # Thread pools start and memory is mapped before the clock runs.
            for steps in (4, evaluations):
                start = time.process_time()
                cldfast.sample(
                    net, sde, (batch, *given.config.shape), solver, steps, grid,
                    t_min=given.config.t_min, parameterization=given.config.parameterization,
                    **settings,
                )  # fmt: skip
            own.append(time.process_time() - start)
    first = float(np.median(next(iter(times.values()))))
    return [
        {
            "problem": name, "solver": label, "evaluations": evaluations, "samples": batch,
            "seconds": float(np.median(own)), "times_faster": first / float(np.median(own)),
        }
        for (label, evaluations), own in times.items()
    ]  # fmt: skip


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """A panel for each problem, a line for each solver."""
    problems = list(dict.fromkeys(r["problem"] for r in rows))
    figure = plots.new_figure(7 * len(problems), 6)
    axes = figure.subplots(1, len(problems), squeeze=False)
    for axis, name in zip(axes[0], problems, strict=True):
        own = [r for r in rows if r["problem"] == name]
        axis.axhline(own[0]["sliced_w2"], color="black", linestyle=":", label="floor")
        for number, label in enumerate(dict.fromkeys(r["solver"] for r in own[1:])):
            points = [r for r in own if r["solver"] == label and np.isfinite(r["sliced_w2"])]
            axis.errorbar(
                [r["evaluations"] for r in points], [r["sliced_w2"] for r in points],
                [r["sliced_w2_sd"] for r in points], marker="os^vDPX*"[number % 8], markersize=5,
                capsize=2, label=label,
            )  # fmt: skip
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_ylim(0.9 * own[0]["sliced_w2"], 12 * own[0]["sliced_w2"])
        axis.set_xlabel("network evaluations")
        axis.set_title(f"{name}: sliced W2 to test data, learned score")
        axis.grid(True, which="both", alpha=0.3)
    axes[0][0].legend(fontsize=8)
    plots.save(figure, path)


def main(arguments: list[str] | None = None) -> None:
    """Measure, write, draw."""
    parser = new_parser(__doc__)
    parser.add_argument("--problems", nargs="+", default=["funnel", "digits"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--speed", action="store_true", help="times of whole runs, nothing else")
    parser.add_argument("--kept", action="store_true", help="report the runs made so far")
    args = parser.parse_args(arguments)
    if args.speed:
        timed = [r for name in args.problems for r in speed(name, SPEED_CASES, learned_nets.RUNS)]
        write_csv(args.out / "learned_speed.csv", timed)
        return
    budgets = {BASELINE: BASELINE_EVALUATIONS}
    rows = [
        row
        for name in args.problems
        for row in study(name, args.seeds, CASES, budgets, learned_nets.RUNS, args.kept)
    ]
    write_csv(args.out / "learned_study.csv", rows)
    plot(rows, args.out / "learned_study.png")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
