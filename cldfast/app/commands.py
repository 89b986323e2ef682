"""What the commands of the command line do; `cldfast.app.cli` reads their options."""

from __future__ import annotations

import argparse
import io
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cldfast.app.run_folder import RunConfig, load_config, load_run
from cldfast.app.runs import flow_run, plot_losses, require, sample_run, train_run, training_data
from cldfast.files import write_atomic
from cldfast.info import info as collect_info
from cldfast.lab.data import DATASETS, Digits, make_data
from cldfast.lab.models import MLPScore, UNetScore
from cldfast.planner.parameterization import FULL_MAPS
from cldfast.process.schedules import LinearBeta
from cldfast.process.sde import CLD
from cldfast.training.config import TrainConfig

# Options of `train` that a resumed run may be given anew.
_WITH_RESUME = {"command", "run", "out", "resume", "steps", "threads", "quiet"}


def demo(args: argparse.Namespace) -> None:
    """Train on the digits, sample, report."""
    from cldfast.app.demo import run_demo

    options = {"train_steps": args.train_steps, "samples": args.samples}
    given = {name: value for name, value in options.items() if value is not None}
    run_demo(args.out, seed=args.seed, progress=_shows_progress(args), **given)


def train(args: argparse.Namespace) -> None:
    """Train into a run folder, or go on with one; only the options given are in `args`."""
    given = {name: value for name, value in vars(args).items() if value is not None}
    resume = given.get("resume", False)
    if resume:
        refused = sorted(set(given) - _WITH_RESUME)
        if refused:
            names = ", ".join(name.replace("_", "-") for name in refused)
            raise ValueError(f"--resume takes the settings of the folder, not also: {names}")
        config = load_config(args.out)
        if "steps" in given and config.train is not None:
            settings = TrainConfig.from_dict(config.train)
            config = replace(config, train=asdict(replace(settings, steps=args.steps)))
    else:
        config = run_config(given)
    metrics = train_run(args.out, config, resume=resume, progress=_shows_progress(args))
    print(
        f"{args.out}: {metrics['steps']} steps, validation loss {metrics['validation_loss']:.4g}, "
        f"{metrics['parameters']} parameters, {metrics['seconds']:.1f} s"
    )
    try:
        plot_losses(args.out)
    except ImportError as error:
        print(f"cldfast: no loss.png: {error}", file=sys.stderr)


def run_config(given: dict[str, Any]) -> RunConfig:
    """The `RunConfig` of the options of `train` that were given, by name.

    Raises ValueError or TypeError for options that do not fit each other.
    """
    if "data" not in given:
        raise ValueError(f"train needs a data set: {', '.join(DATASETS)}")
    settings = {k: v for k, v in given.items() if k in TrainConfig.__dataclass_fields__}
    if settings.get("clip") == 0:
        settings["clip"] = None
    train = TrainConfig(**settings)
    source = make_data(given["data"], given.get("dim"))
    data = {"name": given["data"], "dim": source.dim, "scale": given.get("scale", 1.0)}
    planes = 2 if train.parameterization in FULL_MAPS else 1
    sizes = {k: given[k] for k in ("width", "depth") if k in given}
    net: UNetScore | MLPScore
    if isinstance(source, Digits):
        for name in ("rows", "depth"):
            if name in given:
                raise ValueError(f"--{name} does not go with the digits")
        channels = source.shape[0]
        net = UNetScore(channels, planes * channels, **sizes)
    else:
        data |= {"rows": given.get("rows", 50_000), "seed": train.seed}
        net = MLPScore(source.dim, planes * source.dim, **sizes)
    return RunConfig(
        sde=_process(given).config(),
        model=net.config(),
        shape=source.shape if isinstance(source, Digits) else (source.dim,),
        parameterization=train.parameterization,
        t_min=train.t_min,
        data=data,
        train=asdict(train),
    )


def _process(given: dict[str, Any]) -> CLD:
    beta: Any = given.get("beta", 4.0)
    if "beta_end" in given:
        beta = LinearBeta(beta, given["beta_end"])
    options = {"x_noise": given.get("x_noise", 0.0), "beta": beta}
    by_scale = {k: given[k] for k in ("a", "sigma", "v0_var") if k in given}
    by_mass = {k: given[k] for k in ("mass_inv", "gamma") if k in given}
    if by_scale and by_mass:
        names = ", ".join(f"--{n.replace('_', '-')}" for n in [*by_scale, *by_mass])
        raise ValueError(f"give the process by (a, sigma, v0-var) or (mass-inv, gamma): {names}")
    return CLD.from_mass(**by_mass, **options) if by_mass else CLD(**by_scale, **options)


