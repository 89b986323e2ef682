"""Run folders: a trained network with all that is needed to sample from it, as plain files.

    config.json         process, network, parameterisation, data, training, versions
    model.safetensors   the averaged weights
    metrics.json        whatever was measured
    plans/8.json        a plan of 8 evaluations fitted to the network, see `cldfast fit`
    checkpoint.safetensors, train.csv      of the training, see `cldfast.training`

Files are written beside their target and renamed, so a reader finds a whole file or none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cldfast.files import (
    PathLike,
    located,
    member,
    read_json,
    read_tensors,
    write_json,
    write_tensors,
)
from cldfast.info import versions
from cldfast.lab.models import MLPScore, UNetScore, build_model
from cldfast.planner.parameterization import (
    Parameterization,
    check_parameterization,
    data_form,
    named_form,
    output_planes,
)
from cldfast.process.sde import LinearPhaseSDE, sde_from_config
from cldfast.training import CHECKPOINT, TrainConfig
from cldfast.training.data_scale import DataScale
from cldfast.training.trained import remember_training

CONFIG = "config.json"
MODEL = "model.safetensors"
METRICS = "metrics.json"
PLANS = "plans"
# The kind of a network that no config describes; "class" has the name of its class.
OWN = "own"

# Numbers of one sample: an image of 2,048 x 2,048 in three colours has 12.6 million.
_MOST_NUMBERS = 1 << 24
# Numbers of the training data that a config names; as float32 these take 1 GiB.
_MOST_DATA = 1 << 28


@dataclass(frozen=True)
class RunConfig:
    """What `config.json` holds.

    sde, model: `sde.config()` and `model.config()`.
    shape: of one sample, (d,) or (C, H, W).
    parameterization: what the network returns and sees. t_min: smallest time it was trained at.
    data: where the training data came from, as plain values. None: unknown. A "scale" in it is what
        the data was multiplied by before training, a "standardised" the "mean" and "std" of
        `cldfast.training.data_scale.DataScale`.
    train: the training's settings, or None. versions: of the libraries that wrote the folder.
    null: numbers that stand for no condition of the network, by name; None where it says so itself.

    Raises ValueError for a value that does not fit.
    """

    sde: dict[str, Any]
    model: dict[str, Any]
    shape: tuple[int, ...]
    parameterization: str = "score"
    t_min: float = 1e-3
    data: dict[str, Any] | None = None
    train: dict[str, Any] | None = None
    versions: dict[str, str | None] = field(default_factory=versions)
    null: dict[str, float] | None = None

    def __post_init__(self) -> None:
        for name in ("sde", "model", "data", "train", "versions", "null"):
            value, optional = getattr(self, name), name in ("data", "train", "null")
            if not isinstance(value, dict) and not (value is None and optional):
                raise ValueError(f"{name}: expected an object, got {type(value).__name__}")
        shape = self.shape
        if (
            not isinstance(shape, list | tuple)
            or len(shape) not in (1, 3)
            or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in shape)
        ):
            raise ValueError(f"shape: expected [d] or [C, H, W] of whole numbers, got {shape!r}")
        if math.prod(shape) > _MOST_NUMBERS:
            raise ValueError(f"shape: expected at most {_MOST_NUMBERS} numbers, got {shape!r}")
        object.__setattr__(self, "shape", tuple(shape))
        if not isinstance(self.parameterization, str):
            raise ValueError(f"parameterization: expected a name, got {self.parameterization!r}")
        check_parameterization(self.parameterization)
        _ = self.form, self.standardised  # refuses what they would
        for name, value in (("t_min", self.t_min), ("scale of the data", self.scale)):
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not 0 < value < math.inf:
                raise ValueError(f"{name}: expected a number > 0, got {value!r}")
        for name, value in (self.null or {}).items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ValueError(
                    f"null of {name!r}: expected a number to write, got {type(value).__name__}; "
                    "leave it out, and give it when the folder is read"
                )
        self._check_data()
        if self.train is not None:
            TrainConfig.from_dict(self.train)

    def _check_data(self) -> None:
        """ValueError for sizes of the data that are none, or too large to be drawn again."""
        data = self.data or {}
        sizes = {name: data[name] for name in ("dim", "rows") if data.get(name) is not None}
        for name, size in sizes.items():
            if isinstance(size, bool) or not isinstance(size, int) or size < 1:
                raise ValueError(f"{name} of the data: expected a whole number, got {size!r}")
        if math.prod(sizes.values()) > _MOST_DATA:
            raise ValueError(f"data: expected at most {_MOST_DATA} numbers, got {sizes}")

    @property
    def form(self) -> Parameterization:
        """The parameterisation, with the standard deviation that it was trained for."""
        return named_form(self.parameterization, (self.train or {}).get("sigma_data", 1.0))

    @property
    def scale(self) -> float:
        """Samples of the network are divided by this to be in the units of the data."""
        return 1.0 if self.data is None else self.data.get("scale", 1.0)

    @property
    def standardised(self) -> DataScale | None:
        """How the data was standardised, or None."""
        values = None if self.data is None else self.data.get("standardised")
        if values is None:
            return None
        if not isinstance(values, dict) or values.keys() != {"mean", "std"}:
            raise ValueError(f"standardised: expected mean and std, got {values!r}")
        found = DataScale(**values)
        if len(found.mean) != self.shape[0]:
            raise ValueError(
                f"standardised: expected {self.shape[0]} numbers each, got {len(found.mean)}"
            )
        return found

    @property
    def data_scale(self) -> DataScale | None:
        """The standardisation, or a factor of the data as one; None for neither."""
        if self.standardised is not None or self.scale == 1.0:
            return self.standardised
        entries = self.shape[0]
        return DataScale((0.0,) * entries, (1.0 / self.scale,) * entries)

    def restore(self, rows: Tensor) -> Tensor:
        """Rows of the network, (n, *shape), in the units of the data."""
        standardised = self.standardised
        return rows / self.scale if standardised is None else standardised.restore(rows)

    def scaled(self, rows: Tensor) -> Tensor:
        """The inverse: rows in the units of the data as the network has them."""
        standardised = self.standardised
        return rows * self.scale if standardised is None else standardised.standardise(rows)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RunConfig:
        """The inverse of `dataclasses.asdict`; ValueError for unknown or missing keys."""
        known = [f.name for f in fields(cls)]
        unknown = sorted(values.keys() - known)
        missing = sorted(set(known) - values.keys() - {"null"})
        if unknown or missing:
            what = f"unknown {', '.join(unknown)}" if unknown else f"no {', '.join(missing)}"
            raise ValueError(f"{what}; expected {', '.join(known)}")
        return cls(**values)


def make_folder(folder: PathLike) -> Path:
    """Make a folder where it does not exist; returns it. ValueError for a path that is a file."""
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise ValueError(f"{path}: expected a folder, found a file") from error
    return path


def save_config(folder: PathLike, config: RunConfig) -> Path:
    """Write `config.json`, making the folder where it does not exist; returns the folder."""
    path = make_folder(folder)
    write_json(path / CONFIG, asdict(config))
    return path


def save_run(
    folder: PathLike, model: nn.Module, config: RunConfig, metrics: dict[str, Any] | None = None
) -> Path:
    """Write a whole run folder; returns its path.

    model: the network to sample from (averaged weights), of the layout that `config.model` says.
    metrics: plain numbers and texts for `metrics.json`; None writes no such file.

    Raises ValueError for weights or metrics that are not finite and for a path that is a file.
    """
    # Everything that can be refused is refused before the first file is written.
    weights = dict(model.state_dict())
    _check_finite(weights, "model")
    path = save_config(folder, config)
    write_tensors(path / MODEL, weights)
    if metrics is not None:
        write_json(path / METRICS, metrics)
    return path


def remove_plans(folder: PathLike) -> None:
    """Remove the plans of a run folder, for they are fitted to the network in it."""
    plans = member(folder, PLANS)
    for path in plans.glob("*.json"):
        path.unlink()
    if plans.is_dir() and not any(plans.iterdir()):
        plans.rmdir()


def load_config(folder: PathLike) -> RunConfig:
    """Read `config.json` of a run folder; ValueError saying what is wrong with it."""
    path = Path(folder)
    if not path.is_dir():
        found = "a file" if path.exists() else "nothing"
        raise ValueError(f"{path}: expected a run folder, found {found}")
    try:
        return RunConfig.from_dict(read_json(member(path, CONFIG)))
    except (ValueError, TypeError) as error:
        raise located(path / CONFIG, error) from error


def load_run(
    folder: PathLike, net: nn.Module | None = None
) -> tuple[nn.Module, LinearPhaseSDE, RunConfig]:
    """Read a run folder: the network in evaluation mode on the CPU, the process, the config.

    net: the network to be filled with the weights, of a class of one's own; None builds it.

    Raises ValueError, in one line that names the file, for a missing, unreadable or cut file,
    unknown keys or kinds, weights that do not fit or are not finite, and an unfinished training.
    """
    path = Path(folder)
    config = load_config(path)
    try:
        sde = sde_from_config(config.sde)
        sketch = _sketch(config) if net is None else net
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise located(path / CONFIG, error) from error
    if not 0 < config.t_min < sde.T:
        raise ValueError(f"{path / CONFIG}: expected t_min in (0, T = {sde.T}), got {config.t_min}")
    if not (path / MODEL).exists() and (path / CHECKPOINT).exists():
        raise ValueError(
            f"{path}: the training is unfinished, it has no {MODEL} yet: go on with "
            f"cldfast train --resume --out {path}"
        )
    weights, _ = read_tensors(member(path, MODEL), like=sketch.state_dict())
    _check_finite(weights, str(path / MODEL))
    net = build_model(config.model) if net is None else net
    net.load_state_dict(weights)
    remember_training(net, config.form)
    return net.eval(), sde, config


def _sketch(config: RunConfig) -> nn.Module:
    """The network without memory: a description may ask for any amount, as the file may not."""
    if config.model.get("kind") == OWN:
        raise ValueError(
            f"the network is of a class of its own, {config.model.get('class')!r}: pass such a "
            "network as net="
        )
    with torch.device("meta"):
        sketch = build_model(config.model)
    _check_sizes(sketch, config)
    return sketch


def _check_sizes(net: MLPScore | UNetScore, config: RunConfig) -> None:
    """ValueError for a network that takes or returns other planes than the config says."""
    form = data_form(config.form)
    seen = 1 if form is not None and form.sees_y else 2
    channels, *rest = config.shape
    net.check(torch.empty(1, seen * channels, *rest, device="meta"))
    made, returned = output_planes(config.form) * channels, len(net.last.bias)
    if made != returned:
        raise ValueError(f"model: expected {made} outputs for this shape, got {returned}")


def _check_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise ValueError(f"{where}: the weights {name!r} are not finite")
