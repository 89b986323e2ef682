"""Train a score network on data.

Trains by hybrid score matching and leaves a run folder that `sample` reads. Data are a data set
of ours, an array file (.npy, .npz, .safetensors: rows or images, and perhaps an array `labels`) or
a folder of images, which lie in it or in a folder for each class. A run that was stopped goes on,
bit for bit, with --resume.

examples:
  cldfast train digits --out RUN --conditional --steps 6000
  cldfast train --data photos/ --size 32 --flip --workers 4 --out RUN --width 64 --device cuda
  cldfast train --data points.npy --out RUN --schedule cosine scale=2 --T 1
  cldfast train funnel --dim 20 --out RUN --process psld kappa=0.04
  cldfast train --resume --out RUN --steps 20000
  torchrun --nproc-per-node 8 -m cldfast train digits --out RUN --batch-size 1024
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from typing import Any

from cldfast.app.launched import PATIENCE, TRACKERS, launched
from cldfast.app.new_run import LABEL_DROPOUT, run_config
from cldfast.app.options import (
    add_device,
    add_numbers,
    add_progress,
    device,
    given,
    given_of,
)
from cldfast.app.process_options import add_process
from cldfast.app.runs import plot_losses, train_run
from cldfast.lab.data import DATASETS
from cldfast.model.run_folder import RunConfig, load_config
from cldfast.planner.parameterization import PARAMETERIZATIONS
from cldfast.process.sde import OBJECTIVES
from cldfast.training.config import AUTOCAST, DECAYS, TrainConfig
from cldfast.training.losses import WEIGHTINGS
from cldfast.training.times import TIME_SAMPLING

# Options that a resumed run may be given anew.
_WITH_RESUME = {
    "command", "run", "out", "resume", "steps", "until", "threads", "quiet", "device", "track",
    "patience", "workers",
}  # fmt: skip

USAGE = "[NAME | --data PATH] --out RUN [options]"


def add_options(parser: Any) -> None:
    names = ", ".join(DATASETS)
    parser.add_argument("name", nargs="?", metavar="data", help=f"{names}, or as --data")
    parser.add_argument("--out", required=True, metavar="DIR", help="the run folder")
    parser.add_argument("--resume", action="store_true", help="go on with the run in DIR")
    _add_data(parser.add_argument_group("data"))
    add_process(parser)
    net = parser.add_argument_group("network: a residual MLP, for images a U-Net")
    add_numbers(net, int, {"width": "features (256, U-Net 32)", "depth": "blocks of the MLP (3)"})
    returns = f"what it returns: {', '.join(PARAMETERIZATIONS)} (edm)"
    net.add_argument("--parameterization", choices=PARAMETERIZATIONS, metavar="P", help=returns)
    net.add_argument(
        "--conditional", action="store_const", const=True, help="it sees the labels of the data"
    )
    dropout = f"share of labels left out, for guidance ({LABEL_DROPOUT:g})"
    add_numbers(net, float, {"label-dropout": dropout})
    _add_training(parser.add_argument_group("training"))
    shared = parser.add_argument_group("engine, see docs/scaling.md for several processes")
    shared.add_argument(
        "--track", nargs="+", default=(), choices=TRACKERS, help="report there, beside train.csv"
    )
    lost = f"seconds without an answer after which another process is lost ({PATIENCE:g})"
    add_numbers(shared, float, {"patience": lost})
    ahead = "processes that read the rows of --data ahead, for each process of the training (0)"
    add_numbers(shared, int, {"workers": ahead})
    add_device(parser)
    add_progress(parser)


def _add_data(group: Any) -> None:
    files = ".npy, .npz or .safetensors file, or folder of images"
    group.add_argument("--data", metavar="PATH", help=files)
    drawn = {
        "dim": "coordinates, where there is a choice",
        "rows": "training rows to draw (50000)",
        "size": "pixels to which images of a folder are cut and resized (theirs)",
    }
    add_numbers(group, int, drawn)
    add_numbers(group, float, {"scale": "factor on the data, which is then not standardised"})
    group.add_argument(
        "--flip", action="store_const", const=True,
        help="turn half of the images from right to left, by the seed",
    )  # fmt: skip
    group.add_argument(
        "--standardise", action=argparse.BooleanOptionalAction,
        help="train on data of mean 0 and standard deviation 1 (yes)",
    )  # fmt: skip


def _add_training(group: Any) -> None:
    default = TrainConfig()
    counts = {
        "steps": f"optimiser steps ({default.steps})",
        "batch-size": f"rows a step ({default.batch_size})",
        "accumulate": f"parts that a batch goes through the network in ({default.accumulate})",
        "until": "step to stop after, to go on with --resume (the last)",
        "reference": "rows drawn to average targets over, see docs/learning.md (2048 for vectors)",
        "warmup": f"steps of linear warm-up ({default.warmup})",
        "seed": f"of weights, data, times and noise ({default.seed})",
        "log-every": f"steps between rows of train.csv ({default.log_every})",
        "validate-every": f"steps between validations ({default.validate_every})",
        "checkpoint-every": f"steps between checkpoints ({default.checkpoint_every})",
    }
    add_numbers(group, int, counts)
    sizes = {
        "lr": f"Adam's step size ({default.lr:g})",
        "clip": f"largest gradient norm, 0 for no limit ({default.clip:g})",
        "ema-decay": f"of the average of the weights ({default.ema_decay:g})",
        "t-min": f"smallest time ({default.t_min:g})",
        "sigma-data": "standard deviation of the data, for edm (theirs)",
    }
    add_numbers(group, float, sizes)
    group.add_argument(
        "--uncertainty", action="store_const", const=True, help="learn the weights of times too"
    )
    group.add_argument(
        "--objective", choices=OBJECTIVES,
        help=f"hybrid (of x) or denoising (of x and v) score matching ({default.objective})",
    )  # fmt: skip
    group.add_argument("--decay", choices=DECAYS, help=f"of the step size ({default.decay})")
    group.add_argument("--autocast", choices=AUTOCAST, help="half precision in the network (none)")
    group.add_argument(
        "--times", choices=TIME_SAMPLING,
        help=f"of the rows ({default.times}; half_log for a network of the data)",
    )  # fmt: skip
    group.add_argument(
        "--weighting", choices=WEIGHTINGS,
        help=f"of the loss ({default.weighting}; edm for a network of the data)",
    )  # fmt: skip


def run(args: argparse.Namespace) -> None:
    config = _config(args)
    accelerator = launched(
        args.track, args.out, cpu=args.device == "cpu", **given_of(args, "patience")
    )
    if accelerator is None:
        where = device(args)
    else:
        where = accelerator.device
        accelerator.init_trackers("cldfast", config=config.train)
    metrics = train_run(
        args.out, config, resume=args.resume, until=args.until, device=where,
        progress=not args.quiet, accelerator=accelerator, **given_of(args, "workers"),
    )  # fmt: skip
    if accelerator is not None:
        accelerator.end_training()
        if not accelerator.is_main_process:
            return
    print(
        f"{args.out}: {metrics['steps']} steps, validation loss {metrics['validation_loss']:.4g}, "
        f"{metrics['parameters']} parameters, {metrics['seconds']:.1f} s"
    )
    try:
        plot_losses(args.out)
    except ImportError as error:
        print(f"cldfast: no loss.png: {error}", file=sys.stderr)


def _config(args: argparse.Namespace) -> RunConfig:
    """The config of the folder that goes on, or of a new run."""
    values = given(args)
    if args.name is not None:
        if args.data is not None:
            raise ValueError(f"give the data once: {args.name} or --data {args.data}")
        values["data"] = values.pop("name")
    if not args.resume:
        return run_config(values)
    if refused := sorted(values.keys() - _WITH_RESUME):
        names = ", ".join(name.replace("_", "-") for name in refused)
        raise ValueError(f"--resume takes the settings of the folder, not also: {names}")
    config = load_config(args.out)
    if "steps" in values and config.train is not None:
        config = replace(config, train=config.train | {"steps": args.steps})
    return config
