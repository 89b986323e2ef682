"""The import graph of the package against its rules: `python tools/house.py` prints and checks it.

A *room* is a folder of the package, or a file at its top. A room stands one floor above the highest
room that it imports. Every import counts, also one inside a function or under TYPE_CHECKING.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "cldfast"

# What each room may import of the others. README.md and docs/architecture.md draw the same.
BASE = "network files extras version caller"  # files that import nothing of ours
CORE = f"{BASE} conditions process planner kernels"
MIDDLE = f"{CORE} sampling training classical"
RULES = dict.fromkeys(BASE.split(), "") | {
    "conditions": "network",
    "process": "caller",
    "planner": "caller files process",
    "kernels": BASE,
    "training": CORE,
    "sampling": f"{CORE} training",
    "classical": f"{CORE} training sampling",
    "fitting": MIDDLE,
    "lab": MIDDLE,
    "compat": MIDDLE,
    "info": f"{BASE} kernels",
    "model": f"{MIDDLE} fitting lab compat info",
    "bench": f"{MIDDLE} lab compat info",
    "studies": f"{MIDDLE} fitting lab info",
    "app": f"{MIDDLE} fitting lab compat info model bench studies",
    "__init__": f"{MIDDLE} fitting lab compat info model",
    "__main__": "app",
}
# Floors of rooms in the house, and of files in one room.
MOST_FLOORS = 10
# The planner's half knows no tensors, so that a plan can be made and checked without PyTorch.
WITHOUT_TORCH = {"process", "planner"}
# The compiled modules. Only one module knows them; all others ask `cldfast.kernels`.
NATIVE = {"_core", "_cuda"}
IMPORTERS_OF_NATIVE = {"kernels.native"}

Graph = dict[str, set[str]]


def modules() -> dict[str, Path]:
    """Dotted name below the package -> file; a package is named like its folder."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = path
    return dict(sorted(found.items()))


def room(module: str) -> str:
    """`planner.solvers.em` is in the room `planner`."""
    return module.split(".")[0]


def imports(source: str) -> set[str]:
    """Dotted names that a source imports: `a.b` for `from a import b`, `.a.b` for `from .a`."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            found |= {f"{base}.{alias.name}" for alias in node.names}
    return found


def own_imports(names: Iterable[str], known: set[str]) -> set[str]:
    """Modules of the package among imported names; "" stands for the package as a whole."""
    found = set()
    for name in names:
        top, *parts = name.split(".")
        if top == PACKAGE.name:
            while parts and ".".join(parts) not in known | NATIVE:
                parts.pop()
            found.add(".".join(parts))
    return found


def violations(module: str, source: str, known: set[str] | None = None) -> list[str]:
    """What a module imports against the rules, in words."""
    here, names = room(module), imports(source)
    if here not in RULES:
        return [f"{here} has no rule: add it to RULES in tools/house.py"]
    found = []
    for name in sorted(own_imports(names, set(modules()) if known is None else known)):
        if not name:
            found.append(f"{module} may not import the package as a whole")
        elif name in NATIVE:
            if module not in IMPORTERS_OF_NATIVE:
                found.append(f"{module} may not import cldfast.{name}: ask cldfast.kernels")
        elif room(name) not in {here, *RULES[here].split()}:
            found.append(f"{module} may not import cldfast.{name}")
        elif here != "kernels" and name.startswith("kernels.backends"):
            found.append(f"{module} may not go past cldfast.kernels to a backend")
    roots = {name.split(".")[0] for name in names}
    if here in WITHOUT_TORCH and "torch" in roots:
        found.append(f"{module} may not import torch: {here} knows no tensors")
    if "" in roots:
        found.append(f"{module} may not use relative imports")
    return found


def graph() -> Graph:
    """Module -> modules of the package that it imports, the packages around it left out."""
    files = modules()
    found = {}
    for module, path in files.items():
        taken = own_imports(imports(path.read_text(encoding="utf-8")), set(files)) - NATIVE - {""}
        found[module] = {name for name in taken if not f"{module}.".startswith(f"{name}.")}
    return found


def rooms(edges: Graph) -> Graph:
    """The same graph with rooms for modules."""
    found: Graph = {}
    for module, others in edges.items():
        found.setdefault(room(module), set()).update({*map(room, others)} - {room(module)})
    return found


def inside(top: str, edges: Graph) -> Graph:
    """The part of the graph of modules that lies in one room."""
    own = {module for module in edges if room(module) == top}
    return {module: edges[module] & own for module in own}


def circle(edges: Graph) -> list[str]:
    """The nodes of one circle of imports, the first one again at the end, or an empty list."""
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def floors(edges: Graph) -> dict[str, int]:
    """The floor of each node of a graph without circles, 1 for one that imports nothing."""
    found: dict[str, int] = {}
    for node in TopologicalSorter(edges).static_order():
        found[node] = 1 + max((found[other] for other in edges.get(node, ())), default=0)
    return found


def heights(edges: Graph) -> dict[str, int]:
    """How many floors the house of rooms has, under the name "", and each room of files."""
    parts = {"": rooms(edges)} | {top: inside(top, edges) for top in rooms(edges)}
    return {name: max(floors(part).values()) for name, part in parts.items()}


def faults() -> list[str]:
    """All that is against the rules in this package, in words."""
    edges = graph()
    found = [
        line
        for module, path in modules().items()
        for line in violations(module, path.read_text(encoding="utf-8"))
    ]
    circles = {"modules": circle(edges), "rooms": circle(rooms(edges))}
    found += [f"circle of {what}: {' -> '.join(path)}" for what, path in circles.items() if path]
    if not any(circles.values()):
        found += [
            f"{name or 'the house'} has {height} floors, more than {MOST_FLOORS}"
            for name, height in heights(edges).items()
            if height > MOST_FLOORS
        ]
    return found


def main() -> int:
    """Print the floors, or what is wrong; 0 where nothing is."""
    if wrong := faults():
        print("\n".join(wrong), file=sys.stderr)
        return 1
    edges = graph()
    house, height = rooms(edges), heights(edges)
    levels = floors(house)
    for level in range(height.pop(""), 0, -1):
        names = sorted(name for name in levels if levels[name] == level)
        lines = (" <- ".join(filter(None, (n, " ".join(sorted(house[n]))))) for n in names)
        print(f"floor {level}: " + "; ".join(lines))
    deepest = max(height, key=lambda name: height[name])
    print(
        f"{max(levels.values())} floors of rooms; the deepest room is {deepest}, with "
        f"{height[deepest]} floors of files; no circle, no import against the rules"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
