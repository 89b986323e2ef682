"""Perturbation, loss and gradient by the kernels against the published loss, the network cached.

    python benchmarks/loss_kernel.py

The network is left out: its output is a parameter, which requires a gradient. Writes
benchmarks/results/loss_kernel.csv, a row for each case and thread count: median seconds, sampled in
turns in one run, of

    published   the public hybrid score matching loss as published code writes it, and backward
    ops         `kernels.perturb` and `kernels.residual` with its gradient, at times given
    kernels     the same with times drawn as the published loss draws them, and backward
    hsm_loss    the public function with addressed times, and backward

and the peaks of PyTorch's allocator, in planes of the data: state and gradient are three.

A process takes its large temporaries from memory that it has, or from fresh pages that the system
must clear, as its history will have it, and the published loss with its two dozen temporaries takes
up to twice the time then. So a case is measured in several processes: seconds and ratios are
medians over them, `_least` and `_most` the extremes.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from statistics import median

import torch
from output import RESULTS, new_parser, write_csv
from torch import nn
from training_step import T_MIN, PublishedLoop

from cldfast import CLD, NoiseAddress, hsm_loss, kernels
from cldfast.bench.memory import allocated_peak
from cldfast.bench.results import environment
from cldfast.bench.timing import Effort, interleaved
from cldfast.kernels import Stream
from cldfast.training.row_weights import loss_tables

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
    first, second = loss_tables(sde, "hsm", "reweighted", PARAMETERIZATION)
    assert first is not None and second is not None
    given = torch.rand(rows, dtype=torch.float64) * (1.0 - T_MIN) + T_MIN
    data = x0.flatten(1)

    def by_publication() -> None:
        flat.output.grad = None
        published.loss(data).backward()

    def by_ops(t: torch.Tensor = given) -> torch.Tensor:
        address = NoiseAddress(1, stream=Stream.PERTURBATION)
        u, offset = kernels.perturb((x0,), first.at(t), noise=address)
        return kernels.residual(net.output, offset, second.at(t), reduction="mean", overwrite=True)

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


def measure(case: str, effort: Effort = EFFORT) -> list[dict[str, float]]:
    """Seconds and peaks of a case in this process, for each thread count."""
    torch.manual_seed(0)
    shape = CASES[case]
    calls = contestants(shape)
    counts = sorted({1, torch.get_num_threads()})
    timings = dict(zip(calls, interleaved(list(calls.values()), counts, effort), strict=True))
    plane = 4 * torch.Size(shape).numel()
    peaks = {
        f"{name}_peak_planes": allocated_peak(calls[name]) / plane
        for name in ("published", "kernels", "hsm_loss")
    }
    return [
        {"threads": threads}
        | {f"{name}_seconds": of_count[i].median for name, of_count in timings.items()}
        | peaks
        for i, threads in enumerate(counts)
    ]


def summary(runs: list[dict[str, float]]) -> dict[str, str]:
    """One row of the table from the runs of a case at a thread count."""
    row = {"threads": str(runs[0]["threads"]), "processes": str(len(runs))}
    for name in ("published", "ops", "kernels", "hsm_loss"):
        row[f"{name}_seconds"] = f"{median(run[f'{name}_seconds'] for run in runs):.4e}"
    for name in ("ops", "kernels", "hsm_loss"):
        ratios = [run["published_seconds"] / run[f"{name}_seconds"] for run in runs]
        row[f"{name}_ratio"] = f"{median(ratios):.1f}"
        row[f"{name}_ratio_least"] = f"{min(ratios):.1f}"
        row[f"{name}_ratio_most"] = f"{max(ratios):.1f}"
    # What a process holds already depends on its history too; the most is what a call needs.
    for name in ("published", "kernels", "hsm_loss"):
        row[f"{name}_peak_planes"] = f"{max(run[f'{name}_peak_planes'] for run in runs):.3f}"
    return row


def main() -> None:
    """Measure, print and write the table."""
    parser = new_parser(__doc__, RESULTS / "loss_kernel.csv")
    parser.add_argument("--processes", type=int, default=7)
    parser.add_argument("--case", choices=CASES, help="measure one in this process, print as JSON")
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(measure(arguments.case)))
        return
    where = asdict(environment())
    rows: list[dict[str, object]] = []
    for case in CASES:
        command = [sys.executable, __file__, "--case", case]
        runs = [
            json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
            for _ in range(arguments.processes)
        ]
        for of_count in zip(*runs, strict=True):
            row = summary(list(of_count))
            rows.append(where | {"case": case} | row)
            print(
                f"{case}, {row['threads']} threads: published {row['published_seconds']} s, "
                f"ops {row['ops_seconds']}, kernels {row['kernels_seconds']} "
                f"({row['kernels_ratio']} times, {row['kernels_ratio_least']} to "
                f"{row['kernels_ratio_most']}), hsm_loss {row['hsm_loss_seconds']} "
                f"({row['hsm_loss_ratio']} times); peak in planes of the data: "
                f"{row['published_peak_planes']}, {row['kernels_peak_planes']}",
                flush=True,
            )
    write_csv(arguments.out, rows)


if __name__ == "__main__":
    main()
