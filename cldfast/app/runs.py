"""A whole training run from its `config.json`, and samples from a run folder in data units."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cldfast.files import PathLike
from cldfast.lab.data import DATASETS, Digits, make_data
from cldfast.lab.models import MLPScore, UNetScore, build_model
from cldfast.lab.plots import loss_curve
from cldfast.model.run_folder import (
    CONFIG,
    METRICS,
    MODEL,
    RunConfig,
    remove_plans,
    save_config,
    save_run,
)
from cldfast.network import Network
from cldfast.planner.data_forms import Preconditioned
from cldfast.planner.parameterization import data_form, output_planes
from cldfast.process.schedules import LinearBeta
from cldfast.process.sde import CLD, LinearPhaseSDE, sde_from_config
from cldfast.sampling.probability_flow import pflow
from cldfast.sampling.run import sample
from cldfast.training import CHECKPOINT, FAILED, LOG, TrainConfig, Trainer
from cldfast.training.data_scale import DataScale
from cldfast.training.log import read_rows

# Rows held out of a data set that is drawn; the digits bring their own test set.
HELD_OUT_ROWS = 2_000
LOSS_PLOT = "loss.png"


def run_config(given: dict[str, Any]) -> RunConfig:
    """The config of a training from the options of `cldfast train` that were given, by name.

    Raises ValueError or TypeError for options that do not fit each other.
    """
    if "data" not in given:
        raise ValueError(f"train needs a data set: {', '.join(DATASETS)}")
    settings = {k: v for k, v in given.items() if k in TrainConfig.__dataclass_fields__}
    if settings.get("clip") == 0:
        settings["clip"] = None
    settings = {"parameterization": "edm"} | settings
    form = data_form(settings["parameterization"])
    if form is not None:  # the best recipe of docs/learning.md
        settings = {"times": "half_log", "weighting": "edm"} | settings
    train = TrainConfig(**settings)
    source = make_data(given["data"], given.get("dim"))
    data: dict[str, Any] = {"name": given["data"], "dim": source.dim}
    planes = output_planes(settings["parameterization"])
    sizes: dict[str, Any] = {k: given[k] for k in ("width", "depth") if k in given}
    if form is not None and form.sees_y:
        conditioning = "c_noise" if isinstance(form, Preconditioned) else "sigma"
        sizes |= {"in_planes": 1, "conditioning": conditioning}
    net: UNetScore | MLPScore
    shape: tuple[int, ...] = (source.dim,)
    if isinstance(source, Digits):
        shape = source.shape
        for name in ("rows", "depth"):
            if name in given:
                raise ValueError(f"--{name} does not go with the digits")
        net = UNetScore(shape[0], planes * shape[0], **sizes)
    else:
        data |= {"rows": given.get("rows", 50_000), "seed": train.seed}
        net = MLPScore(source.dim, planes * source.dim, **sizes)
    data["scale"] = given.get("scale", 1.0)
    if not 0.0 < data["scale"] < math.inf:
        raise ValueError(f"scale: expected a finite number > 0, got {data['scale']}")
    if given.get("standardise", "scale" not in given):
        if "scale" in given:
            raise ValueError("give --scale or --standardise, not both")
        data["standardised"] = asdict(DataScale.fit(training_data(data)[0]))
    elif isinstance(form, Preconditioned) and "sigma_data" not in settings:
        train = replace(train, sigma_data=float(training_data(data)[0].double().std()))
    return RunConfig(
        _process(given).config(), net.config(), shape, settings["parameterization"], train.t_min,
        data, asdict(train),
    )  # fmt: skip


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


def training_data(data: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Rows to train on and rows held out, scaled.

    data: "name" and "dim" (see `cldfast.lab.data.make_data`), and for data that is drawn "rows" and
        "seed"; "scale" multiplies the rows, or "standardised" says how they are standardised.

    Raises ValueError for an unknown name or bad values.
    """
    source = make_data(str(data.get("name")), data.get("dim"))
    if isinstance(source, Digits):
        rows, held_out = source.train_x, source.test_x
    else:
        seed = data.get("seed", 0)
        rows = source.sample(data.get("rows", 50_000), seed)
        held_out = source.sample(HELD_OUT_ROWS, seed + 1)
    if data.get("standardised") is not None:
        scale = DataScale(**data["standardised"])
        return scale.standardise(rows), scale.standardise(held_out)
    factor = data.get("scale", 1.0)
    return rows * factor, held_out * factor