def sample(args: argparse.Namespace) -> None:
    """Sample a run folder into an .npz file and a picture."""
    folder = Path(args.folder)
    out = Path(args.out) if args.out else folder / "samples.npz"
    if out.suffix != ".npz":
        raise ValueError(f"--out: expected a name that ends in .npz, got {out.name!r}")
    if args.n < 1:
        raise ValueError(f"-n: expected at least 1 sample, got {args.n}")
    net, sde, config = load_run(folder)
    if not out.parent.is_dir():
        raise ValueError(f"{out}: the folder {out.parent} does not exist")
    if not args.no_picture:
        require("matplotlib")  # before the long work, not after it

    settings = _sampler_settings(args)
    settings["t_min"] = config.t_min if args.t_min is None else args.t_min
    if args.solver == "pflow":
        samples, settings["evaluations"] = flow_run(net, sde, config, args.n, **settings)
        settings["solver"] = "pflow"
    else:
        samples = sample_run(net, sde, config, args.n, progress=_shows_progress(args), **settings)
    buffer = io.BytesIO()
    np.savez(buffer, samples=samples.numpy(), settings=np.array(json.dumps(settings)))
    write_atomic(out, buffer.getvalue())
    print(f"{out}: samples {tuple(samples.shape)}")
    if not args.no_picture:
        _picture(samples, config, out.with_suffix(".png"))


# Options of `sample` for a plan, with their defaults, and for the adaptive flow.
_OF_PLANS = {
    "steps": 50, "grid": "quadratic", "denoise": False, "batch_size": None, "backend": "auto",
}  # fmt: skip
_OF_THE_FLOW = {"tolerance": 1e-5}


def _sampler_settings(args: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments of `cldfast.sample`, or for the solver "pflow" of `cldfast.pflow`."""
    flow = args.solver == "pflow"
    strange = _OF_PLANS if flow else _OF_THE_FLOW
    for name in strange:
        if getattr(args, name) is not None:
            raise ValueError(f"--{name.replace('_', '-')} does not go with --solver {args.solver}")
    settings: dict[str, Any] = {"seed": args.seed, "first_index": args.first_index}
    for name, default in (_OF_THE_FLOW if flow else _OF_PLANS).items():
        settings[name] = default if getattr(args, name) is None else getattr(args, name)
    if flow:
        settings["rtol"] = settings["atol"] = settings.pop("tolerance")
    else:
        settings["solver"] = args.solver
    for text in args.option or ():
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier() or name in {*settings, "n", "progress", "t_min"}:
            raise ValueError(f"--option: expected name=value of the solver's own, got {text!r}")
        try:
            settings[name] = json.loads(value)
        except json.JSONDecodeError:
            settings[name] = value
    return settings


def _picture(samples: Tensor, config: RunConfig, path: Path) -> None:
    from cldfast.lab.plots import image_grid, scatter

    if samples.ndim == 4:
        image_grid(samples, path)
    elif samples.shape[1] >= 2 and config.data is not None:
        rows = training_data(config.data)[0] / config.scale
        scatter(samples[:, :2], rows[: len(samples), :2], path)
    else:
        reason = "one coordinate" if samples.shape[1] < 2 else "the run names no data"
        print(f"no picture: {reason}")
        return
    print(path)


def bench(args: argparse.Namespace) -> None:
    """Measure; see `cldfast.bench`."""
    from cldfast.bench import main

    main(args)


def info(args: argparse.Namespace) -> None:
    """Print what this installation can do."""
    values = collect_info()
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


def set_threads(threads: int) -> None:
    """Set PyTorch's CPU threads, which the fused core obeys too."""

    if threads < 1:
        raise ValueError(f"--threads: expected at least 1, got {threads}")
    torch.set_num_threads(threads)


def _shows_progress(args: argparse.Namespace) -> bool:
    """Bars are for people: not in logs."""
    return not args.quiet and sys.stderr.isatty()
