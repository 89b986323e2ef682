"""Train on handwritten digits, sample them, report quality and speed.

Trains a U-Net on scikit-learn's handwritten digits, draws samples with 50 network evaluations,
and writes samples.png, quality.png, report.json and the run folder run/. About five minutes on
two cores.

examples:
  cldfast demo --out demo
"""

from __future__ import annotations

import argparse
from typing import Any

from cldfast.app.demo import run_demo
from cldfast.app.options import add_numbers, add_progress, given_of

USAGE = "[options]"


def add_options(parser: Any) -> None:
    parser.add_argument("--out", default="demo", metavar="DIR", help="where to write (%(default)s)")
    add_numbers(parser, int, {"train-steps": "training steps", "samples": "images to draw"})
    add_numbers(parser, int, {"seed": "of everything random (0)"})
    add_progress(parser)


def run(args: argparse.Namespace) -> None:
    options = given_of(args, "train_steps", "samples", "seed")
    run_demo(args.out, progress=not args.quiet, **options)
