"""The command line: `python -m cldfast {demo,train,sample,bench,info}`.

Commands return an exit code: 0, 2 for bad input or a missing extra (one line says which), 130 after
an interrupt.
"""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from cldfast.app import commands
from cldfast.kernels import backend_names
from cldfast.lab.data import DATASETS
from cldfast.planner.grids import GRIDS, NOISE_GRIDS
from cldfast.planner.parameterization import PARAMETERIZATIONS
from cldfast.planner.solvers import SOLVERS
from cldfast.training import NonFiniteLoss
from cldfast.training.config import AUTOCAST, DECAYS, TrainConfig
from cldfast.training.losses import WEIGHTINGS
from cldfast.training.times import TIME_SAMPLING


class _Parser(argparse.ArgumentParser):
    """Errors in one line, as for all bad input."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"cldfast: error: {message} (see {self.prog} --help)\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code (argparse itself may raise SystemExit)."""
    args = _parser().parse_args(arguments)
    try:
        if getattr(args, "threads", None) is not None:
            commands.set_threads(args.threads)
        args.run(args)
    except KeyboardInterrupt:
        print("cldfast: interrupted", file=sys.stderr)
        return 130
    except (ValueError, TypeError, OSError, ImportError, NonFiniteLoss) as error:
        print(f"cldfast: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="cldfast",
        description="Critically-damped Langevin diffusion: train score networks, draw samples.",
    )
    parsers = parser.add_subparsers(dest="command", required=True, metavar="command")
    _add_demo(parsers)
    _add_train(parsers)
    _add_sample(parsers)
    _add_bench(parsers)
    _add_info(parsers)
    return parser


def _add_demo(parsers: Any) -> None:
    demo = _command(parsers, "demo")
    demo.add_argument("--out", default="demo", metavar="DIR", help="where to write (%(default)s)")
    demo.add_argument("--train-steps", type=int, metavar="N", help="training steps")
    demo.add_argument("--samples", type=int, metavar="N", help="images to draw")
    demo.add_argument("--seed", type=int, metavar="N", help="of everything random (0)")
    _add_common(demo)


def _add_train(parsers: Any) -> None:
    train = _command(parsers, "train")
    train.add_argument(
        "data", nargs="?", choices=DATASETS, metavar="data", help=", ".join(DATASETS)
    )
    train.add_argument("--out", required=True, metavar="DIR", help="the run folder")
    train.add_argument("--resume", action="store_true", help="go on with the run in DIR")
    data = train.add_argument_group("data")
    data.add_argument("--dim", type=int, metavar="D", help="coordinates, where there is a choice")
    data.add_argument("--rows", type=int, metavar="N", help="training rows to draw (50000)")
    data.add_argument("--scale", type=float, metavar="S", help="factor on the data (1)")
    sde = train.add_argument_group("process, by (a, sigma, v0-var) or by (mass-inv, gamma)")
    sde.add_argument("--a", type=float, help="inverse time scale (2)")
    sde.add_argument("--sigma", type=float, help="noise on the velocity (2/sqrt(a))")
    sde.add_argument("--v0-var", type=float, metavar="V", help="variance of v at 0 (0.04/a^2)")
    sde.add_argument("--mass-inv", type=float, metavar="M", help="inverse mass, a^2")
    sde.add_argument("--gamma", type=float, metavar="G", help="variance of v at 0 over mass (0.04)")
    sde.add_argument("--x-noise", type=float, metavar="E", help="noise on the position (0)")
    sde.add_argument("--beta", type=float, metavar="B", help="rate at time 0 (4)")
    sde.add_argument("--beta-end", type=float, metavar="B", help="rate at time 1 (that at 0)")
    net = train.add_argument_group("network: a residual MLP, for images a U-Net")
    net.add_argument("--width", type=int, help="features (256, U-Net 32)")
    net.add_argument("--depth", type=int, help="blocks of the MLP (3)")
    returns = f"what it returns: {', '.join(PARAMETERIZATIONS)} (mixed)"
    net.add_argument("--parameterization", choices=PARAMETERIZATIONS, metavar="P", help=returns)
    fit = train.add_argument_group("training")
    default = TrainConfig()
    for name, kind, text in (
        ("steps", int, "optimiser steps"),
        ("batch-size", int, "rows a step"),
        ("accumulate", int, "parts that a batch goes through the network in"),
        ("lr", float, "Adam's step size"),
        ("warmup", int, "steps of linear warm-up"),
        ("clip", float, "largest gradient norm, 0 for no limit"),
        ("ema-decay", float, "of the average of the weights"),
        ("t-min", float, "smallest time"),
        ("seed", int, "of weights, data, times and noise"),
        ("log-every", int, "steps between rows of train.csv"),
        ("validate-every", int, "steps between validations"),
        ("checkpoint-every", int, "steps between checkpoints"),
    ):
        value = getattr(default, name.replace("-", "_"))
        metavar = "N" if kind is int else "X"
        fit.add_argument(f"--{name}", type=kind, metavar=metavar, help=f"{text} ({value:g})")
    fit.add_argument("--decay", choices=DECAYS, help=f"of the step size ({default.decay})")
    fit.add_argument("--autocast", choices=AUTOCAST, help="half precision in the network (none)")
    fit.add_argument("--times", choices=TIME_SAMPLING, help=f"of the rows ({default.times})")
    fit.add_argument("--weighting", choices=WEIGHTINGS, help=f"of the loss ({default.weighting})")
    _add_common(train)


