"""The picture of a run: effective bandwidth of each contestant, the copy bandwidth as ceiling."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cldfast.bench import contestants as names
from cldfast.bench.cases import CASES, COPY, EM, NOISE_FREE, SSCS
from cldfast.bench.report import Results
from cldfast.bench.results import Environment, Row
from cldfast.lab.plots import _COLOURS, _MARKERS, _figure, _save

_SERIES: tuple[tuple[str, str, str], ...] = (
    ("cldfast, no noise", names.FUSED, NOISE_FREE),
    ("cldfast, velocity noise (EM)", names.FUSED, EM),
    ("cldfast, noisy (SSCS)", names.FUSED, SSCS),
    ("merged stage, eager PyTorch", names.MERGED, SSCS),
    ("published SSCS step", names.PUBLISHED, SSCS),
    ("published step, torch.compile", names.COMPILED, SSCS),
    ("reference", names.REFERENCE, SSCS),
)


def bandwidth(where: Environment, rows: Sequence[Row], path: Path) -> None:
    """Draw GB/s of a stage (each input read once, each output written once) for every case.

    path: file to write; its directory must exist. Raises ValueError where no stage was measured,
    ImportError where matplotlib is missing.
    """
    results = Results(where, rows)
    copies = {case: results.stage(case, names.COPY_CALL, COPY) for case in CASES}
    cases = [case for case, row in copies.items() if row is not None]
    if not cases:
        raise ValueError("rows: expected at least one stage case")
    figure = _figure(9.0, 5.2)
    axes = figure.add_subplot()
    for at, case in enumerate(cases):
        copy = copies[case]
        ceiling = None if copy is None else copy.gb_per_s
        axes.hlines(
            ceiling, at - 0.42, at + 0.42, color="0.25", linewidth=2.2,
            label="copy_ (ceiling)" if at == 0 else None,
        )  # fmt: skip
    for index, (label, contestant, operation) in enumerate(_SERIES):
        found = [results.stage(case, contestant, operation) for case in cases]
        points = [
            (at + 0.08 * (index - 3), row.gb_per_s)
            for at, row in enumerate(found)
            if row is not None
        ]
        if points:
            axes.plot(
                *zip(*points, strict=True), linestyle="none", marker=_MARKERS[index],
                color=_COLOURS[index], label=label,
            )  # fmt: skip
    axes.set_yscale("log")
    shapes = [row.shape for row in copies.values() if row is not None]
    # In two lines: neighbours would touch.
    axes.set_xticks(range(len(cases)), [shape.replace("x", "\nx ", 1) for shape in shapes])
    axes.set_xlabel("batch x shape")
    axes.set_ylabel("GB/s, each input read once, each output written once")
    axes.set_title(f"One sampler stage: {where.device}, {where.simd}, {results.threads} threads")
    axes.grid(axis="y", alpha=0.25, linewidth=0.6)
    axes.legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    _save(figure, path)
