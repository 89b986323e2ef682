"""Draw samples from a run folder.

Writes an .npz file with the array `samples`, the `labels` of a network of classes and the JSON text
`settings`, and beside it a picture: a grid of images, or a scatter plot of two coordinates. With a
folder as --out it writes shards: any number of processes may run the same command at once, and
what is missing is made when it is run again.

examples:
  cldfast sample RUN -n 1024 --steps 20
  cldfast sample RUN --steps 8                      # by the folder's fitted plan, where it has one
  cldfast sample RUN --labels 3 7 --guidance-scale 2
  cldfast sample RUN --solver multistep --option order=3 --grid logistic --batch-size 256
  cldfast sample RUN -n 1000000 --out samples/      # in constant memory; run it again to go on
  cldfast sample RUN -n 1000000 --out samples/ --shards 0-15   # these alone, by number
  torchrun --nproc-per-node 8 -m cldfast sample RUN -n 1000000 --out samples/
  cldfast sample RUN --solver pflow --tolerance 1e-4 --device cuda --out flow.npz
"""

from __future__ import annotations

import argparse
import io
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cldfast.app.options import (
    add_device,
    add_numbers,
    add_progress,
    device,
    given,
    given_of,
    local_device,
    named_values,
)
from cldfast.app.plans import plan_of_run
from cldfast.app.runs import flow_run, sample_run
from cldfast.app.sample_shards import CALL_ROWS, SHARD_ROWS, fill_shards
from cldfast.app.training_data import training_data
from cldfast.extras import require
from cldfast.files import write_atomic
from cldfast.kernels import backend_names
from cldfast.lab.plots import image_grid, scatter
from cldfast.model.run_folder import RunConfig, load_run
from cldfast.planner.grids import DEFAULT_STEPS, GRIDS, NOISE_GRIDS
from cldfast.planner.solvers import SOLVERS
from cldfast.sampling.shard_files import FORMATS

# Options for a plan, with their defaults, and for the adaptive flow.
_OF_PLANS: dict[str, Any] = {
    "steps": DEFAULT_STEPS, "grid": None, "denoise": False, "guidance_scale": None,
    "batch_size": None, "backend": "auto", "plan": None,
}  # fmt: skip
# Options that make a plan, so that none of the folder's own is taken.
_MAKING = {"solver", "grid", "denoise", "guidance_scale", "t_min"}
_OF_THE_FLOW: dict[str, Any] = {"tolerance": 1e-5}
# What is left to say where a plan is given.
_WITH_A_PLAN = ("seed", "first_index", "batch_size", "backend")
_OF_SHARDS = ("files", "shard_rows", "call_rows", "shards")
# Columns of a picture whose rows are classes.
_COLUMNS = 16

USAGE = "RUN [options]"


def add_options(parser: Any) -> None:
    solvers, grids = ", ".join(SOLVERS), ", ".join((*GRIDS, *NOISE_GRIDS))
    parser.add_argument("folder", metavar="run", help="run folder")
    parser.add_argument("-n", type=int, default=1024, help="samples (%(default)s)")
    flow = "pflow, the adaptive flow"
    parser.add_argument("--solver", help=f"{solvers}, {flow} (auto)")
    parser.add_argument("--grid", help=f"{grids}, or auto (that of solver auto, else quadratic)")
    clean = "end with one more evaluation, the clean estimate"
    parser.add_argument("--denoise", action="store_const", const=True, help=clean)
    own = "the solver's own, such as order=3"
    parser.add_argument("--option", nargs="+", metavar="NAME=VALUE", default=(), help=own)
    by_turn = "classes of the samples, by turn, or none (all)"
    parser.add_argument("--labels", nargs="+", metavar="CLASS", help=by_turn)
    numbers = {
        "guidance-scale": "weight of the class against no class (1)",
        "t-min": "last time (the run's)",
        "tolerance": "of pflow (1e-5)",
    }
    add_numbers(parser, float, numbers)
    counts = {
        "steps": f"grid intervals ({DEFAULT_STEPS})",
        "seed": "noise key (0)",
        "first-index": "number of the first sample: shards of one seed fit together (0)",
        "batch-size": "samples in one network call (all)",
    }
    add_numbers(parser, int, counts)
    fitted = "file of a fitted plan, or none (plans/STEPS.json of the run, where there is one)"
    parser.add_argument("--plan", metavar="FILE", help=fitted)
    parser.add_argument("--backend", help=f"{', '.join(backend_names())} (auto)")
    where = ".npz to write (samples.npz in the run folder), or a folder of shards"
    parser.add_argument("--out", metavar="PATH", help=where)
    shards = parser.add_argument_group("shards, see docs/scaling.md")
    shards.add_argument("--files", choices=FORMATS, help="what they are (safetensors)")
    shard_counts = {
        "shard-rows": f"samples in one ({SHARD_ROWS})",
        "call-rows": f"samples in one network call, on which the last bit depends ({CALL_ROWS})",
    }
    add_numbers(shards, int, shard_counts)
    by_number = "make these, by number and without locks, such as 0-3 9, or all (what is free)"
    shards.add_argument("--shards", nargs="+", metavar="K", help=by_number)
    parser.add_argument("--no-picture", action="store_true", help="write the .npz only")
    add_device(parser)
    add_progress(parser)


