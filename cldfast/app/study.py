"""The study of the command line: CLD beside the processes it grew out of, as table and picture."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from cldfast.extras import require
from cldfast.files import write_atomic
from cldfast.lab.compare import compare, fitted_mixture, learned_networks
from cldfast.lab.data import Funnel, gaussians25, two_points
from cldfast.lab.mixture import GaussianMixture
from cldfast.lab.plots import quality_curve

STUDIES = ("processes",)
STUDY_DATA = ("gaussians25", "funnel", "two_points")
EVALUATIONS = (6, 8, 12, 20, 50)
# The points get this variance, so that their law has a density.
_SMOOTHING = 0.01


def study_processes(
    out: str | Path, name: str = "gaussians25", samples: int = 5_000, training: int = 0
) -> None:
    """Write processes.csv and processes.png into a folder, which is made.

    name: of `STUDY_DATA`; the funnel is a mixture fitted to it. training: steps of training of a
    network for each process; 0 takes exact networks.
    """
    require("ot", "matplotlib")
    data = study_data(name)
    networks = learned_networks(data, steps=training) if training else None
    rows = compare(data, EVALUATIONS, networks=networks, samples=samples)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    table = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    table.writeheader()
    for row in rows:
        table.writerow({k: f"{v:.5g}" if isinstance(v, float) else v for k, v in row.items()})
    write_atomic(folder / "processes.csv", text.getvalue().encode())
    series: dict[str, tuple[list[float], list[float]]] = {}
    for row in rows:
        evaluations, distances = series.setdefault(row["process"], ([], []))
        evaluations.append(row["evaluations"])
        distances.append(row["distance"])
    kind = f"networks trained for {training} steps" if training else "exact networks"
    quality_curve(series, rows[0]["floor"], folder / "processes.png", f"{name}, {kind}")


def study_data(name: str) -> GaussianMixture:
    """The mixture that stands for a data set of the study."""
    if name == "gaussians25":
        return gaussians25()
    if name == "funnel":
        return fitted_mixture(Funnel())
    if name == "two_points":
        points = two_points()
        return GaussianMixture(points.weights, points.means, _SMOOTHING + points.covs)
    raise ValueError(f"unknown data {name!r}; expected one of {', '.join(STUDY_DATA)}")
