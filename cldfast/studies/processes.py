"""CLD beside the processes it grew out of, as table and picture."""

from __future__ import annotations

import argparse
from pathlib import Path

from cldfast.extras import require
from cldfast.lab.compare import compare, fitted_mixture, learned_networks
from cldfast.lab.data import Funnel, gaussians25, two_points
from cldfast.lab.mixture import GaussianMixture
from cldfast.lab.plots import quality_curve
from cldfast.studies.kept import write_table

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
    write_table(folder / "processes.csv", rows)
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


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this study."""
    parser.add_argument(
        "--data", choices=STUDY_DATA, default="gaussians25", help="data set (%(default)s)"
    )
    parser.add_argument("--samples", type=int, default=5_000, help="samples a run (%(default)s)")
    parser.add_argument(
        "--learned", type=int, default=0, metavar="STEPS",
        help="training steps of a network for each process; 0: exact networks (%(default)s)",
    )  # fmt: skip


def run(args: argparse.Namespace) -> list[str]:
    """The study of parsed options; the files it made. ValueError for options that do not fit."""
    if args.samples < 2:
        raise ValueError(f"--samples: expected at least 2, got {args.samples}")
    if args.learned < 0:
        raise ValueError(f"--learned: expected at least 0 steps, got {args.learned}")
    samples, learned = (500, min(args.learned, 100)) if args.quick else (args.samples, args.learned)
    study_processes(args.out, args.data, samples, learned)
    return ["processes.csv", "processes.png"]
