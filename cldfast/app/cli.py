"""The command line: `cldfast COMMAND`, or `python -m cldfast COMMAND`.

Commands return an exit code: 0, 2 for bad input or a missing extra (one line says which), 130 after
an interrupt, 143 where SIGTERM has ended a training.
"""

from __future__ import annotations

import argparse
import inspect
import re
import signal
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import NoReturn

import torch

from cldfast.app.commands import bench, budget, demo, fit, info, likelihood, sample, study, train
from cldfast.app.launched import Preempted
from cldfast.app.options import add_numbers
from cldfast.training import LostProcess, NonFiniteLoss
from cldfast.version import __version__

COMMANDS: tuple[ModuleType, ...] = (
    demo, train, sample, fit, likelihood, budget, study, bench, info,
)  # fmt: skip

# More than the cores of a machine; OpenMP ends a process that asks for threads beyond its limits.
_MOST_THREADS = 1024
# What PyTorch's allocators say, on the host and on a device, and of sizes beyond 64 bits.
_NO_MEMORY = re.compile("can't allocate memory|out of memory|storage size calculation", re.I)
_ASKED = re.compile("tried to allocate ([0-9.]+ [a-z]+)", re.I)


class _Parser(argparse.ArgumentParser):
    """A parser that says in one line what is wrong, as the commands do."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"cldfast: error: {message} (see {self.prog} --help)\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code (argparse itself may raise SystemExit)."""
    args = parser().parse_args(arguments)
    try:
        if args.threads is not None:
            if not 1 <= args.threads <= _MOST_THREADS:
                raise ValueError(f"--threads: expected 1 to {_MOST_THREADS}, got {args.threads}")
            torch.set_num_threads(args.threads)  # the compiled core obeys it too
        args.run(args)
    except KeyboardInterrupt:
        print("cldfast: interrupted", file=sys.stderr)
        return 130
    except Preempted as error:
        print(f"cldfast: {error}", file=sys.stderr)
        return 128 + signal.SIGTERM
    except (ValueError, TypeError, OSError, ImportError, NonFiniteLoss, LostProcess) as error:
        return _refused(str(error))
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError) and not _NO_MEMORY.search(str(error)):
            raise
        asked = _ASKED.search(str(error))
        much = f" for {asked[1]} at once" if asked else ""
        return _refused(
            f"there is not enough memory{much}: ask for fewer samples, smaller batches or a "
            "smaller network"
        )
    return 0


def _refused(reason: str) -> int:
    print(f"cldfast: error: {' '.join(reason.split())}", file=sys.stderr)
    return 2


def parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="cldfast",
        description="Critically-damped Langevin diffusion: train score networks, draw samples.",
        epilog="cldfast COMMAND --help says more, with examples. A first picture: cldfast demo",
    )
    parser.add_argument("--version", action="version", version=f"cldfast {__version__}")
    parsers = parser.add_subparsers(dest="command", required=True, metavar="command")
    for command in COMMANDS:
        name, text = command.__name__.rpartition(".")[2], inspect.cleandoc(command.__doc__ or "")
        own = parsers.add_parser(
            name,
            usage=f"cldfast {name} {command.USAGE}",
            help=text.partition("\n")[0],
            description=text,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        own.set_defaults(run=command.run)
        command.add_options(own)
        add_numbers(own, int, {"threads": "CPU threads (PyTorch's)"})
    return parser
