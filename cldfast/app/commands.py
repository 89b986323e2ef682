"""What the commands of the command line do; `cldfast.app.cli` reads their options."""

from __future__ import annotations

import argparse
import io
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from cldfast.app.demo import run_demo
from cldfast.app.plans import fit_run, plan_of_run, plan_path
from cldfast.app.runs import flow_run, plot_losses, run_config, sample_run, train_run, training_data
from cldfast.app.study import study_processes
from cldfast.bench import main as run_bench
from cldfast.extras import require
from cldfast.files import write_atomic
from cldfast.info import info as collect_info
from cldfast.lab.plots import image_grid, scatter
from cldfast.model.run_folder import RunConfig, load_config, load_run
from cldfast.planner.grids import DEFAULT_STEPS

# Options of `train` that a resumed run may be given anew.
_WITH_RESUME = {"command", "run", "out", "resume", "steps", "threads", "quiet"}


def _given(args: argparse.Namespace) -> dict[str, Any]:
    """The options that were given, by name, flags included."""
    return {name: value for name, value in vars(args).items() if value is not None}


def demo(args: argparse.Namespace) -> None:
    """Train on handwritten digits, sample them, report quality and speed.

    Trains a U-Net on scikit-learn's handwritten digits, draws samples with 50 network evaluations,
    and writes samples.png, quality.png, report.json and the run folder run/. About five minutes on
    two cores.
    """
    given = _given(args)
    options = {name: given[name] for name in ("train_steps", "samples", "seed") if name in given}
    run_demo(args.out, progress=_shows_progress(args), **options)


def train(args: argparse.Namespace) -> None:
    """Train a score network on a data set.

    Trains by hybrid score matching and leaves a run folder that `sample` reads. A run that was
    stopped goes on, bit for bit, with: train --resume --out DIR.
    """
    given = _given(args)
    if args.resume:
        refused = sorted(given.keys() - _WITH_RESUME)
        if refused:
            names = ", ".join(name.replace("_", "-") for name in refused)
            raise ValueError(f"--resume takes the settings of the folder, not also: {names}")
        config = load_config(args.out)
        if "steps" in given and config.train is not None:
            config = replace(config, train=config.train | {"steps": args.steps})
    else:
        config = run_config(given)
    metrics = train_run(args.out, config, resume=args.resume, progress=_shows_progress(args))
    print(
        f"{args.out}: {metrics['steps']} steps, validation loss {metrics['validation_loss']:.4g}, "
        f"{metrics['parameters']} parameters, {metrics['seconds']:.1f} s"
    )
    try:
        plot_losses(args.out)
    except ImportError as error:
        print(f"cldfast: no loss.png: {error}", file=sys.stderr)


def fit(args: argparse.Namespace) -> None:
    """Fit a plan of few evaluations to the network of a run folder.

    Writes RUN/plans/N.json, which `sample --steps N` then takes by itself.
    """
    names = ("base", "objective", "steps", "batch_size", "chunk_size", "seed", "step_size")
    given = {name: value for name, value in _given(args).items() if name in names}
    if "=" in (text := given.get("objective", "")):
        given["objective"] = _weights(text)
    result, figures = fit_run(
        args.folder, args.evaluations, progress=_shows_progress(args), **given
    )
    verdict = "kept" if result.improved else "does not beat its base, which is kept"
    print(
        f"{plan_path(args.folder, args.evaluations)}: {args.evaluations} evaluations, objective on "
        f"held-out data {result.before:.3g} -> {result.after:.3g}, {verdict}; nearest training row "
        f"at {figures['nearest_ratio']:.2f} of a test row's distance; {result.seconds:.0f} s"
    )


def _weights(text: str) -> dict[str, float]:
    """`energy=1,paths=0.1` as weights by name."""
    try:
        return {name: float(number) for name, number in (p.split("=") for p in text.split(","))}
    except ValueError:
        raise ValueError(f"--objective: expected name=weight,name=weight, got {text!r}") from None


