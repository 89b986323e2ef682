"""Perturbation, loss and gradient by the kernels against the published loss, the network cached.

    python benchmarks/loss_kernel.py

The network is left out: its output is a parameter, which requires a gradient. Writes
benchmarks/results/loss_kernel.csv, a row for each case and thread count: median seconds, sampled in
turns in one run, of

    published   the public hybrid score matching loss as published code writes it, and backward
    ops         `ops.perturb`, `ops.matrices`, `ops.residual` with its gradient, at times given
    kernels     the same with times drawn as the published loss draws them, and backward
    hsm_loss    the public function with addressed times, and backward

and the peaks of PyTorch's allocator, in planes of the data: state and gradient are three.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn
from training_step import T_MIN, PublishedLoop

from cldfast import CLD, hsm_loss, ops
from cldfast.bench.memory import allocated_peak
from cldfast.bench.results import environment
from cldfast.bench.timing import Effort, interleaved
from cldfast.loss_weights import perturbation_table, residual_table
from cldfast.philox import STREAM_PERTURBATION

RESULTS = Path(__file__).parent / "results"
EFFORT = Effort(rounds=15, sample=0.02, budget=1.5)
CASES = {"256x3x32x32": (256, 3, 32, 32), "5000x100": (5000, 100), "64x2": (64, 2)}
PARAMETERIZATION = "mixed"  # what the published loss trains


class Cached(nn.Module):
    """A network that returns a parameter."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.output = nn.Parameter(torch.randn(shape))

    def forward(self, u: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.output


def contestants(shape: tuple[int, ...]) -> dict[str, Callable[[], object]]:
    """The calls of a case by name."""
    sde, x0 = CLD(), torch.randn(shape)
    rows = shape[0]
    # The published loss takes rows of coordinates, whatever they are of.
    flat, net = Cached((rows, x0[0].numel())), Cached(shape)
    published = PublishedLoop(flat, sde, x0.flatten(1), rows)
    perturbation = perturbation_table(sde, "hsm")
    residual = residual_table(sde, "hsm", "reweighted", PARAMETERIZATION)
    assert perturbation is not None and residual is not None
    given = torch.rand(rows, dtype=torch.float64) * (1.0 - T_MIN) + T_MIN
    data = x0.flatten(1)

    def by_publication() -> None:
        flat.output.grad = None
        published.loss(data).backward()

    def by_ops(t: torch.Tensor = given) -> torch.Tensor:
        u = ops.perturb((x0,), t, perturbation, seed=1, stream=STREAM_PERTURBATION)
        return ops.residual(
            net.output, u, ops.matrices(residual, t), reduction="mean", seed=1,
            stream=STREAM_PERTURBATION,
        )  # fmt: skip

    def by_kernels() -> None:
        net.output.grad = None
        by_ops(torch.rand(rows, dtype=torch.float64) * (1.0 - T_MIN) + T_MIN).backward()

    def by_function() -> None:
        net.output.grad = None
        hsm_loss(net, sde, x0, parameterization=PARAMETERIZATION, t_min=T_MIN).backward()

    return {
        "published": by_publication,
        "ops": by_ops,
        "kernels": by_kernels,
        "hsm_loss": by_function,
    }


def measure(effort: Effort = EFFORT) -> list[dict[str, object]]:
    """A row for each case and thread count."""
    counts = sorted({1, torch.get_num_threads()})
    where = asdict(environment())
    rows: list[dict[str, object]] = []
    for case, shape in CASES.items():
        torch.manual_seed(0)
        calls = contestants(shape)
        timings = dict(zip(calls, interleaved(list(calls.values()), counts, effort), strict=True))
        plane = 4 * torch.Size(shape).numel()
        memory = {
            f"{name}_peak_planes": f"{allocated_peak(calls[name]) / plane:.3f}"
            for name in ("published", "kernels", "hsm_loss")
        }
        for index, threads in enumerate(counts):
            seconds = {name: of_count[index].median for name, of_count in timings.items()}
            rows.append(
                where
                | {"case": case, "threads": threads}
                | {f"{name}_seconds": f"{value:.4e}" for name, value in seconds.items()}
                | {
                    f"{name}_ratio": f"{seconds['published'] / seconds[name]:.1f}"
                    for name in ("kernels", "hsm_loss")
                }
                | memory
            )
    return rows


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=RESULTS / "loss_kernel.csv")
    arguments = parser.parse_args()
    rows = measure()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    with arguments.out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    for row in rows:
        print(
            f"{row['case']}, {row['threads']} threads: published {row['published_seconds']} s, "
            f"ops {row['ops_seconds']}, kernels {row['kernels_seconds']} "
            f"({row['kernels_ratio']} times), hsm_loss {row['hsm_loss_seconds']} "
            f"({row['hsm_loss_ratio']} times); peak in planes of the data: "
            f"{row['published_peak_planes']}, {row['kernels_peak_planes']}"
        )


if __name__ == "__main__":
    main()
