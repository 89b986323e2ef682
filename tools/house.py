"""The import graph of the package against its rules: `python tools/house.py` prints and checks it.

A *room* is a folder of the package, or a file at its top. A room stands one floor above the highest
room that it imports. Every import counts, also one inside a function or under TYPE_CHECKING.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "cldfast"
EVERYTHING = "*"

# What each room may import of the others. `docs/architecture.md` draws the same.
RULES = {
    "caller": "",
    "network": "",
    "files": "",
    "process": "",
    "planner": "caller process",
    "kernels": "caller",
    "training": "caller network files process planner kernels",
    "sampling": "caller network process planner kernels training",
    "classical": "caller network process planner kernels",
    "lab": "caller network files process planner kernels sampling training classical",
    "compat": "caller network files process planner kernels sampling training",
    "info": "kernels",
    "bench": "caller network files process planner kernels sampling training classical lab compat "
    "info",
    "app": "caller network files process planner kernels sampling training classical lab compat "
    "info bench",
    "__init__": "kernels process planner sampling training info",
    "__main__": "app",
}
# The planner's half knows no tensors, so that a plan can be made and checked without PyTorch.
WITHOUT_TORCH = {"process", "planner"}
# Only these know a backend; everybody else asks `cldfast.kernels`.
NATIVE = {"_core", "_cuda"}
IMPORTERS_OF_NATIVE = {"kernels.native"}


def modules() -> dict[str, Path]:
    """Dotted name below the package -> file; a package is named like its folder."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = list(path.relative_to(PACKAGE).with_suffix("").parts)
        if parts[-1] == "__init__" and len(parts) > 1:
            parts.pop()
        found[".".join(parts)] = path
    return found


def room(module: str) -> str:
    """`planner.solvers.em` is in the room `planner`."""
    return module.split(".")[0]


def imports(source: str) -> Iterator[str]:
    """Absolute names of all that a source imports; `from cldfast import x` gives `cldfast.x`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise ValueError(f"line {node.lineno}: imports are absolute here")
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_imports(source: str, known: set[str]) -> set[str]:
    """The modules of the package that a source imports, each by its longest known name."""
    names = {name.removeprefix("cldfast.") for name in imports(source) if "cldfast." in name}
    return {name for name in names if name in known or name in NATIVE}


def violations(module: str, source: str, known: set[str] | None = None) -> list[str]:
    """What a module imports against the rules, in words."""
    known = set(modules()) if known is None else known
    here = room(module)
    if here not in RULES:
        return [f"{here} has no rule: add it to RULES in tools/house.py"]
    allowed = set(RULES[here].split()) | {here}
    names = set(imports(source))
    found = []
    for name in sorted(own_imports(source, known)):
        if name in NATIVE:
            if module not in IMPORTERS_OF_NATIVE:
                found.append(f"{module} may not import cldfast.{name}: ask cldfast.kernels")
        elif room(name) not in allowed:
            found.append(f"{module} may not import cldfast.{name}")
        elif here != "kernels" and name.startswith("kernels.backends."):
            found.append(f"{module} may not go past cldfast.kernels to a backend")
    if here in WITHOUT_TORCH and any(name.split(".")[0] == "torch" for name in names):
        found.append(f"{module} is {here}: it may not import torch")
    if here not in ("__init__", "__main__") and "cldfast" in names - {"cldfast.__version__"}:
        taken = {name.removeprefix("cldfast.") for name in names if name.startswith("cldfast.")}
        if not {name for name in taken if room(name) in RULES or room(name) in NATIVE}:
            found.append(f"{module} may not import the package as a whole")
    return found


def graph() -> dict[str, set[str]]:
    """Module -> modules of the package that it imports, those that hold it left out."""
    files = modules()
    found: dict[str, set[str]] = {}
    for module, path in files.items():
        taken = own_imports(path.read_text(encoding="utf-8"), set(files))
        found[module] = {n for n in taken - NATIVE if not f"{module}.".startswith(f"{n}.")}
    return found


def circle(edges: dict[str, set[str]]) -> list[str]:
    """The modules of one circle of imports, or an empty list."""
    state: dict[str, int] = {}
    path: list[str] = []

    def visit(node: str) -> list[str]:
        state[node] = 1
        path.append(node)
        for other in sorted(edges.get(node, ())):
            if state.get(other) == 1:
                return path[path.index(other) :]
            if other not in state and (found := visit(other)):
                return found
        path.pop()
        state[node] = 2
        return []

    return next(
        (found for node in sorted(edges) if node not in state and (found := visit(node))), []
    )


def floors(edges: dict[str, set[str]]) -> dict[str, int]:
    """The floor of each node of a graph without circles, 1 for one that imports nothing."""
    found: dict[str, int] = {}

    def floor(node: str) -> int:
        if node not in found:
            found[node] = 1 + max((floor(other) for other in edges.get(node, ())), default=0)
        return found[node]

    for node in edges:
        floor(node)
    return found


def rooms(edges: dict[str, set[str]]) -> dict[str, set[str]]:
    """The same graph with rooms for modules."""
    found: dict[str, set[str]] = {}
    for module, others in edges.items():
        found.setdefault(room(module), set()).update(
            room(other) for other in others if room(other) != room(module)
        )
    return found


def main() -> int:
    edges = graph()
    house = rooms(edges)
    wrong = [
        line
        for module, path in modules().items()
        for line in violations(module, path.read_text(encoding="utf-8"))
    ]
    for what, found in (("modules", circle(edges)), ("rooms", circle(house))):
        if found:
            wrong.append(f"circle of {what}: {' -> '.join([*found, found[0]])}")
    if not wrong:
        levels = floors(house)
        for level in range(max(levels.values()), 0, -1):
            names = sorted(name for name in levels if levels[name] == level)
            print(f"floor {level}: " + "; ".join(_described(n, house) for n in names))
        inside = {top: _depth(top, edges) for top in house}
        deepest = max(inside, key=lambda name: inside[name])
        print(
            f"{max(levels.values())} floors of rooms; the deepest room is {deepest}, with "
            f"{inside[deepest]} floors of files inside; no circle, no import against the rules"
        )
    print("\n".join(wrong), file=sys.stderr)
    return int(bool(wrong))


def _described(name: str, house: dict[str, set[str]]) -> str:
    return f"{name} <- {' '.join(sorted(house[name]))}" if house[name] else name


def _depth(top: str, edges: dict[str, set[str]]) -> int:
    own = {
        module: {other for other in others if room(other) == top}
        for module, others in edges.items()
        if room(module) == top
    }
    return 0 if circle(own) else max(floors(own).values(), default=0)


if __name__ == "__main__":
    sys.exit(main())