def run(args: argparse.Namespace) -> None:
    folder = Path(args.folder)
    out = Path(args.out) if args.out else folder / "samples.npz"
    to_shards = out.suffix == "" or out.is_dir()
    if not to_shards and out.suffix != ".npz":
        raise ValueError(f"--out: expected a folder, or a name that ends in .npz, got {out.name!r}")
    if args.n < 1:
        raise ValueError(f"-n: expected at least 1 sample, got {args.n}")
    if not to_shards and (refused := given_of(args, *_OF_SHARDS)):
        names = ", ".join(f"--{name.replace('_', '-')}" for name in refused)
        raise ValueError(f"{names}: goes with a folder as --out")
    net, sde, config = load_run(folder)
    net.to(local_device(args) if to_shards else device(args))
    if not out.parent.is_dir():
        raise ValueError(f"{out}: the folder {out.parent} does not exist")
    if not args.no_picture and not to_shards:
        require("matplotlib")  # refuse before the long work

    values = given(args)
    settings = _sampler_settings({"t_min": config.t_min, "solver": "auto"} | values)
    labels = run_labels(config, args.labels, 1 if to_shards else args.n, settings["first_index"])
    if labels is None and args.guidance_scale is not None:
        raise ValueError("--guidance-scale goes with a network of classes")
    made = sorted(_MAKING & values.keys()) + ["option"] * bool(args.option)
    if args.plan not in (None, "none") and (made or args.steps is not None):
        raise ValueError(f"--plan says all of a sampler: leave out {', '.join(made or ['steps'])}")
    choice = "none" if made else args.plan
    if args.solver == "pflow":
        if to_shards:
            raise ValueError("--solver pflow does not go with a folder as --out")
        samples, evaluations = flow_run(net, sde, config, args.n, labels=labels, **settings)
        settings["evaluations"] = evaluations
        settings["solver"] = "pflow"
    else:
        plan = plan_of_run(folder, sde, config, choice, settings["steps"])
        if plan is not None:
            settings |= {"solver": plan.solver, "steps": plan.steps}
            print(f"by the {plan.solver} plan with {plan.evaluations} evaluations")
        del settings["plan"]
        drawn = settings if plan is None else {k: settings[k] for k in _WITH_A_PLAN}
        if to_shards:
            labels_of = partial(_labels_from, config, args.labels)
            fill_shards(
                folder, out, net, sde, config, args.n, plan=plan, progress=not args.quiet,
                labels_of=None if labels is None else labels_of, chosen=args.labels,
                **given_of(args, *_OF_SHARDS), **drawn,
            )  # fmt: skip
            return
        samples = sample_run(
            net, sde, config, args.n, labels=labels, plan=plan, progress=not args.quiet, **drawn
        )
    arrays: dict[str, Any] = {
        "samples": samples.numpy(),
        "settings": np.array(json.dumps(settings)),
    }
    if labels is not None:
        arrays["labels"] = labels.numpy()
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    write_atomic(out, buffer.getvalue())
    print(f"{out}: samples {tuple(samples.shape)}")
    if not args.no_picture:
        _picture(samples, labels, config, out.with_suffix(".png"))


def run_labels(
    config: RunConfig, chosen: list[str] | None, n: int, first_index: int = 0
) -> Tensor | None:
    """Labels (n,) of samples from number `first_index` on; None for a network without classes.

    chosen: classes that samples have by turn, or "none"; None is all classes.
    """
    classes = config.model.get("classes")
    if classes is None:
        if chosen is not None:
            raise ValueError("--labels goes with a network of classes")
        return None
    known = {**{str(label): label for label in range(classes)}, "none": classes}
    for text in chosen or ():
        if text not in known:
            raise ValueError(f"--labels: expected 0 to {classes - 1} or none, got {text!r}")
    cycle = torch.tensor(
        [known[text] for text in chosen] if chosen else range(classes), device="cpu"
    )
    return cycle[torch.arange(first_index, first_index + n, device="cpu") % len(cycle)]


def _labels_from(config: RunConfig, chosen: list[str] | None, first: int, count: int) -> Tensor:
    labels = run_labels(config, chosen, count, first)
    assert labels is not None
    return labels


def _sampler_settings(given: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments of `cldfast.sample`, or for the solver "pflow" of `cldfast.pflow`."""
    flow = given["solver"] == "pflow"
    own, strange = (_OF_THE_FLOW, _OF_PLANS) if flow else (_OF_PLANS, _OF_THE_FLOW)
    for name in sorted(strange.keys() & given.keys()):
        raise ValueError(f"--{name.replace('_', '-')} does not go with --solver {given['solver']}")
    defaults = own | {"seed": 0, "first_index": 0, "t_min": None, "solver": None}
    settings = defaults | {name: given[name] for name in defaults.keys() & given.keys()}
    if flow:
        del settings["solver"]
        settings["rtol"] = settings["atol"] = settings.pop("tolerance")
    for name, value in named_values("option", given["option"]).items():
        if name in {*settings, "n", "progress", "labels"}:
            raise ValueError(f"--option: expected the solver's own options, got {name}={value}")
        settings[name] = value
    return settings


def _picture(samples: Tensor, labels: Tensor | None, config: RunConfig, path: Path) -> None:
    if samples.ndim == 4 and labels is not None:
        rows = [samples[labels == label][:_COLUMNS] for label in labels.unique()]
        columns = min(len(row) for row in rows)
        image_grid(torch.cat([row[:columns] for row in rows]), path, len(rows), columns)
    elif samples.ndim == 4:
        image_grid(samples, path)
    elif samples.shape[1] >= 2 and config.data is not None:
        reference = config.restore(training_data(config.data).rows)
        scatter(samples[:, :2], reference[: len(samples), :2], path)
    else:
        reason = "one coordinate" if samples.shape[1] < 2 else "the run names no data"
        print(f"no picture: {reason}")
        return
    print(path)
