"""Plans as JSON: plain numbers, read with checks before anything is made of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np

from cldfast.files import PathLike, read_json
from cldfast.planner.parameterization import form_name, named_form
from cldfast.planner.stage import Stage
from cldfast.process.path import Path, Process
from cldfast.process.sde import sde_from_config

FORMAT = "cldfast plan"
VERSION = 1
# The name of a solver is shown to its user.
_MOST_CHARACTERS = 100
_KEYS = {
    "format", "version", "sde", "solver", "order", "parameterization", "sigma_data",
    "guidance_term", "grid", "stages", "figures",
}  # fmt: skip
_NUMBERS = ("t", "t_next", "argument")
_BLOCKS = ("P", "L", "B", "seen")
_LISTS = ("E", "H", "A")


def plan_config(fields: Mapping[str, Any], figures: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a plan, by name, as plain data, with figures about it.

    Raises ValueError for a process that has no plain description.
    """
    if isinstance(fields["sde"], Path):
        raise ValueError(f"a plan of {fields['sde']!r} cannot be written: no plain data say it")
    name, sigma_data = form_name(fields["parameterization"])
    scale = fields["guidance_scale"]
    guided = {} if scale is None else {"guidance_scale": float(scale)}
    return guided | {
        "format": FORMAT, "version": VERSION, "sde": fields["sde"].config(),
        "solver": fields["solver"], "order": fields["order"], "parameterization": name,
        "sigma_data": sigma_data, "guidance_term": fields["guidance_term"],
        "grid": np.asarray(fields["grid"]).tolist(),
        "stages": [_plain(stage) for stage in fields["stages"]], "figures": dict(figures),
    }  # fmt: skip


def read_config(path: PathLike) -> dict[str, Any]:
    """The plain data in a file; ValueError, in one line that names the file, for none.

    The limit of a file is enough: 1,000 stages that each read 32 planes have 10 MB of digits.
    """
    return read_json(path)


def same_process(a: Process, b: Process) -> bool:
    """Whether two processes are the same numbers and the same rate."""
    if isinstance(a, Path) or isinstance(b, Path):
        return a is b or (type(a) is type(b) and vars(a) == vars(b))
    matrices = np.array_equal(a.A, b.A) and np.array_equal(a.D, b.D)
    return matrices and (a.v0_var, a.T, a.schedule) == (b.v0_var, b.T, b.schedule)


def _plain(stage: Stage) -> dict[str, Any]:
    values: dict[str, Any] = {name: getattr(stage, name) for name in _NUMBERS}
    for name in _BLOCKS:
        block = getattr(stage, name)
        values[name] = None if block is None else np.asarray(block, dtype=np.float64).tolist()
    for name in _LISTS:
        blocks = getattr(stage, name)
        values[name] = None if blocks is None else [np.asarray(b, float).tolist() for b in blocks]
    return values


def plan_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `plan_config`, without the figures; ValueError for what is no plan."""
    if values.get("format") != FORMAT:
        raise ValueError(f"expected format {FORMAT!r}, got {values.get('format')!r}")
    if values.get("version") != VERSION:
        raise ValueError(f"expected version {VERSION}, got {values.get('version')!r}")
    if values.keys() - {"guidance_scale"} != _KEYS:
        wrong = sorted((values.keys() - {"guidance_scale"}) ^ _KEYS)
        raise ValueError(f"unknown or missing {', '.join(wrong)}")
    for name, kind in (
        ("sde", dict), ("solver", str), ("order", int), ("parameterization", str),
        ("guidance_term", bool), ("stages", list), ("figures", dict),
    ):  # fmt: skip
        if type(values[name]) is not kind:
            raise ValueError(f"{name}: expected {kind.__name__}, got {values[name]!r:.40}")
    if not values["solver"].isprintable() or len(values["solver"]) > _MOST_CHARACTERS:
        raise ValueError(f"solver: expected a name, got {values['solver']!r:.40}")
    fields = {k: values[k] for k in ("solver", "order", "guidance_term")}
    if (scale := values.get("guidance_scale")) is not None:
        fields["guidance_scale"] = float(_array("guidance_scale", scale, 0))
    sigma_data = float(_array("sigma_data", values["sigma_data"], 0))
    fields["parameterization"] = named_form(values["parameterization"], sigma_data)
    fields["sde"] = sde_from_config(values["sde"])
    fields["grid"] = grid = _array("grid", values["grid"], 1)
    if len(grid) < 2 or not np.all(np.diff(grid) < 0.0):
        raise ValueError("grid: expected at least 2 descending times")
    fields["stages"] = tuple(_stage(k, stage) for k, stage in enumerate(values["stages"]))
    return fields


def _stage(index: int, values: object) -> Stage:
    names = {*_NUMBERS, *_BLOCKS, *_LISTS}
    if not isinstance(values, dict) or values.keys() != names:
        raise ValueError(f"stage {index}: expected an object with {', '.join(sorted(names))}")
    fields: dict[str, Any] = {}
    for name in _NUMBERS:
        none = values[name] is None and name != "t_next"
        number = None if none else float(_array(f"stage {index}: {name}", values[name], 0))
        fields[name] = number
    for name in _BLOCKS:
        none = values[name] is None and name in ("B", "seen")
        fields[name] = None if none else _array(f"stage {index}: {name}", values[name], 2)
    for name in _LISTS:
        blocks = values[name]
        if not isinstance(blocks, list) and not (name == "A" and blocks is None):
            raise ValueError(f"stage {index}: {name}: expected a list of matrices")
        if blocks is not None:
            blocks = tuple(_array(f"stage {index}: {name}", block, 2) for block in blocks)
        fields[name] = blocks
    return Stage(**fields)


def _array(name: str, value: object, dimensions: int) -> np.ndarray:
    """Finite numbers in so many dimensions, float64."""

    def numbers(part: object, depth: int) -> bool:
        if depth == 0:
            return type(part) in (int, float) and math.isfinite(part)  # type: ignore[arg-type]
        return isinstance(part, list) and all(numbers(entry, depth - 1) for entry in part)

    if numbers(value, dimensions):
        with suppress(ValueError):  # rows of different lengths
            return np.array(value, dtype=np.float64)
    raise ValueError(f"{name}: expected finite numbers in {dimensions} dimensions")
