"""The tables of docs/solvers.md, made from the committed results of the studies.

python benchmarks/solver_docs.py
"""

from __future__ import annotations

import csv
from pathlib import Path

from output import RESULTS

from cldfast.bench.tables import table, with_table

DOCUMENT = RESULTS.parents[1] / "docs" / "solvers.md"

# Columns of the table of exact scores, and those of the learned ones.
BUDGETS = (8, 10, 12, 15, 20, 30, 50, 100, 200, 500, 1000)
SHORT = (20, 50, 1000)
# Above this a ratio or an error is only said to be large.
LARGE = 100.0

Rows = list[dict[str, str]]


def read(name: str, results: Path = RESULTS) -> Rows:
    """Rows of a result file."""
    with (results / f"{name}.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def number(value: float) -> str:
    """Two digits after the point, or that it is large."""
    return f"> {LARGE:.0f}" if not value <= LARGE else f"{value:.2f}"


def labels(rows: Rows) -> list[str]:
    """The solvers in order, without the floor."""
    return [name for name in dict.fromkeys(r["solver"] for r in rows) if name != "floor"]


def best(rows: Rows) -> str:
    """For each budget the solvers with the least distance and the least error inside the modes.

    Up to 50 evaluations: with more, most are at the floor, and chance would choose.
    """
    lines = []
    for budget in (n for n in BUDGETS if n <= 50):
        own = [r for r in rows if r["budget"] == str(budget)]
        if not own:
            continue
        near = min(own, key=lambda r: float(r["sliced_w2"]))
        # Chance alone makes solvers that are all at the floor differ: what counts then is finer.
        level = [r for r in own if float(r["over_floor"]) <= max(float(near["over_floor"]), 1.05)]
        fine = min(level, key=lambda r: float(r["cov_error"]))
        base = next((r for r in own if r["solver"] == "em, linear"), None)
        lines.append(
            [
                str(budget),
                f"{fine['solver']}: {number(float(fine['over_floor']))}, "
                f"{number(float(fine['cov_error']))}",
                f"{near['solver']}: {number(float(near['over_floor']))}, "
                f"{number(float(near['cov_error']))}",
                "-"
                if base is None
                else f"{number(float(base['over_floor']))}, {number(float(base['cov_error']))}",
            ]
        )
    header = ["evaluations", "to use", "least sliced W2", "`em`, linear grid"]
    return table(header, lines)


def exact(rows: Rows, key: str) -> str:
    """Every solver against every budget."""
    lines = []
    for label in labels(rows):
        cells = {r["budget"]: number(float(r[key])) for r in rows if r["solver"] == label}
        lines.append([label, *(cells.get(str(budget), "-") for budget in BUDGETS)])
    floor = next(r for r in rows if r["solver"] == "floor")
    lines.append(["two exact samples", *(number(float(floor[key])) for _ in BUDGETS)])
    return table(["solver", *map(str, BUDGETS)], lines)


def spread(row: dict[str, str]) -> str:
    """Mean and spread over seeds."""
    mean, sd = float(row["sliced_w2"]), float(row["sliced_w2_sd"])
    return f"{mean:.4f} ({sd:.4f}; {row['seeds']})" if mean <= LARGE else f"> {LARGE:.0f}"


def ratio(row: dict[str, str]) -> str:
    """Mean, spread and number of seeds, and the ratio to the baseline over common seeds."""
    if not row["over_baseline"]:
        return spread(row)
    return f"{spread(row)}, x {float(row['over_baseline']):.3f}"


def learned(rows: Rows, problem: str) -> str:
    """Every solver against some budgets, with learned scores."""
    own = [r for r in rows if r["problem"] == problem]
    lines = []
    for label in labels(own):
        cells = {r["evaluations"]: ratio(r) for r in own if r["solver"] == label}
        lines.append([label, *(cells.get(str(budget), "-") for budget in SHORT)])
    floor = next(r for r in own if r["solver"] == "floor")
    lines.append(["floor", *(spread(floor) for _ in SHORT)])
    return table([problem, *map(str, SHORT)], lines)


def position(rows: Rows) -> str:
    """The two networks side by side."""
    networks = [n for n in dict.fromkeys(r["network"] for r in rows) if n != "exact samples"]
    lines = []
    for label in labels(rows):
        for evaluations in dict.fromkeys(r["evaluations"] for r in rows[1:]):
            found = [
                next(
                    r for r in rows
                    if (r["network"], r["solver"], r["evaluations"]) == (n, label, evaluations)
                )
                for n in networks
            ]  # fmt: skip
            lines.append([f"{label}, {evaluations}", *map(spread, found)])
    first = [next(r for r in rows if r["network"] == n) for n in networks]
    lines.append(["training, ms a step", *(f"{float(r['train_step_ms']):.1f}" for r in first)])
    lines.append(["two exact samples", *(spread(rows[0]) for _ in networks)])
    return table(["solver, evaluations", *networks], lines)


def speed(rows: Rows) -> str:
    """Seconds of whole runs, and how many times longer the baseline takes."""
    lines = [
        [
            r["problem"],
            r["solver"],
            r["evaluations"],
            f"{float(r['seconds']):.3g}",
            f"{float(r['times_faster']):.0f}",
        ]
        for r in rows
    ]
    return table(["problem", "solver", "evaluations", "s", "times faster"], lines)


def one_network(rows: Rows) -> str:
    """A row for each data set, kind of solver and process, a column for each number of calls."""
    counts = list(dict.fromkeys(row["evaluations"] for row in rows))
    lines: dict[tuple[str, ...], list[str]] = {}
    for key in dict.fromkeys((row["data"], row["kind"], row["process"]) for row in rows):
        own = [row for row in rows if (row["data"], row["kind"], row["process"]) == key]
        for count in counts:
            found = [float(row["sliced_w2"]) for row in own if row["evaluations"] == count]
            lines.setdefault(key, []).append(f"{sum(found) / len(found):.4f}")
    return table(
        ["data", "kind", "process", *counts], [[*key, *cells] for key, cells in lines.items()]
    )


def sections(results: Path = RESULTS) -> dict[str, str]:
    """Marker -> table."""
    study, nets = read("solver_study", results), read("learned_study", results)
    return {
        "best": best(study),
        "sliced_w2": exact(study, "over_floor"),
        "cov_error": exact(study, "cov_error"),
        "weight_error": exact(study, "weight_error"),
        "funnel": learned(nets, "funnel"),
        "digits": learned(nets, "digits"),
        "speed": speed(read("learned_speed", results)),
        "position": position(read("position_noise_study", results)),
        "one_network": one_network(read("one_network_study", results)),
    }


def filled(text: str, tables: dict[str, str]) -> str:
    """The document with each table between its markers. Raises ValueError where one is missing."""
    for name, content in tables.items():
        text = with_table(text, content, name)
    return text


def main() -> None:
    """Rewrite the document."""
    DOCUMENT.write_text(filled(DOCUMENT.read_text(encoding="utf-8"), sections()), encoding="utf-8")


if __name__ == "__main__":
    main()