# Options of `sample` for a plan, with their defaults, and for the adaptive flow.
_OF_PLANS: dict[str, Any] = {
    "steps": DEFAULT_STEPS, "grid": None, "denoise": False, "batch_size": None, "backend": "auto",
    "plan": None,
}  # fmt: skip
# Options of `sample` that make a plan, so that none of the folder's own is taken.
_MAKING = {"solver", "grid", "denoise", "t_min"}
_OF_THE_FLOW: dict[str, Any] = {"tolerance": 1e-5}


# What is left to say where a plan is given.
_WITH_A_PLAN = ("seed", "first_index", "batch_size", "backend")


def sample(args: argparse.Namespace) -> None:
    """Draw samples from a run folder.

    Writes an .npz file with the array `samples` and the JSON text `settings`, and beside it a
    picture: a grid of images, or a scatter plot of two coordinates.
    """
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
        require("matplotlib")  # refuse before the long work

    given = _given(args)
    settings = _sampler_settings({"t_min": config.t_min, "solver": "auto"} | given)
    made = sorted(_MAKING & given.keys()) + ["option"] * bool(args.option)
    if args.plan not in (None, "none") and (made or args.steps is not None):
        raise ValueError(f"--plan says all of a sampler: leave out {', '.join(made or ['steps'])}")
    choice = "none" if made else args.plan
    if args.solver == "pflow":
        samples, settings["evaluations"] = flow_run(net, sde, config, args.n, **settings)
        settings["solver"] = "pflow"
    else:
        plan = plan_of_run(folder, sde, config, choice, settings["steps"])
        if plan is not None:
            settings |= {"solver": plan.solver, "steps": plan.steps}
            print(f"by the {plan.solver} plan with {plan.evaluations} evaluations")
        del settings["plan"]
        drawn = settings if plan is None else {k: settings[k] for k in _WITH_A_PLAN}
        progress = _shows_progress(args)
        samples = sample_run(net, sde, config, args.n, plan=plan, progress=progress, **drawn)
    buffer = io.BytesIO()
    np.savez(buffer, samples=samples.numpy(), settings=np.array(json.dumps(settings)))
    write_atomic(out, buffer.getvalue())
    print(f"{out}: samples {tuple(samples.shape)}")
    if not args.no_picture:
        _picture(samples, config, out.with_suffix(".png"))


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
    for text in given["option"]:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier() or name in {*settings, "n", "progress"}:
            raise ValueError(f"--option: expected name=value of the solver's own, got {text!r}")
        try:
            settings[name] = json.loads(value)
        except json.JSONDecodeError:
            settings[name] = value
    return settings


def _picture(samples: Tensor, config: RunConfig, path: Path) -> None:
    if samples.ndim == 4:
        image_grid(samples, path)
    elif samples.shape[1] >= 2 and config.data is not None:
        rows = config.restore(training_data(config.data)[0])
        scatter(samples[:, :2], rows[: len(samples), :2], path)
    else:
        reason = "one coordinate" if samples.shape[1] < 2 else "the run names no data"
        print(f"no picture: {reason}")
        return
    print(path)


def bench(args: argparse.Namespace) -> None:
    """Measure the kernels on this machine: the fused operations beside plain PyTorch."""
    run_bench(args)


def study(args: argparse.Namespace) -> None:
    """Compare CLD with the processes it grew out of.

    Samples a mixture by CLD, VP, VE, flow matching and kinetic Langevin dynamics with 6 to 50
    network evaluations, with exact networks or with networks trained alike, and writes
    processes.csv and processes.png. Some minutes.
    """
    if args.samples is not None and args.samples < 2:
        raise ValueError(f"--samples: expected at least 2, got {args.samples}")
    if args.learned is not None and args.learned < 1:
        raise ValueError(f"--learned: expected at least 1 step, got {args.learned}")
    given = {"name": args.data, "samples": args.samples, "training": args.learned}
    study_processes(args.out, **{name: value for name, value in given.items() if value is not None})
    print(f"{args.out}: processes.csv, processes.png")


def info(args: argparse.Namespace) -> None:
    """Print versions, backends and what this installation lacks on this machine."""
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


def _shows_progress(args: argparse.Namespace) -> bool:
    """Whether to draw a progress bar: in a terminal, not in a log."""
    return not args.quiet and sys.stderr.isatty()
