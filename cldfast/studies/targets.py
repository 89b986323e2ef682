"""Variance of the targets of score matching over t, and how far the score is from a normal one.

All per coordinate and exact but for a one-dimensional quadrature, for a coordinate of the 25
Gaussians: five equal ones at -2, ..., 2. The processes are CLD with and without noise on the
position, and both of its damping regimes beside the critical one.

* The velocity target of hybrid (HSM) and of denoising (DSM) score matching: the trace of its
  covariance, and what is left of it when the state is known, the noise that a batch averages over.
  Given the state both have the same mean, the score, and the hybrid target is the mean of the other
  over the initial velocity, so it never varies more. Towards t = 0 the two go like 3 and 4 over
  `D_vv beta t`: x tells v0. With noise on the position it does not, and the hybrid target stays at
  1/v0_var.
* xi(t), the mean squared difference between the score of the diffused data and that of the law
  they tend to: of the velocity score for CLD, of the score of positions for the VP process.

Source: Dockhorn, Vahdat, Kreis (2022), figure 2 for xi, and the appendix on the targets' variance.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cldfast.classical import OU, VP
from cldfast.files import PathLike
from cldfast.lab import plots
from cldfast.lab.mixture import sufficient_statistic
from cldfast.process.sde import CLD, LinearPhaseSDE
from cldfast.studies.kept import write_table

TIMES = np.geomspace(1e-3, 1.0, 121)
PROCESSES = {
    "CLD": CLD(a=2.0, beta=4.0),
    "CLD, x_noise 0.5": CLD(a=2.0, beta=4.0, x_noise=0.5),
    "underdamped, 0.5": CLD(a=2.0, beta=4.0, damping=0.5),
    "overdamped, 2": CLD(a=2.0, beta=4.0, damping=2.0),
}
# Points of the quadrature; its error falls faster than any power of their distance.
_NODES = 20_001
# Standard deviations on either side: beyond, a normal density is below 1e-31 of its height.
_REACH = 12.0


@dataclass(frozen=True)
class Mixture:
    """One coordinate of the data: equal Gaussians at `means` with variance `var`."""

    means: tuple[float, ...] = (-2.0, -1.0, 0.0, 1.0, 2.0)
    var: float = 0.01

    @property
    def second_moment(self) -> float:
        """`E[x0^2]`."""
        return float(np.mean(np.square(self.means))) + self.var

    def fisher(self, s2: float) -> float:
        """`E[(d log p / dy)^2]` of the data blurred with variance s2."""
        var = self.var + s2
        deviation = var**0.5
        low, high = min(self.means), max(self.means)
        y, step = np.linspace(
            low - _REACH * deviation, high + _REACH * deviation, _NODES, retstep=True
        )
        away = (y[:, None] - np.array(self.means)) / deviation
        density = np.exp(-0.5 * away**2) / (np.sqrt(2.0 * np.pi) * deviation * len(self.means))
        p, slope = density.sum(1), -(density * away).sum(1) / deviation
        return float(np.sum(np.divide(slope**2, p, out=np.zeros_like(p), where=p > 0.0)) * step)


@dataclass(frozen=True)
class TargetVariance:
    """Per coordinate at time t: traces of the velocity targets' covariance, and xi.

    hsm, dsm: of the target itself. hsm_given_u, dsm_given_u: given the state. xi: see the module.
    """

    t: float
    hsm: float
    dsm: float
    hsm_given_u: float
    dsm_given_u: float
    xi: float


def at_time(sde: LinearPhaseSDE, data: Mixture, t: float) -> TargetVariance:
    """All of it at one time t > 0.

    With y = a^T u and w = q^T u of `lab.mixture.GaussianMixture` independent, and the velocity
    score `a_v (log p_y)'(y) - q_v w / kappa`, everything follows from the Fisher information of
    the blurred data at y.
    """
    marginal = sde.marginal(t)
    (_, a_v), (_, q_v), kappa, s2 = sufficient_statistic(marginal, t)
    fisher = data.fisher(s2)
    of_w = q_v**2 / kappa
    score = a_v**2 * fisher + of_w
    dsm = float(sde.marginal(t, "dsm").ell) ** 2
    # The normal law's velocity score is `-(P u)_v`; by parts, E[s_v (P u)_v] = -P_vv.
    precision = sde.prior().precision
    moments = marginal.cov + data.second_moment * np.outer(marginal.mean, marginal.mean)
    normal = float(precision[1] @ moments @ precision[1])
    return TargetVariance(
        t,
        hsm=float(marginal.ell) ** 2,
        dsm=dsm,
        hsm_given_u=a_v**2 * (1.0 / s2 - fisher),
        dsm_given_u=dsm - score,
        xi=score + normal - 2.0 * float(precision[1, 1]),
    )


def vp_xi(process: OU, data: Mixture, t: float) -> float:
    """xi(t) of a process on positions that tends to N(0, 1)."""
    mean, deviation = float(process.alpha(t)), float(process.sigma(t))
    # x = mean x0 + noise: the data blurred with variance (deviation / mean)^2, stretched.
    fisher = data.fisher((deviation / mean) ** 2) / mean**2
    return fisher + mean**2 * data.second_moment + deviation**2 - 2.0


def plot(
    results: dict[str, list[TargetVariance]], positions: list[float], times: np.ndarray, path: Path
) -> None:
    """The targets of the first two processes, and xi of all."""
    figure = plots.new_figure(13.0, 3.9)
    axes = figure.subplots(1, 3)
    *targets, right = axes
    for axis, process in zip(targets, results, strict=False):
        rows = results[process]
        for name, colour in (("hsm", "tab:blue"), ("dsm", "tab:orange")):
            label = name.upper()
            axis.loglog(times, [getattr(r, name) for r in rows], color=colour, label=label)
            given = [getattr(r, f"{name}_given_u") for r in rows]
            axis.loglog(times, given, "--", color=colour, label=f"{label}, given the state")
        axis.set_ylim(1e-2, 1e3)
        axis.set_title(process)
    targets[0].set_ylabel("trace of the covariance, per coordinate")
    for name, rows in results.items():
        right.loglog(times, [r.xi for r in rows], label=name)
    right.loglog(times, positions, color="black", label="VP")
    # Below this the data are forgotten.
    right.set_ylim(bottom=1e-5)
    right.set_title("xi(t), per coordinate")
    for axis in axes:
        axis.set_xlabel("t")
        axis.grid(True, which="major", alpha=0.3)
        axis.legend(frameon=False, fontsize="small")
    plots.save(figure, path)


def targets_study(folder: PathLike, times: np.ndarray = TIMES) -> None:
    """Compute, and write targets.csv and targets.png into a folder, which is made."""
    data = Mixture()
    results = {
        name: [at_time(sde, data, float(t)) for t in times] for name, sde in PROCESSES.items()
    }
    positions = [vp_xi(VP(), data, float(t)) for t in times]
    found: list[dict[str, Any]] = [
        {"process": name} | asdict(row) for name, rows in results.items() for row in rows
    ]
    empty = dict.fromkeys(found[0], "") | {"process": "VP"}
    found += [empty | {"t": float(t), "xi": xi} for t, xi in zip(times, positions, strict=True)]
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    write_table(path / "targets.csv", found)
    plot(results, positions, times, path / "targets.png")


def add_options(parser: argparse.ArgumentParser) -> None:
    """This study has no options: it takes seconds."""


def run(args: argparse.Namespace) -> list[str]:
    """The study of parsed options; the files it made."""
    targets_study(args.out, TIMES[::20] if args.quick else TIMES)
    return ["targets.csv", "targets.png"]
