"""The command line: `python -m cldfast {demo,train,fit,sample,bench,study,info}`.

Commands return an exit code: 0, 2 for bad input or a missing extra (one line says which), 130 after
an interrupt.
"""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import torch

from cldfast.app import commands
from cldfast.fitting.fit import STEP_SIZE
from cldfast.kernels import backend_names
from cldfast.lab.data import DATASETS
from cldfast.planner.grids import DEFAULT_STEPS, GRIDS, NOISE_GRIDS
from cldfast.planner.parameterization import PARAMETERIZATIONS
from cldfast.planner.solvers import SOLVERS
from cldfast.studies.registry import STUDIES
from cldfast.training import NonFiniteLoss
from cldfast.training.config import AUTOCAST, DECAYS, TrainConfig
from cldfast.training.losses import WEIGHTINGS
from cldfast.training.times import TIME_SAMPLING


class _Parser(argparse.ArgumentParser):
    """A parser that says in one line what is wrong, as the commands do."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"cldfast: error: {message} (see {self.prog} --help)\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code (argparse itself may raise SystemExit)."""
    args = _parser().parse_args(arguments)
    try:
        if args.threads is not None:
            if args.threads < 1:
                raise ValueError(f"--threads: expected at least 1, got {args.threads}")
            torch.set_num_threads(args.threads)  # the compiled core obeys it too
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
    demo = _command(parsers, "demo", with_progress=True)
    demo.add_argument("--out", default="demo", metavar="DIR", help="where to write (%(default)s)")
    _add_numbers(demo, int, {"train-steps": "training steps", "samples": "images to draw"})
    _add_numbers(demo, int, {"seed": "of everything random (0)"})
    _add_train_options(_command(parsers, "train", with_progress=True))
    _add_fit_options(_command(parsers, "fit", with_progress=True))
    _add_sample_options(_command(parsers, "sample", with_progress=True))
    bench = _command(parsers, "bench")
    bench.add_argument("--quick", action="store_true", help="fewer repeats and sizes")
    bench.add_argument("--out", metavar="DIR", help="where to write the results as CSV")
    bench.add_argument("--cases", nargs="+", metavar="CASE", help="run these cases only")
    _add_studies(_command(parsers, "study"))
    info = _command(parsers, "info")
    info.add_argument("--json", action="store_true", help="as JSON")
    return parser


def _add_studies(parser: argparse.ArgumentParser) -> None:
    names = parser.add_subparsers(dest="what", required=True, metavar="name")
    for name, study in STUDIES.items():
        one = names.add_parser(name, help=study.help, description=study.help)
        one.add_argument("--out", metavar="DIR", help=f"the folder of the study (study-{name})")
        one.add_argument("--quick", action="store_true", help="a trial of a minute")
        one.add_argument("--workers", type=int, default=1, help="processes (%(default)s)")
        one.add_argument("--device", default="cpu", help="of the networks (%(default)s)")
        one.add_argument("--quiet", action="store_true", help="print no progress")
        study.add_options(one)


def _add_train_options(train: Any) -> None:
    names = ", ".join(DATASETS)
    train.add_argument("data", nargs="?", choices=DATASETS, metavar="data", help=names)
    train.add_argument("--out", required=True, metavar="DIR", help="the run folder")
    train.add_argument("--resume", action="store_true", help="go on with the run in DIR")
    data = train.add_argument_group("data")
    drawn = {"dim": "coordinates, where there is a choice", "rows": "training rows to draw (50000)"}
    _add_numbers(data, int, drawn)
    _add_numbers(data, float, {"scale": "factor on the data, which is then not standardised"})
    data.add_argument(
        "--standardise", action=argparse.BooleanOptionalAction,
        help="train on data of mean 0 and standard deviation 1 (yes)",
    )  # fmt: skip
    process = {
        "a": "inverse time scale (2)",
        "sigma": "noise on the velocity (2/sqrt(a))",
        "v0-var": "variance of v at 0 (0.04/a^2)",
        "mass-inv": "inverse mass, a^2",
        "gamma": "variance of v at 0 over mass (0.04)",
        "x-noise": "noise on the position (0)",
        "beta": "rate at time 0 (4)",
        "beta-end": "rate at time 1 (that at 0)",
    }
    sde = train.add_argument_group("process, by (a, sigma, v0-var) or by (mass-inv, gamma)")
    _add_numbers(sde, float, process)
    net = train.add_argument_group("network: a residual MLP, for images a U-Net")
    _add_numbers(net, int, {"width": "features (256, U-Net 32)", "depth": "blocks of the MLP (3)"})
    returns = f"what it returns: {', '.join(PARAMETERIZATIONS)} (edm)"
    net.add_argument("--parameterization", choices=PARAMETERIZATIONS, metavar="P", help=returns)
    fit = train.add_argument_group("training")
    default = TrainConfig()
    counts = {
        "steps": f"optimiser steps ({default.steps})",
        "batch-size": f"rows a step ({default.batch_size})",
        "accumulate": f"parts that a batch goes through the network in ({default.accumulate})",
        "warmup": f"steps of linear warm-up ({default.warmup})",
        "seed": f"of weights, data, times and noise ({default.seed})",
        "log-every": f"steps between rows of train.csv ({default.log_every})",
        "validate-every": f"steps between validations ({default.validate_every})",
        "checkpoint-every": f"steps between checkpoints ({default.checkpoint_every})",
    }
    _add_numbers(fit, int, counts)
    sizes = {
        "lr": f"Adam's step size ({default.lr:g})",
        "clip": f"largest gradient norm, 0 for no limit ({default.clip:g})",
        "ema-decay": f"of the average of the weights ({default.ema_decay:g})",
        "t-min": f"smallest time ({default.t_min:g})",
        "sigma-data": "standard deviation of the data, for edm (theirs)",
    }
    _add_numbers(fit, float, sizes)
    fit.add_argument(
        "--uncertainty", action="store_const", const=True, help="learn the weights of times too"
    )
    fit.add_argument("--decay", choices=DECAYS, help=f"of the step size ({default.decay})")
    fit.add_argument("--autocast", choices=AUTOCAST, help="half precision in the network (none)")
    fit.add_argument(
        "--times",
        choices=TIME_SAMPLING,
        help=f"of the rows ({default.times}; half_log for a network of the data)",
    )
    fit.add_argument(
        "--weighting",
        choices=WEIGHTINGS,
        help=f"of the loss ({default.weighting}; edm for a network of the data)",
    )


