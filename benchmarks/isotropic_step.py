"""A training step of networks that see y against one of both score rows, the network left out.

    python benchmarks/isotropic_step.py

Perturbation, loss and gradient by `hsm_loss` and backward; the network's output is a parameter.
Writes benchmarks/results/isotropic_step.csv, a row for each case and thread count: medians of the
seconds of each parameterisation, sampled in turns in one run, and ratios to "full_noise", of which
noise, network output and loss have two planes where those of "edm" have one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict

import torch
from loss_kernel import Cached
from output import RESULTS, new_parser, write_csv

from cldfast import CLD, hsm_loss
from cldfast.bench.results import environment
from cldfast.bench.timing import Effort, interleaved
from cldfast.planner.parameterization import output_planes

EFFORT = Effort(rounds=31, sample=0.02, budget=6.0)
CASES = {"256x3x32x32": (256, 3, 32, 32), "5000x100": (5000, 100), "64x2": (64, 2)}
WIDE, FORMS = "full_noise", ("edm", "denoiser", "data_noise")


def step(shape: tuple[int, ...], parameterization: str) -> Callable[[], None]:
    """Perturbation, loss and gradient of one parameterisation on data of a shape."""
    sde, x0 = CLD(x_noise=0.25), torch.randn(shape)
    net = Cached((shape[0], output_planes(parameterization) * shape[1], *shape[2:]))

    def run() -> None:
        net.output.grad = None
        hsm_loss(net, sde, x0, parameterization=parameterization).backward()

    return run


def main() -> None:
    """Measure, print and write the table."""
    arguments = new_parser(__doc__, RESULTS / "isotropic_step.csv").parse_args()
    torch.manual_seed(0)
    names, where = (WIDE, *FORMS), asdict(environment())
    counts = sorted({1, torch.get_num_threads()})
    rows: list[dict[str, object]] = []
    for case, shape in CASES.items():
        timings = interleaved([step(shape, name) for name in names], counts, EFFORT)
        for index, threads in enumerate(counts):
            seconds = {n: of[index].median for n, of in zip(names, timings, strict=True)}
            ratios = {f"{n}_ratio": seconds[n] / seconds[WIDE] for n in FORMS}
            rows.append(
                where
                | {"case": case, "threads": threads}
                | {f"{n}_seconds": value for n, value in seconds.items()}
                | ratios
            )
            told = ", ".join(f"{n} {ratios[f'{n}_ratio']:.3f}" for n in FORMS)
            print(f"{case}, {threads} threads: {WIDE} {seconds[WIDE]:.3e} s; {told}", flush=True)
    write_csv(arguments.out, rows)


if __name__ == "__main__":
    main()
