"""The config of a new training, from the options of `cldfast train`."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from cldfast.app.process_options import process
from cldfast.app.training_data import OpenedData, open_training_data
from cldfast.lab.data import DATASETS, make_data
from cldfast.lab.models import MLPScore, UNetScore
from cldfast.model.run_folder import RunConfig
from cldfast.planner.data_forms import DataForm, Preconditioned
from cldfast.planner.parameterization import data_form, output_planes
from cldfast.training import TrainConfig
from cldfast.training.data_scale import DataScale
from cldfast.training.losses import checked_parameterization

# Rows of vectors over which the targets of a training are averaged, as docs/learning.md has it.
REFERENCE = 2_048
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
    if given.get("conditional"):
        settings = {"label_dropout": LABEL_DROPOUT} | settings
    train = TrainConfig(**settings)
    sde = process(given)
    checked_parameterization(sde, train.form(sde), train.objective)
    data = _data(given, train.seed)
    found = open_training_data(data)
    shape = found.shape
    if train.flip and len(shape) != 3:
        raise ValueError(f"--flip goes with images, got rows of shape {shape}")
    if form is not None and len(shape) == 1 and "reference" not in settings:
        train = replace(train, reference=REFERENCE)
    net = _network(given, found, form, output_planes(settings["parameterization"]))
    data["scale"] = given.get("scale", 1.0)
    if not 0.0 < data["scale"] < math.inf:
        raise ValueError(f"scale: expected a finite number > 0, got {data['scale']}")
    if given.get("standardise", "scale" not in given):
        if "scale" in given:
            raise ValueError("give --scale or --standardise, not both")
        data["standardised"] = asdict(DataScale.fit(found.some_rows()))
    elif isinstance(form, Preconditioned) and "sigma_data" not in settings:
        deviation = data["scale"] * float(found.some_rows().double().std())
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
    given: dict[str, Any], data: OpenedData, form: DataForm | None, planes: int
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
    elif "label_dropout" in given:
        raise ValueError("--label-dropout goes with --conditional")
    channels = data.shape[0]
    if len(data.shape) == 1:
        # A gate serves a network that sees y, whose output is near a multiple of its input.
        return MLPScore(channels, planes * channels, gated="in_planes" in sizes, **sizes)
    if "depth" in given:
        raise ValueError("--depth does not go with images")
    net = UNetScore(channels, planes * channels, **sizes)
    try:
        net.check(torch.zeros(1, net.in_planes * channels, *data.shape[1:], device="cpu"))
    except ValueError as error:
        raise ValueError(f"{error}: resize a folder of images with --size") from None
    return net
