"""The config of a new training, from the options of `cldfast train`."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from cldfast.app.run_folder import RunConfig
from cldfast.app.training_data import TrainingData, training_data
from cldfast.lab.data import DATASETS, make_data
from cldfast.lab.models import MLPScore, UNetScore
from cldfast.planner.data_forms import DataForm, Preconditioned
from cldfast.planner.parameterization import data_form, output_planes
from cldfast.process.schedules import LinearBeta, schedule_from_config
from cldfast.process.sde import CLD, LinearPhaseSDE, sde_from_config
from cldfast.training import TrainConfig
from cldfast.training.data_scale import DataScale

# Of the labels in training, so that a network of classes also learns all classes at once.
LABEL_DROPOUT = 0.1


def run_config(given: dict[str, Any]) -> RunConfig:
    """The config of a training from the options of `cldfast train` that were given, by name.

    Raises ValueError or TypeError for options that do not fit each other.
    """
    settings = {k: v for k, v in given.items() if k in TrainConfig.__dataclass_fields__}
    if settings.get("clip") == 0:
        settings["clip"] = None
    # Denoising score matching is about the velocity, which `edm` does not see.
    best = "mixed" if settings.get("objective") == "dsm" else "edm"
    settings = {"parameterization": best} | settings
    form = data_form(settings["parameterization"])
    if form is not None:  # the best recipe of docs/learning.md
        settings = {"times": "half_log", "weighting": "edm"} | settings
    train = TrainConfig(**settings)
    sde = process(given)
    data = _data(given, train.seed)
    found = training_data(data)
    shape = tuple(found.rows.shape[1:])
    net = _network(given, found, form, output_planes(settings["parameterization"]))
    data["scale"] = given.get("scale", 1.0)
    if not 0.0 < data["scale"] < math.inf:
        raise ValueError(f"scale: expected a finite number > 0, got {data['scale']}")
    if given.get("standardise", "scale" not in given):
        if "scale" in given:
            raise ValueError("give --scale or --standardise, not both")
        data["standardised"] = asdict(DataScale.fit(found.rows))
    elif isinstance(form, Preconditioned) and "sigma_data" not in settings:
        deviation = data["scale"] * float(found.rows.double().std())
        train = replace(train, sigma_data=deviation)
    return RunConfig(
        sde.config(), net.config(), shape, settings["parameterization"], train.t_min,
        data, asdict(train),
    )  # fmt: skip


def _data(given: dict[str, Any], seed: int) -> dict[str, Any]:
    """What the config says of the data: a name of ours, or the path of a file or folder."""
    if "data" not in given:
        raise ValueError(f"train needs data: {', '.join(DATASETS)}, a file or a folder of images")
    name = given["data"]
    if name in DATASETS:
        refused = {"size"} | ({"rows"} if name == "digits" else set())
        data = {"name": name, "dim": make_data(name, given.get("dim")).dim}
        if name != "digits":
            data |= {"rows": given.get("rows", 50_000), "seed": seed}
    else:
        refused = {"dim", "rows"}
        if not Path(name).exists():
            raise ValueError(
                f"data {name!r}: expected {', '.join(DATASETS)}, a file or a folder of images"
            )
        data = {"path": str(Path(name).resolve()), "seed": seed}
        data |= {"size": given["size"]} if "size" in given else {}
    for option in sorted(refused & given.keys()):
        raise ValueError(f"--{option} does not go with the data {name}")
    return data


def _network(
    given: dict[str, Any], data: TrainingData, form: DataForm | None, planes: int
) -> MLPScore | UNetScore:
    """A fresh network of the sizes that were given: a U-Net for images, else an MLP."""
    sizes: dict[str, Any] = {k: given[k] for k in ("width", "depth") if k in given}
    if form is not None and form.sees_y:
        conditioning = "c_noise" if isinstance(form, Preconditioned) else "sigma"
        sizes |= {"in_planes": 1, "conditioning": conditioning}
    if given.get("conditional"):
        if data.classes is None:
            raise ValueError("--conditional: the data have no labels")
        sizes |= {"classes": data.classes}
        sizes |= {"label_dropout": given.get("label_dropout", LABEL_DROPOUT)}
    elif "label_dropout" in given:
        raise ValueError("--label-dropout goes with --conditional")
    channels = data.rows.shape[1]
    if data.rows.ndim == 2:
        return MLPScore(channels, planes * channels, **sizes)
    if "depth" in given:
        raise ValueError("--depth does not go with images")
    net = UNetScore(channels, planes * channels, **sizes)
    try:
        net.check(torch.zeros(1, net.in_planes * channels, *data.rows.shape[2:]))
    except ValueError as error:
        raise ValueError(f"{error}: resize a folder of images with --size") from None
    return net


def process(given: dict[str, Any]) -> LinearPhaseSDE:
    """The process that the options say, by name: its kind and numbers, its rate and T.

    Raises ValueError for options that do not go together.
    """
    T = given.get("T", 1.0)
    beta = _rate(given, T)
    kind, numbers = given.get("process", ("cld", {}))
    if kind != "cld" or numbers:
        own = [n for n in ("a", "sigma", "v0_var", "mass_inv", "gamma", "x_noise") if n in given]
        if own:
            raise ValueError(f"give the process by --process or by {_options(own)}, not both")
        beta = {} if beta is None else {"beta": beta}
        return sde_from_config({"kind": kind, "T": T} | numbers | beta)
    options = {"x_noise": given.get("x_noise", 0.0), "T": T}
    options |= {} if beta is None else {"beta": beta}
    by_scale = {k: given[k] for k in ("a", "sigma", "v0_var") if k in given}
    by_mass = {k: given[k] for k in ("mass_inv", "gamma") if k in given}
    if by_scale and by_mass:
        names = _options([*by_scale, *by_mass])
        raise ValueError(f"give the process by (a, sigma, v0-var) or (mass-inv, gamma): {names}")
    return CLD.from_mass(**by_mass, **options) if by_mass else CLD(**by_scale, **options)


def _rate(given: dict[str, Any], T: float) -> Any:
    """The rate: a number, a schedule, or None for the default of the process."""
    if "schedule" not in given:
        beta = given.get("beta")
        return LinearBeta(4.0 if beta is None else beta, given["beta_end"], T) if "beta_end" in given else beta
    if numbers := [name for name in ("beta", "beta_end") if name in given]:
        raise ValueError(f"give the rate by --schedule or by {_options(numbers)}, not both")
    kind, values = given["schedule"]
    ends = {"T": T} if kind in ("linear", "cosine") else {}
    return schedule_from_config({"kind": kind} | ends | values)


def _options(names: list[str]) -> str:
    return ", ".join(f"--{name.replace('_', '-')}" for name in names)
