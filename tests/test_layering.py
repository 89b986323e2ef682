"""Who may import whom: the two halves of the library, and where they meet.

    linalg2, schedules <- sde <- {parameterization, law, plan, ...} <- solvers       the planner
    _core <- backends <- ops,  philox <- reference <- ops                            the executor

The planner imports no torch, the executor no process; `sampling` and `losses` (with their parts
`graphs`, `inpainting`, `loss_weights` and `times`) bring them together, and what stands above may
use both. A new module of the planner or the executor is not importable by its neighbours before it
has its line here.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import cldfast

PACKAGE = Path(cldfast.__file__).parent

PLANNER = {
    "linalg2": "",
    "schedules": "",
    "grids": "",
    "sde": "linalg2 schedules",
    "parameterization": "bridge linalg2 sde",
    "bridge": "linalg2 sde",
    "denoiser": "linalg2 parameterization sde",
    "noise_level": "linalg2 sde",
    "law": "linalg2 parameterization sde",
    "error_budget": "law parameterization sde",
    "plan": "error_budget law parameterization sde",
    "guidance": "parameterization plan sde",
    "solvers": "linalg2 schedules grids sde parameterization bridge denoiser law noise_level plan "
    "guidance solvers",
}
EXECUTOR = {
    "philox": "",
    "reference": "philox",
    "tables": "",
    "backends": "_core _cuda backends philox reference tables",
    "ops": "backends ops philox reference tables",
}
MEETING = {"sampling", "losses", "loss_weights", "inpainting", "times", "graphs"}
# What is built on both. Only the two that report on the core itself may ask for it.
ABOVE = {"__init__", "__main__", "bench", "certify", "cli", "compat", "demo", "info", "train"}
ABOVE |= {"flow_likelihood", "probability_flow"}
MAY_ASK_THE_CORE = {"bench", "info"}


def top(module: str) -> str:
    """`solvers.em` is part of `solvers`."""
    return module.split(".")[0]


def imports(source: str) -> Iterator[str]:
    """Absolute names of all modules that a source imports, anywhere but under TYPE_CHECKING.

    `from cldfast import ops` counts as `cldfast.kernels`.
    """
    tree = ast.parse(source)
    skipped = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test).endswith("TYPE_CHECKING")
        for statement in block.body
        for node in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            if node.module == "cldfast":
                yield from (f"cldfast.{alias.name}" for alias in node.names)
            else:
                yield str(node.module)


def violations(module: str, source: str) -> list[str]:
    """What a module imports against the rules, in words."""
    names = list(imports(source))
    own = {top(name.removeprefix("cldfast.")) for name in names if name.startswith("cldfast.")}
    roots = {name.split(".")[0] for name in names}
    layer = top(module)
    table = PLANNER | EXECUTOR
    found = []
    if layer in table:
        allowed = set(table[layer].split())
        found += [f"{module} may not import cldfast.{name}" for name in sorted(own - allowed)]
        if "cldfast" in names:
            found.append(f"{module} may not import the package as a whole")
    elif own & {"_core", "_cuda", "backends"} and layer not in MAY_ASK_THE_CORE:
        found.append(f"{module} may not go past cldfast.kernels to a backend")
    if layer in PLANNER and "torch" in roots:
        found.append(f"{module} is planner: it may not import torch")
    halves = own & PLANNER.keys() and own & EXECUTOR.keys()
    if halves and layer not in table.keys() | MEETING | ABOVE:
        found.append(f"{module} imports from both halves; they meet in sampling and losses")
    return found


def modules() -> dict[str, Path]:
    """Dotted name below the package -> file; `solvers/__init__.py` is `solvers`."""
    result = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = list(path.relative_to(PACKAGE).with_suffix("").parts)
        if parts[-1] == "__init__" and len(parts) > 1:
            parts.pop()
        result[".".join(parts)] = path
    return result


@pytest.mark.parametrize("module", modules())
def test_layers(module: str) -> None:
    assert violations(module, modules()[module].read_text(encoding="utf-8")) == []


def test_the_table_is_of_this_package() -> None:
    present = {top(module) for module in modules()}
    assert PLANNER.keys() | EXECUTOR.keys() | MEETING <= present


@pytest.mark.parametrize(
    ("module", "source", "message"),
    [
        (
            "linalg2",
            "from cldfast.process.sde import CLD",
            "linalg2 may not import cldfast.process.sde",
        ),
        ("sde", "import torch", "sde is planner: it may not import torch"),
        ("law", "def f():\n    import torch.nn as nn", "law is planner: it may not import torch"),
        ("plan", "from cldfast import solvers", "plan may not import cldfast.planner.solvers"),
        ("plan", "import cldfast", "plan may not import the package as a whole"),
        (
            "solvers.em",
            "from cldfast.kernels import stage",
            "solvers.em may not import cldfast.kernels",
        ),
        ("solvers.em", "from torch import Tensor", "solvers.em is planner"),
        ("ops", "from cldfast.planner.plan import Plan", "ops may not import cldfast.planner.plan"),
        (
            "reference",
            "from cldfast.kernels.backends import cpu",
            "reference may not import cldfast.back",
        ),
        (
            "backends.cpu",
            "import cldfast.process.sde",
            "backends.cpu may not import cldfast.process.sde",
        ),
        (
            "sampling",
            "from cldfast.kernels.backends.cpu.stage import stage",
            "may not go past cldfast.kernels",
        ),
        ("models", "from cldfast import _core", "models may not go past cldfast.kernels"),
        ("models", "from cldfast import ops, sde", "models imports from both halves"),
    ],
)
def test_planted_imports_are_caught(module: str, source: str, message: str) -> None:
    found = violations(module, source)
    assert len(found) == 1 and message in found[0]


def test_what_is_allowed() -> None:
    hints = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from cldfast.planner.plan import Plan"
    assert violations("law", hints) == []
    assert violations("solvers.em", "from cldfast.planner.plan import Stage\nimport numpy") == []
    assert violations("sampling", "from cldfast import ops, plan\nimport torch") == []
