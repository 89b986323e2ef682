"""Bound the likelihood of the held-out data of a run folder, or of data given.

Prints an upper bound of the mean negative log-likelihood of a row, in nats and in bits per
coordinate, of the density in the units of the data. The flow needs torchdiffeq (extra ode).

examples:
  cldfast likelihood RUN --rows 500
  cldfast likelihood RUN --data test.npy --draws 4 --probe gaussian --out nll.npz
"""

from __future__ import annotations

import argparse
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from cldfast.app.data_files import read_data
from cldfast.app.options import add_device, add_numbers, device, given_of
from cldfast.app.runs import likelihood_run
from cldfast.app.training_data import training_data
from cldfast.files import write_atomic
from cldfast.model.run_folder import RunConfig, load_run
from cldfast.sampling.likelihood import PROBES

USAGE = "RUN [options]"


def add_options(parser: Any) -> None:
    parser.add_argument("folder", metavar="run", help="run folder")
    parser.add_argument(
        "--data", metavar="PATH", help="data to look at (those held out of the run's)"
    )
    counts = {
        "rows": "rows of the data (all)",
        "draws": "velocities drawn for a row (1)",
        "batch-size": "rows in one network call (all)",
        "seed": "of velocities and probes (0)",
    }
    add_numbers(parser, int, counts)
    parser.add_argument("--probe", choices=PROBES, help="of the divergence (rademacher)")
    numbers = {"t-min": "where the flow begins (the run's)", "tolerance": "of the flow (1e-5)"}
    add_numbers(parser, float, numbers)
    parser.add_argument("--out", metavar="FILE", help=".npz to write with the bound of each row")
    add_device(parser)


def run(args: argparse.Namespace) -> None:
    out = None if args.out is None else Path(args.out)
    if out is not None and (out.suffix != ".npz" or not out.parent.is_dir()):
        raise ValueError(f"--out: expected a .npz file in a folder that exists, got {args.out}")
    net, sde, config = load_run(args.folder)
    rows, labels = _rows(args, config)
    options = {"seed": 0} | given_of(args, "draws", "batch_size", "seed", "probe", "t_min")
    if args.tolerance is not None:
        options |= {"rtol": args.tolerance, "atol": args.tolerance}
    bounds, evaluations = likelihood_run(
        net.to(device(args)), sde, config, rows, labels=labels, **options
    )
    mean, error = float(bounds.mean()), float(bounds.std(correction=0)) / math.sqrt(len(bounds))
    dim = math.prod(config.shape)
    print(
        f"{len(bounds)} rows: at most {mean:.4g} nats ({error:.2g} standard error), "
        f"{mean / (dim * math.log(2.0)):.4g} bits per coordinate; {evaluations} evaluations"
    )
    if out is not None:
        buffer = io.BytesIO()
        np.savez(buffer, nll=bounds.numpy())
        write_atomic(out, buffer.getvalue())
        print(out)


def _rows(args: argparse.Namespace, config: RunConfig) -> tuple[Tensor, Tensor | None]:
    """The rows as the network takes them, and their labels for a network of classes."""
    if args.rows is not None and args.rows < 1:
        raise ValueError(f"--rows: expected at least 1, got {args.rows}")
    if args.data is not None:
        read = read_data(args.data, (config.data or {}).get("size"))
        rows, labels = config.scaled(read.rows), read.labels
    elif config.data is None:
        raise ValueError(f"{args.folder} says nothing of its data: give --data")
    else:
        data = training_data(config.data)
        rows, labels = data.held_out, data.held_out_labels
    if rows.shape[1:] != config.shape:
        raise ValueError(f"expected rows of shape {config.shape}, got {tuple(rows.shape[1:])}")
    chosen = slice(0, args.rows)
    classes = config.model.get("classes")
    if classes is None:
        return rows[chosen], None
    if labels is None or int(labels.max()) >= classes:
        raise ValueError(f"expected data with labels 0 to {classes - 1} for a network of classes")
    return rows[chosen], labels[chosen]
