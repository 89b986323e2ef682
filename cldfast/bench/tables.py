"""The tables of docs/speed.md and their picture, made from the rows of one run."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from cldfast.bench import cases
from cldfast.bench import contestants as names
from cldfast.bench.report import Results
from cldfast.bench.results import Environment, Row
from cldfast.lab import plots

# Title, contestant and operation of each column of the table of stages.
COLUMNS: tuple[tuple[str, str, str], ...] = (
    ("cldfast, noisy", names.FUSED, cases.SSCS),
    ("velocity noise", names.FUSED, cases.EM),
    ("no noise", names.FUSED, cases.NOISE_FREE),
    ("`copy_`", names.COPY_CALL, cases.COPY),
    ("`randn_like`", names.RANDN_LIKE, cases.RANDN),
    ("merged, eager", names.MERGED, cases.SSCS),
    ("published SSCS", names.PUBLISHED, cases.SSCS),
    ("+ `torch.compile`", names.COMPILED, cases.SSCS),
    ("reference", names.REFERENCE, cases.SSCS),
)


def number(value: float | None) -> str:
    """Three significant digits, plain; a dash for None."""
    if value is None:
        return "-"
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table of Markdown, the first column to the left; nothing without lines."""
    if not lines:
        return ""
    rule = ["---", *("---:" for _ in header[1:])]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, rule, *lines))


def markdown(where: Environment, rows: Sequence[Row]) -> str:
    """The speed tables from one run: stages, SIMD levels, whole runs, notes."""
    results = Results(where, rows)
    intro = (
        f"Nanoseconds per coordinate pair and stage, {results.threads} threads, {where.device}, "
        f"{where.simd}, PyTorch {where.torch}; medians of interleaved rounds"
        + (", quick sizes" if results.quick else "")
        + f", {where.date}."
    )
    parts = (_stage_table(results), _level_table(results), _run_table(results), _notes(results))
    return "\n\n".join(part for part in (intro, *parts) if part) + "\n"


def _cost(row: Row | None) -> str:
    return number(None if row is None else row.ns_per_pair)


def _stage_table(results: Results) -> str:
    lines = []
    for case in cases.CASES:
        found = [results.stage(case, contestant, op) for _, contestant, op in COLUMNS]
        present = [row for row in found if row is not None]
        if present:
            lines.append([present[0].shape, *map(_cost, found)])
    return table(["batch x shape", *(title for title, _, _ in COLUMNS)], lines)


def _level_table(results: Results) -> str:
    lines = []
    for level in reversed(results.levels):
        of_level = partial(results.stage, cases.LARGE, names.FUSED, level=level)
        found = [of_level(operation) for operation in cases.OPERATIONS]
        one = of_level(cases.SSCS, results.fewest)
        if any(row is not None for row in found):
            lines.append([level, *map(_cost, (*found, one))])
    header = ["SIMD level, largest case", "noisy", "velocity noise", "no noise"]
    return table([*header, f"noisy, {results.fewest} thread(s)"], lines)


def _run_table(results: Results) -> str:
    lines = []
    for case in cases.RUN_CASES.values():
        for contestant in (names.FUSED, names.REFERENCE, names.PUBLISHED):
            row = results.run(case.name, contestant)
            if row is None or row.integrator_seconds is None:
                continue
            about = f"{row.shape}, {row.evaluations} steps, {case.about}"
            numbers = (row.seconds, row.network_seconds, row.integrator_seconds * 1e3)
            share = f"{row.integrator_seconds / row.seconds:.1%}"
            lines.append([about, contestant, *map(number, numbers), share])
    header = ["whole sampling", "loop", "s", "network, s", "integrator, ms", "its share"]
    return table(header, lines)


def _notes(results: Results) -> str:
    """Memory of the largest case and the cost of a call, as sentences."""
    sentences = []
    contestants = (names.FUSED, names.MERGED, names.PUBLISHED, names.REFERENCE)
    found = [(name, results.stage(cases.LARGE, name, cases.SSCS)) for name in contestants]
    taken = [
        f"{name} {row.allocated_bytes / 2**20:,.0f} MiB"
        for name, row in found
        if row is not None and row.allocated_bytes is not None
    ]
    if taken:
        sentences.append(
            f"Memory taken during a noisy stage of the largest case: {', '.join(taken)}."
        )
    call, published = (
        results.stage(cases.TOY, name, cases.SSCS) for name in (names.PUBLIC_OP, names.PUBLISHED)
    )
    if call is not None and published is not None:
        sentences.append(
            f"A checked call of `cldfast.stage` on 64x2 takes {call.seconds * 1e6:.1f} us, the "
            f"published step {published.seconds * 1e6:.0f} us."
        )
    return " ".join(sentences)


def bandwidth(where: Environment, rows: Sequence[Row], path: Path) -> None:
    """Draw GB/s of a stage (each input read once, each output written once) for every case.

    path: file to write; its directory must exist. Raises ValueError where no stage was measured,
    ImportError where matplotlib is missing.
    """
    results = Results(where, rows)
    found = {case: results.stage(case, names.COPY_CALL, cases.COPY) for case in cases.CASES}
    copies = {case: row for case, row in found.items() if row is not None}
    if not copies:
        raise ValueError("rows: expected at least one stage case")
    figure = plots.new_figure(9.0, 5.2)
    axes = figure.add_subplot()
    at = np.arange(len(copies))
    ceilings = [row.gb_per_s for row in copies.values()]
    axes.hlines(
        ceilings, at - 0.42, at + 0.42, color="0.25", linewidth=2.2, label="copy_ (ceiling)"
    )
    series = [column[1:] for column in COLUMNS if column[2] in cases.OPERATIONS]
    for index, (contestant, operation) in enumerate(series):
        stages = [results.stage(case, contestant, operation) for case in copies]
        if any(stages):
            axes.plot(
                at + 0.08 * (index - len(series) // 2),
                [np.nan if row is None else row.gb_per_s for row in stages],
                linestyle="none", marker=plots.MARKERS[index], color=plots.COLOURS[index],
                label=f"{contestant}, {operation}",
            )  # fmt: skip
    axes.set_yscale("log")
    # In one line, neighbouring labels would touch.
    axes.set_xticks(at, [row.shape.replace("x", "\nx ", 1) for row in copies.values()])
    once = "GB/s, each input read once, each output written once"
    title = f"One sampler stage: {where.device}, {where.simd}, {results.threads} threads"
    axes.set(xlabel="batch x shape", ylabel=once, title=title)
    axes.grid(axis="y", alpha=0.25, linewidth=0.6)
    axes.legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    plots.save(figure, path)


def with_table(text: str, content: str, name: str = "speed") -> str:
    """The document with a table between the markers of a name; ValueError where one is missing."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    head, found, rest = text.partition(begin)
    _, closed, tail = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"expected the markers {begin} and {end}, in this order")
    return f"{head}{begin}\n\n{content.strip()}\n\n{end}{tail}"