def train_run(
    folder: PathLike, config: RunConfig, *, resume: bool = False, progress: bool = False
) -> dict[str, Any]:
    """Train what a config describes, and leave a run folder; returns its metrics.

    folder: made here. Without `resume` a folder that has a run already is refused; with it, the run
        is continued, and a finished one is extended if `config.train` asks for more steps.
    progress: a tqdm bar.

    Raises ValueError for a config that does not fit, ImportError without safetensors, and
    NonFiniteLoss.
    """
    path = Path(folder)
    if config.data is None or config.train is None:
        raise ValueError("the config says nothing of data or training: there is nothing to train")
    if not resume and any((path / name).exists() for name in (CONFIG, MODEL, CHECKPOINT)):
        raise ValueError(f"{path} has a run already: resume it or choose another folder")
    settings = TrainConfig.from_dict(config.train)
    sde = sde_from_config(config.sde)
    # Everything that can be refused is refused before the first file is written.
    if not settings.t_min < sde.T:
        raise ValueError(f"t_min: expected below T = {sde.T}, got {settings.t_min}")
    rows, held_out = training_data(config.data)
    # The initial weights are the seed's, also where a run was killed before its first checkpoint.
    torch.manual_seed(settings.seed)
    net = build_model(config.model)
    if not resume:
        save_config(path, config)
    trainer = Trainer(net, sde, rows, settings, validation=held_out, folder=path, resume=resume)
    if resume:
        # The checkpoint fits, so the new settings may replace those in the folder.
        save_config(path, config)
    remove_plans(path)
    average = trainer.fit(progress=progress)
    metrics = {
        "steps": trainer.step,
        "validation_loss": trainer.validate(),
        "parameters": sum(p.numel() for p in net.parameters()),
        "seconds": round(trainer.seconds, 3),
    }
    save_run(path, average, config, metrics)
    return metrics


def plot_losses(folder: PathLike) -> None:
    """Draw a run's log as `loss.png`; ImportError without matplotlib."""
    log = read_rows(Path(folder) / LOG)
    losses = [row["loss"] for row in log]
    loss_curve([row["step"] for row in log], losses, Path(folder) / LOSS_PLOT)


def remove_run(folder: PathLike) -> None:
    """Remove the files of a run from a folder, and nothing else."""
    for name in (CHECKPOINT, LOG, FAILED, MODEL, METRICS, LOSS_PLOT, CONFIG):
        (Path(folder) / name).unlink(missing_ok=True)
    remove_plans(folder)


def sample_run(
    net: Network, sde: LinearPhaseSDE, config: RunConfig, n: int, **options: Any
) -> Tensor:
    """n samples (n, *shape) of a loaded run, in the units of its data.

    options: of `cldfast.sample`; `t_min` is the run's own where it is not given.

    Raises ValueError for bad options, and where samples come out non-finite.
    """
    drawn = sample(net, sde, **_arguments(config, n, options))
    assert isinstance(drawn, Tensor)  # no velocity is asked for
    return _in_units(drawn, config)


def flow_run(
    net: Network, sde: LinearPhaseSDE, config: RunConfig, n: int, **options: Any
) -> tuple[Tensor, int]:
    """n samples by the adaptive flow, with options of `cldfast.pflow`, and its evaluations."""
    drawn, evaluations = pflow(net, sde, **_arguments(config, n, options))
    return _in_units(drawn, config), evaluations


def _arguments(config: RunConfig, n: int, options: dict[str, Any]) -> dict[str, Any]:
    own: dict[str, Any] = {"parameterization": config.form}
    if options.get("plan") is None:
        own["t_min"] = config.t_min  # a plan has its own
    return {"shape": (n, *config.shape)} | own | options


def _in_units(drawn: Tensor, config: RunConfig) -> Tensor:
    """The samples in the units of the run's data; ValueError where some are not finite."""
    lost = int((~drawn.flatten(1).isfinite()).any(1).sum())
    if lost:
        raise ValueError(
            f"{lost} of {len(drawn)} samples diverged to infinity: "
            "take more steps, another solver or grid"
        )
    return config.restore(drawn)
