"""Who may import whom: the package against the rules of `tools/house.py`, and the rules themselves."""

from __future__ import annotations

import house
import pytest

MODULES = house.modules()
EDGES = house.graph()


@pytest.mark.parametrize("module", MODULES)
def test_every_module_obeys_the_rules(module: str) -> None:
    assert house.violations(module, MODULES[module].read_text(encoding="utf-8")) == []


def test_no_circle() -> None:
    assert house.circle(EDGES) == []
    assert house.circle(house.rooms(EDGES)) == []


def test_few_floors() -> None:
    assert max(house.heights(EDGES).values()) <= house.MOST_FLOORS == 10


def test_the_rules_are_of_this_package() -> None:
    assert house.RULES.keys() == {house.room(module) for module in MODULES}
    assert MODULES.keys() >= house.IMPORTERS_OF_NATIVE
    for name, allowed in house.RULES.items():
        assert set(allowed.split()) <= house.RULES.keys() - {name, "__init__", "__main__"}
    assert house.circle({name: set(allowed.split()) for name, allowed in house.RULES.items()}) == []


PLANTED = [
    ("process.linear_flow", "from cldfast.planner.plan import Plan", "cldfast.planner.plan"),
    ("process.sde", "from cldfast.kernels import stage", "cldfast.kernels.stage"),
    ("planner.plan", "import cldfast.sampling.run", "cldfast.sampling.run"),
    ("kernels.stage", "import cldfast.process.sde as sde", "cldfast.process.sde"),
    ("kernels.backends.cpu.stage", "from cldfast import process", "cldfast.process"),
    ("network", "from cldfast.files import PathLike", "cldfast.files"),
    ("sampling.run", "from cldfast.lab.data import Funnel", "cldfast.lab.data"),
    ("lab.data", "from cldfast.app.runs import train_run", "cldfast.app.runs"),
    ("compat.schedule", "from cldfast.lab import metrics", "cldfast.lab.metrics"),
    ("bench.measure", "from cldfast.app.cli import main", "cldfast.app.cli"),
    ("planner.law", "import torch.nn as nn", "torch: planner knows no tensors"),
    ("planner.solvers.em", "from torch import Tensor", "torch: planner knows no tensors"),
    ("sampling.run", "from cldfast.kernels.backends.cpu.stage import stage", "to a backend"),
    ("bench.cases", "import cldfast.kernels.backends", "to a backend"),
    ("lab.models", "from cldfast import _core", "cldfast._core: ask cldfast.kernels"),
    ("kernels.stage", "import cldfast._cuda", "cldfast._cuda: ask cldfast.kernels"),
    ("app.runs", "import cldfast", "the package as a whole"),
    ("app.runs", "from cldfast import CLD, files", "the package as a whole"),
    ("planner.plan", "from .law import gaussian_law", "relative imports"),
    ("planner.plan", "from .. import files", "relative imports"),
    ("attic", "import numpy", "attic has no rule"),
]
PLACES = {
    "at the top": "{}",
    "in a function": "def f():\n    {}",
    "for the type checker": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    {}",
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("module", "statement", "message"), PLANTED)
def test_planted_imports_are_caught(module: str, statement: str, message: str, place: str) -> None:
    (found,) = house.violations(module, PLACES[place].format(statement))
    assert message in found


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("planner.solvers.em", "from cldfast.planner.stage import Stage\nimport numpy"),
        ("sampling.run", "from cldfast import kernels, network\nimport torch"),
        ("kernels.native", "from cldfast import _core, _cuda"),
        ("kernels.dispatch", "from cldfast.kernels.backends import reference"),
        ("bench.results", "from cldfast.version import __version__"),
        ("__init__", "from cldfast.process.sde import CLD"),
    ],
)
def test_what_is_allowed(module: str, source: str) -> None:
    assert house.violations(module, source) == []


def test_circles_and_floors() -> None:
    tower = {"c": {"a", "b"}, "b": {"a"}, "a": set()}
    assert house.circle(tower) == [] and house.floors(tower) == {"a": 1, "b": 2, "c": 3}
    found = house.circle(tower | {"a": {"c"}})
    assert found[0] == found[-1] and set(found) <= {"a", "b", "c"}


def test_a_new_fault_ends_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(house, "violations", lambda module, source: [])
    assert house.main() == 0
    assert "no circle, no import against the rules" in capsys.readouterr().out
    monkeypatch.setattr(house, "MOST_FLOORS", 1)
    assert house.main() == 1
    assert "floors, more than 1" in capsys.readouterr().err
