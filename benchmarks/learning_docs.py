"""The tables of docs/learning.md, made from the committed results of the learning studies.

python benchmarks/learning_docs.py
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable

from output import RESULTS
from solver_docs import Rows, filled, read

from cldfast.bench.tables import table

DOCUMENT = RESULTS.parents[1] / "docs" / "learning.md"
NAMES = {"gaussians25": "25 Gaussians", "funnel": "Funnel, d = 20", "digits": "digits"}
# The recipe that the others are held against.
BASE = "mixed, uniform times"
SOLVER = "multistep 3, 20"


def values(rows: Rows, **chosen: str) -> dict[str, float]:
    """The distances of the rows that are chosen, by training; the least over their samplers."""
    found: dict[str, float] = {}
    for row in rows:
        if all(row[name] == value for name, value in chosen.items()):
            training, w2 = row["training"], float(row["sliced_w2"])
            found[training] = min(w2, found.get(training, w2))
    return found


def spread(found: Iterable[float]) -> str:
    """Mean and standard deviation over trainings, or a dash."""
    numbers = list(found)
    if not numbers:
        return "-"
    deviation = f" ({statistics.stdev(numbers):.4f})" if len(numbers) > 1 else ""
    return f"{statistics.mean(numbers):.4f}{deviation}"


def position(rows: Rows) -> str:
    """Position noise: a row for each data set and x_noise, a column for each recipe."""
    own = [row for row in rows if float(row["x_noise"]) > 0.0]
    recipes = list(dict.fromkeys(row["recipe"] for row in own))
    lines = []
    for data in dict.fromkeys(row["data"] for row in own):
        for x_noise in dict.fromkeys(row["x_noise"] for row in own if row["data"] == data):
            cells = [
                spread(values(own, data=data, x_noise=x_noise, recipe=r, sampler=SOLVER).values())
                for r in recipes
            ]
            floor = next(row["floor"] for row in own if row["data"] == data)
            lines.append([NAMES[data], x_noise, *cells, f"{float(floor):.4f}"])
    return table(["data", "x_noise", *recipes, "floor"], lines)


def preconditioning(rows: Rows) -> str:
    """Without position noise: each recipe by data set, and what is left of the excess of `BASE`."""
    own = [row for row in rows if float(row["x_noise"]) == 0.0]
    data_sets = list(dict.fromkeys(row["data"] for row in own))
    lines = []
    for recipe in dict.fromkeys(row["recipe"] for row in own):
        cells: list[str] = []
        for data in data_sets:
            floor = next(float(row["floor"]) for row in own if row["data"] == data)
            for sampler in ({"sampler": SOLVER}, {}):
                found = values(own, data=data, recipe=recipe, **sampler)
                base = values(own, data=data, recipe=BASE, **sampler)
                cells.append(spread(found.values()))
                if found and base:
                    excess = statistics.mean(found.values()) - floor
                    share = excess / (statistics.mean(base.values()) - floor)
                    cells[-1] += f", {share:.2f}"
        lines.append([recipe, *cells])
    heads = [f"{NAMES[data]}, {which}" for data in data_sets for which in ("ODE", "best")]
    return table(["recipe", *heads], lines)


def sections() -> dict[str, str]:
    """The tables by the names of their markers."""
    rows = read("learning_study")
    return {
        "position": position(rows),
        "preconditioning": preconditioning(rows),
    }


def main() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    DOCUMENT.write_text(filled(text, sections()), encoding="utf-8")


if __name__ == "__main__":
    main()
