"""Fit a plan of few evaluations to the network of a run folder.

Writes RUN/plans/N.json, which `sample --steps N` then takes by itself.

examples:
  cldfast fit RUN --evaluations 8
  cldfast fit RUN --evaluations 5 --steps 300 --objective energy=1,paths=0.1
"""

from __future__ import annotations

import argparse
from typing import Any

from cldfast.app.options import add_device, add_numbers, add_progress, device, given_of
from cldfast.app.plans import fit_run, plan_path
from cldfast.fitting.fit import STEP_SIZE
from cldfast.planner.solvers import SOLVERS

USAGE = "RUN [options]"


def add_options(parser: Any) -> None:
    parser.add_argument("folder", metavar="run", help="run folder")
    help_text = "network calls of the plan (%(default)s)"
    parser.add_argument("--evaluations", type=int, default=8, metavar="N", help=help_text)
    parser.add_argument(
        "--base", help=f"where to start: {', '.join(SOLVERS)} (stochastic_multistep)"
    )
    parts = "energy, paths, or weights of both such as energy=1,paths=0.1 (energy)"
    parser.add_argument("--objective", metavar="NAME", help=parts)
    counts = {
        "steps": "of the optimiser (150)",
        "batch-size": "samples in a step (2048)",
        "chunk-size": "rows that go through the network at once (512)",
        "seed": "of noise, data and directions (0)",
    }
    add_numbers(parser, int, counts)
    add_numbers(parser, float, {"step-size": f"of the optimiser ({STEP_SIZE:g})"})
    add_device(parser)
    add_progress(parser)


def run(args: argparse.Namespace) -> None:
    given = given_of(
        args, "base", "objective", "steps", "batch_size", "chunk_size", "seed", "step_size"
    )
    if "=" in (text := given.get("objective", "")):
        given["objective"] = _weights(text)
    result, figures = fit_run(
        args.folder, args.evaluations, device=device(args), progress=not args.quiet, **given
    )
    verdict = "kept" if result.improved else "does not beat its base, which is kept"
    print(
        f"{plan_path(args.folder, args.evaluations)}: {args.evaluations} evaluations, objective on "
        f"held-out data {result.before:.3g} -> {result.after:.3g}, {verdict}; nearest training row "
        f"at {figures['nearest_ratio']:.2f} of a test row's distance; {result.seconds:.0f} s"
    )


def _weights(text: str) -> dict[str, float]:
    """`energy=1,paths=0.1` as weights by name."""
    try:
        return {name: float(number) for name, number in (p.split("=") for p in text.split(","))}
    except ValueError:
        raise ValueError(f"--objective: expected name=weight,name=weight, got {text!r}") from None
