"""Sample handwritten digits, report quality and speed, train for a minute: less than two minutes.

Draws the digits 0 to 9 from a small network that comes with the package, compares the published
samplers with ours by quality, evaluations and seconds, and trains a new network for at most a
minute. Writes samples.png, quality.png, loss.png and report.json. With --train the network is
trained first, by the settings of the one in the package, and its plan fitted.

examples:
  cldfast demo
  cldfast demo --minutes 0.2 --out demo
  cldfast demo --train                              # some minutes more
"""

from __future__ import annotations

import argparse
from typing import Any

from cldfast.app.demo import SAMPLES, run_demo
from cldfast.app.options import add_numbers, add_progress, given_of

USAGE = "[options]"


def add_options(parser: Any) -> None:
    parser.add_argument("--out", default="demo", metavar="DIR", help="where to write (%(default)s)")
    parser.add_argument("--train", action="store_true", help="train the network that is sampled")
    add_numbers(parser, float, {"minutes": "of training after the sampling (1 at most)"})
    counts = {"samples": f"images to draw ({SAMPLES})", "seed": "of everything random (0)"}
    add_numbers(parser, int, counts)
    add_progress(parser)


def run(args: argparse.Namespace) -> None:
    options = given_of(args, "train", "minutes", "samples", "seed")
    run_demo(args.out, progress=not args.quiet, **options)
