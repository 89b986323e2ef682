"""Sample quality against network evaluations, for solvers with learned velocity scores.

    python benchmarks/learned_study.py                        # about an hour on one core
    python benchmarks/learned_study.py --problems digits --seeds 1

Problems: the Funnel in d = 20 (an MLP, 10,000 samples) and the handwritten digits (a U-Net, 512
samples). Each network is trained once, see `learned_nets.py`; the seeds are those of the initial
states and the noise, the same for every solver. Measure: sliced Wasserstein-2 (not squared) to
exact samples, or to the held-out digits. Floor: the same distance from other exact samples, or from
the training digits. Every distance is kept under `runs/studies/measured`, so that a study that was
stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import learned_nets
import numpy as np
import torch
from torch import Tensor

import cldfast
from cldfast.data import Digits, Funnel
from cldfast.metrics import sliced_w2
from cldfast.run_folder import RunConfig

BASELINE = "em, linear"
# label -> (solver, grid, options)
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    BASELINE: ("em", "linear", {}),
    "em": ("em", "quadratic", {}),
    "sscs": ("sscs", "quadratic", {}),
    "sscs2": ("sscs2", "auto", {}),
    "sscs2, linear": ("sscs2", "linear", {}),
    "sscs2, quadratic": ("sscs2", "quadratic", {}),
    "stochastic_multistep": ("stochastic_multistep", "auto", {}),
    "stochastic_multistep, quadratic": ("stochastic_multistep", "quadratic", {}),
    "multistep 2": ("multistep", "auto", {}),
    "multistep 2, linear": ("multistep", "linear", {}),
    "multistep 2, quadratic": ("multistep", "quadratic", {}),
    "unipc": ("unipc", "auto", {}),
    "unipc, quadratic": ("unipc", "quadratic", {}),
}
EVALUATIONS = (10, 20, 50)
BASELINE_EVALUATIONS = (20, 50, 1000)
# Rows a network call: what fits a core's cache is fastest.
BATCH = {"funnel": 2_000, "digits": 128}

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
    root: Path,
) -> dict[str, float]:  # fmt: skip
    """Sliced W2 (infinite where samples are) and seconds of one run, kept under `root`."""
    what = [asdict(given.config), given.samples, solver, evaluations, grid, options, seed]
    del what[0]["versions"]
    name = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]
    kept = root / "measured" / f"{name}.json"
    if kept.exists():
        return json.loads(kept.read_text())  # type: ignore[no-any-return]
    net, sde, _ = learned_nets.trained(given.config, root)
    start = time.perf_counter()
    x = cldfast.sample(
        net, sde, (given.samples, *given.config.shape), solver, evaluations, grid,
        given.config.t_min, given.config.parameterization, seed=seed,
        batch_size=BATCH[given.config.data["name"]], **options,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    assert isinstance(x, Tensor)
    distance = given.distance(x) if bool(x.isfinite().all()) else float("inf")
    result = {"sliced_w2": distance, "seconds": seconds}
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(result))
    return result


def study(
    name: str, seeds: int, cases: dict[str, Any], budgets: dict[str, tuple[int, ...]], root: Path,
    **options: Any,
) -> list[dict[str, Any]]:  # fmt: skip
    """Rows of one problem: the floor, the baseline, every case."""
    given = problem(name, **options)
    floor = given.floor()
    rows: list[dict[str, Any]] = []

    def add(label: str, evaluations: int, values: list[float], seconds: float) -> None:
        with np.errstate(invalid="ignore"):
            mean, sd = float(np.mean(values)), float(np.std(values))
        rows.append(
            {
                "problem": name, "solver": label, "evaluations": evaluations,
                "seeds": len(values), "sliced_w2": mean, "sliced_w2_sd": sd,
                "over_floor": mean / float(np.mean(floor)), "seconds": seconds,
            }
        )  # fmt: skip
        print(f"{name:8s} {label:34s} {evaluations:5d}  {mean:.4f} +- {sd:.4f}", flush=True)

    add("floor", 0, floor, 0.0)
    for label, (solver, grid, own) in cases.items():
        for evaluations in budgets.get(label, EVALUATIONS):
            runs = [
                measure(given, solver, evaluations, grid, own, seed, root) for seed in range(seeds)
            ]
            seconds = float(np.median([r["seconds"] for r in runs]))
            add(label, evaluations, [r["sliced_w2"] for r in runs], seconds)
    baseline = max(
        (r for r in rows if r["solver"] == BASELINE), key=lambda r: int(r["evaluations"])
    )
    for row in rows:
        row["over_baseline"] = row["sliced_w2"] / baseline["sliced_w2"]
        row["times_faster"] = baseline["seconds"] / row["seconds"] if row["seconds"] else 0.0
    return rows


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """A panel for each problem, a line for each solver."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    problems = list(dict.fromkeys(r["problem"] for r in rows))
    figure, axes = plt.subplots(1, len(problems), figsize=(7 * len(problems), 6), squeeze=False)
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
    axes[0][-1].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def write(rows: list[dict[str, Any]], path: Path) -> None:
    """As CSV, numbers to five digits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        for row in rows:
            writer.writerow({k: f"{v:.5g}" if isinstance(v, float) else v for k, v in row.items()})


def main(arguments: list[str] | None = None) -> None:
    """Measure, write, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", nargs="+", default=["funnel", "digits"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args(arguments)
    budgets = {BASELINE: BASELINE_EVALUATIONS}
    rows = [
        row
        for name in args.problems
        for row in study(name, args.seeds, CASES, budgets, learned_nets.RUNS)
    ]
    write(rows, args.out / "learned_study.csv")
    plot(rows, args.out / "learned_study.png")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