def _add_fit_options(fit: Any) -> None:
    fit.add_argument("folder", metavar="run", help="run folder")
    help_text = "network calls of the plan (%(default)s)"
    fit.add_argument("--evaluations", type=int, default=8, metavar="N", help=help_text)
    fit.add_argument("--base", help=f"where to start: {', '.join(SOLVERS)} (stochastic_multistep)")
    parts = "energy, paths, or weights of both such as energy=1,paths=0.1 (energy)"
    fit.add_argument("--objective", metavar="NAME", help=parts)
    counts = {
        "steps": "of the optimiser (150)",
        "batch-size": "samples in a step (2048)",
        "chunk-size": "rows that go through the network at once (512)",
        "seed": "of noise, data and directions (0)",
    }
    _add_numbers(fit, int, counts)
    _add_numbers(fit, float, {"step-size": f"of the optimiser ({STEP_SIZE:g})"})


def _add_sample_options(sample: Any) -> None:
    solvers, grids = ", ".join(SOLVERS), ", ".join((*GRIDS, *NOISE_GRIDS))
    sample.add_argument("folder", metavar="run", help="run folder")
    sample.add_argument("-n", type=int, default=1024, help="samples (%(default)s)")
    flow = "pflow, the adaptive flow"
    sample.add_argument("--solver", help=f"{solvers}, {flow} (auto)")
    sample.add_argument("--grid", help=f"{grids}, or auto (that of solver auto, else quadratic)")
    clean = "end with one more evaluation, the clean estimate"
    sample.add_argument("--denoise", action="store_const", const=True, help=clean)
    own = "the solver's own, such as order=3"
    sample.add_argument("--option", nargs="+", metavar="NAME=VALUE", default=(), help=own)
    _add_numbers(sample, float, {"t-min": "last time (the run's)", "tolerance": "of pflow (1e-5)"})
    counts = {
        "steps": f"grid intervals ({DEFAULT_STEPS})",
        "seed": "noise key (0)",
        "first-index": "number of the first sample: shards of one seed fit together (0)",
        "batch-size": "samples in one network call (all)",
    }
    _add_numbers(sample, int, counts)
    fitted = "file of a fitted plan, or none (plans/STEPS.json of the run, where there is one)"
    sample.add_argument("--plan", metavar="FILE", help=fitted)
    sample.add_argument("--backend", help=f"{', '.join(backend_names())} (auto)")
    sample.add_argument("--out", metavar="FILE", help=".npz to write (samples.npz in the folder)")
    sample.add_argument("--no-picture", action="store_true", help="write the .npz only")


def _command(parsers: Any, name: str, with_progress: bool = False) -> Any:
    """The parser of a command, helped by the docstring of what it runs.

    An option that is not given is None or False, so that the command can tell.
    """
    run = getattr(commands, name)
    summary, _, more = inspect.cleandoc(run.__doc__ or "").partition("\n\n")
    parser = parsers.add_parser(name, help=summary, description=more or summary)
    parser.set_defaults(run=run)
    _add_numbers(parser, int, {"threads": "CPU threads (PyTorch's)"})
    if with_progress:
        parser.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser


def _add_numbers(group: Any, kind: type, options: dict[str, str]) -> None:
    """Options that take a number, by name; an int is shown as N, a float as X."""
    for name, text in options.items():
        group.add_argument(f"--{name}", type=kind, metavar="N" if kind is int else "X", help=text)
