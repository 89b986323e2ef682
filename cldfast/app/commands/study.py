"""Run an experiment again, as a table and a picture.

A study keeps every network and every result in its folder as they are made: killed and started
again, it goes on where it was. docs/results.md says what each one showed.

examples:
  cldfast study processes --data funnel
  cldfast study funnel --dim 100 --a 1 --x-noise 0 0.25 1 --runs 5 --workers 2
  cldfast study bound --quick
"""

from __future__ import annotations

import argparse
from typing import Any

from cldfast.app.options import device
from cldfast.studies.registry import STUDIES

USAGE = "NAME [options]"


def add_options(parser: Any) -> None:
    names = parser.add_subparsers(dest="what", required=True, metavar="NAME")
    for name, study in STUDIES.items():
        one = names.add_parser(name, help=study.help, description=study.help)
        one.add_argument("--out", metavar="DIR", help=f"the folder of the study (study-{name})")
        one.add_argument("--quick", action="store_true", help="a trial of a minute")
        study.add_options(one)


def run(args: argparse.Namespace) -> None:
    if "device" in args:
        device(args)  # refused before the folder is made
    args.out = args.out or f"study-{args.what}"
    made = STUDIES[args.what].run(args)
    print(f"{args.out}: {', '.join(made)}")
