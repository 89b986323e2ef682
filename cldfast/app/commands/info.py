"""Print versions, backends and what this installation lacks on this machine.

examples:
  cldfast info
  cldfast info --json
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from cldfast.info import info

USAGE = "[--json]"


def add_options(parser: Any) -> None:
    parser.add_argument("--json", action="store_true", help="as JSON")


def run(args: argparse.Namespace) -> None:
    values = info()
    if args.json:
        print(json.dumps(values, indent=2, default=str))
        return
    for name, value in values.items():
        if isinstance(value, dict):
            print(f"{name}:")
            for key, entry in value.items():
                print(f"  {key}: {'not installed' if entry is None else entry}")
        else:
            print(f"{name}: {value}")
