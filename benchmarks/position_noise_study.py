"""With noise on the position too, is a network with d outputs enough? Side by side with 2d outputs.

    python benchmarks/position_noise_study.py                 # about 20 minutes on one core

The Funnel in d = 20, process a = 1, sigma = sqrt 2, x_noise = 0.25. The same MLP with d outputs
(velocity noise; the position score follows from it, `cldfast.planner.parameterization`) and with 2d
outputs (noise of position and velocity), 8,000 steps each from the same five seeds; 10,000
samples. Measure: sliced Wasserstein-2 (not squared) to exact samples, mean and spread over the
seeds, which are those of training and of sampling. `train_step_ms` is the time of a training step,
both networks measured in turns.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import learned_nets
import numpy as np
import torch
from learned_study import Problem, funnel_distance, measure
from output import new_parser, write_csv

from cldfast.app.training_data import training_data
from cldfast.lab import plots
from cldfast.lab.models import build_model
from cldfast.model.run_folder import RunConfig
from cldfast.process.sde import sde_from_config
from cldfast.training import TrainConfig, Trainer

DIM = 20
TRAIN_STEPS = 8_000
NETWORKS = {"d outputs": "noise", "2d outputs": "full_noise"}
# label -> (solver, grid, options)
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "sscs2, linear": ("sscs2", "linear", {}),
    "multistep 3, linear": ("multistep", "linear", {"order": 3}),
}
EVALUATIONS = (10, 20)


def step_times(configs: list[RunConfig], rounds: int = 10, calls: int = 20) -> list[float]:
    """Seconds of a training step for each network: medians over rounds that take turns."""
    trainers = []
    for config in configs:
        torch.manual_seed(0)
        rows = training_data(config.data or {}).rows
        settings = TrainConfig.from_dict(config.train or {})
        trainers.append(
            Trainer(build_model(config.model), sde_from_config(config.sde), rows, settings)
        )
    times: list[list[float]] = [[] for _ in trainers]
    for number in range(1 + rounds):
        for trainer, own in zip(trainers, times, strict=True):
            start = time.process_time()
            for _ in range(calls):
                trainer.train_step()
            # The first round warms up.
            if number:
                own.append((time.process_time() - start) / calls)
    return [float(np.median(own)) for own in times]


def study(
    seeds: int, root: Path, samples: int = 10_000, dim: int = DIM, steps: int = TRAIN_STEPS
) -> list[dict[str, Any]]:
    """One row for each network, solver and number of evaluations, the floor first."""
    process = {"a": 1.0, "sigma": math.sqrt(2.0), "x_noise": 0.25}
    distance, exact = funnel_distance(dim, samples)
    floor = exact()
    rows: list[dict[str, Any]] = []

    def add(network: str, label: str, evaluations: int, values: list[float], **more: float) -> None:
        rows.append(
            {
                "network": network, "solver": label, "evaluations": evaluations,
                "seeds": len(values), "sliced_w2": float(np.mean(values)),
                "sliced_w2_sd": float(np.std(values)),
                "over_floor": float(np.mean(values) / np.mean(floor)), **more,
            }
        )  # fmt: skip
        print(f"{network:12s} {label:22s} {evaluations:3d}  {np.mean(values):.4f}", flush=True)

    add("exact samples", "floor", 0, floor, train_step_ms=0.0, validation_loss=0.0)
    trained = {
        network: [
            learned_nets.funnel(
                dim,
                **process,
                parameterization=parameterization,
                steps=steps,
                batch_size=256,
                clip=1.0,
                seed=1 + k,
            )  # fmt: skip
            for k in range(seeds)
        ]
        for network, parameterization in NETWORKS.items()
    }
    speeds = step_times([configs[0] for configs in trained.values()])
    for (network, configs), seconds in zip(trained.items(), speeds, strict=True):
        trainings = [learned_nets.trained(config, root)[2] for config in configs]
        of_training = {
            "train_step_ms": 1e3 * seconds,
            "validation_loss": float(np.mean([m["validation_loss"] for m in trainings])),
        }
        for label, (solver, grid, options) in CASES.items():
            for evaluations in EVALUATIONS:
                values = [
                    measure(
                        Problem(config, samples, distance, exact), solver, evaluations, grid,
                        options, seed, root,
                    )
                    for seed, config in enumerate(configs)
                ]  # fmt: skip
                add(network, label, evaluations, values, **of_training)
    return rows


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """One line for each network and solver."""
    figure = plots.new_figure(7.5, 5.5)
    axis = figure.add_subplot()
    axis.axhline(rows[0]["sliced_w2"], color="black", linestyle=":", label="two exact samples")
    for number, label in enumerate(CASES):
        for network, style, shift in zip(NETWORKS, ("-o", "--s"), (0.98, 1.02), strict=True):
            points = [r for r in rows if r["network"] == network and r["solver"] == label]
            axis.errorbar(
                [shift * r["evaluations"] for r in points], [r["sliced_w2"] for r in points],
                [r["sliced_w2_sd"] for r in points], fmt=style, color=f"C{number}", markersize=4,
                capsize=2, label=f"{label}, {network}",
            )  # fmt: skip
    axis.set_xscale("log")
    axis.set_xticks(EVALUATIONS, [str(n) for n in EVALUATIONS])
    axis.minorticks_off()
    axis.set_xlabel("network evaluations")
    axis.set_ylabel("sliced W2")
    axis.set_title("Funnel d = 20, x_noise = 0.25: sliced W2, five trainings")
    axis.grid(True, which="both", alpha=0.3)
    axis.legend(fontsize=8)
    plots.save(figure, path)


def main(arguments: list[str] | None = None) -> None:
    """Train, measure, write, draw."""
    parser = new_parser(__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    args = parser.parse_args(arguments)
    rows = study(args.seeds, learned_nets.RUNS)
    write_csv(args.out / "position_noise_study.csv", rows)
    plot(rows, args.out / "position_noise_study.png")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
