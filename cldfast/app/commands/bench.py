"""Measure the kernels on this machine: the fused operations beside plain PyTorch.

examples:
  cldfast bench --quick
  cldfast bench --out results --threads 2
"""

from __future__ import annotations

import argparse
from typing import Any

from cldfast.bench import main as run_bench

USAGE = "[options]"


def add_options(parser: Any) -> None:
    parser.add_argument("--quick", action="store_true", help="fewer repeats and sizes")
    parser.add_argument("--out", metavar="DIR", help="where to write the results as CSV")
    parser.add_argument("--cases", nargs="+", metavar="CASE", help="run these cases only")


def run(args: argparse.Namespace) -> None:
    run_bench(args)