def _add_sample(parsers: Any) -> None:
    sample = _command(parsers, "sample")
    solvers, grids = ", ".join(SOLVERS), ", ".join((*GRIDS, *NOISE_GRIDS))
    sample.add_argument("folder", metavar="run", help="run folder")
    sample.add_argument("-n", type=int, default=1024, help="samples (%(default)s)")
    flow = "pflow, the adaptive flow (%(default)s)"
    sample.add_argument("--solver", default="sscs", help=f"{solvers}, or {flow}")
    sample.add_argument("--steps", type=int, metavar="N", help="grid intervals (50)")
    sample.add_argument("--grid", help=f"{grids}, or auto (quadratic)")
    sample.add_argument("--t-min", type=float, metavar="X", help="last time (the run's)")
    clean = "end with one more evaluation, the clean estimate"
    sample.add_argument("--denoise", action="store_const", const=True, help=clean)
    own = "the solver's own, such as order=3"
    sample.add_argument("--option", nargs="+", metavar="NAME=VALUE", default=(), help=own)
    sample.add_argument("--tolerance", type=float, metavar="X", help="of pflow (1e-5)")
    sample.add_argument("--seed", type=int, metavar="N", help="noise key (0)")
    first = "number of the first sample: shards of one seed fit together (0)"
    sample.add_argument("--first-index", type=int, metavar="I", help=first)
    at_once = "samples in one network call (all)"
    sample.add_argument("--batch-size", type=int, metavar="N", help=at_once)
    sample.add_argument("--backend", help=f"{', '.join(backend_names())} (auto)")
    sample.add_argument("--out", metavar="FILE", help=".npz to write (samples.npz in the folder)")
    sample.add_argument("--no-picture", action="store_true", help="write the .npz only")
    _add_common(sample)


def _add_bench(parsers: Any) -> None:
    bench = _command(parsers, "bench")
    bench.add_argument("--quick", action="store_true", help="fewer repeats and sizes")
    bench.add_argument("--threads", type=int, metavar="N", help="CPU threads (PyTorch's)")
    bench.add_argument("--out", metavar="DIR", help="where to write the results as CSV")
    bench.add_argument("--cases", nargs="+", metavar="CASE", help="run these cases only")


def _add_info(parsers: Any) -> None:
    info = _command(parsers, "info")
    info.add_argument("--json", action="store_true", help="as JSON")


def _command(parsers: Any, name: str) -> argparse.ArgumentParser:
    """The parser of a command, helped by the docstring of what it runs.

    An option that is not given is None or False, so that the command can tell.
    """
    run = getattr(commands, name)
    summary, _, more = inspect.cleandoc(run.__doc__ or "").partition("\n\n")
    parser: argparse.ArgumentParser = parsers.add_parser(
        name, help=summary, description=more or summary
    )
    parser.set_defaults(run=run)
    return parser


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (PyTorch's)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
