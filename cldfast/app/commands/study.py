"""Compare CLD with the processes it grew out of.

Samples a mixture by CLD, VP, VE, flow matching and kinetic Langevin dynamics with 6 to 50
network evaluations, with exact networks or with networks trained alike, and writes
processes.csv and processes.png. Some minutes.

examples:
  cldfast study processes --out study
  cldfast study processes --data funnel --learned 3000
"""

from __future__ import annotations

import argparse
from typing import Any

from cldfast.app.options import add_numbers
from cldfast.app.study import STUDIES, STUDY_DATA, study_processes

USAGE = "WHAT [options]"


def add_options(parser: Any) -> None:
    parser.add_argument("what", choices=STUDIES, help="what is compared")
    parser.add_argument("--data", choices=STUDY_DATA, help="data set (gaussians25)")
    parser.add_argument(
        "--out", default="study", metavar="DIR", help="where to write (%(default)s)"
    )
    numbers = {
        "samples": "samples a run (5000)",
        "learned": "training steps; 0: exact networks",
    }
    add_numbers(parser, int, numbers)


def run(args: argparse.Namespace) -> None:
    if args.samples is not None and args.samples < 2:
        raise ValueError(f"--samples: expected at least 2, got {args.samples}")
    if args.learned is not None and args.learned < 1:
        raise ValueError(f"--learned: expected at least 1 step, got {args.learned}")
    given = {"name": args.data, "samples": args.samples, "training": args.learned}
    study_processes(args.out, **{name: value for name, value in given.items() if value is not None})
    print(f"{args.out}: processes.csv, processes.png")
