"""How regular the renormalised score is along time, exactly, for Gaussian mixtures.

The theory of CLD with noise on the position works with the score of `p_t/p_inf`: its Lipschitz
constant, the largest operator norm of the Hessian of `log p_t/p_inf`, is assumed to be at most

    L(t) = C (1 + t^(-1/2)) exp(-2 a t)

for a rate of 1, here with the integrated rate tau for t. For a mixture the Hessian is known in
closed form. Its norm is taken over states drawn from p_t, so the largest one is a lower bound of
the constant; C is the smallest one with which L holds for these states on all times of the study.
The relative Fisher information `E |grad log p_0/p_inf|^2` says how far the data are from the start.

Source: Strasman, Surendran et al. (2025), the regularity assumption and proposition on it.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cldfast.extras import require
from cldfast.files import PathLike
from cldfast.lab import plots
from cldfast.lab.data import diamonds, gaussians25
from cldfast.lab.mixture import GaussianMixture, sufficient_statistic
from cldfast.process.sde import CLD
from cldfast.studies.bound import X_NOISE, A
from cldfast.studies.kept import Job, Row, add_run_options, open_study, run_jobs, write_table
from cldfast.studies.recipes import process

DATA = {"gaussians25": gaussians25, "diamonds": diamonds}
TIMES = tuple(float(t) for t in np.geomspace(1e-3, 1.0, 31))
SAMPLES = 5_000


def hessian_norms(data: GaussianMixture, sde: CLD, t: float, x0: Tensor, seed: int) -> Tensor:
    """Operator norms of the Hessian of `log p_t/p_inf` at one state for each row of x0.

    data: with diagonal covariances. x0: (n, d), rows of the data, which are noised up to t.

    With y and w of `GaussianMixture`, whose rows are a and q, the Hessian is `a a^T` times that of
    the blurred data at y, minus `q q^T/kappa` and plus the precision of p_inf: nothing cancels.
    """
    marginal = sde.marginal(t)
    a, q, kappa, s2 = sufficient_statistic(marginal, t)
    generator = torch.Generator(x0.device).manual_seed(seed)
    # y given x0 has the variance s2; w, the rest of the state, does not enter the Hessian.
    y = x0 + math.sqrt(s2) * torch.randn(
        x0.shape, generator=generator, dtype=torch.float64, device=x0.device
    )
    of_y = torch.linalg.eigvalsh(_log_density(data, y, s2)[1])
    fixed = torch.from_numpy(sde.prior().precision - np.outer(q, q) / kappa)
    parts = of_y[..., None, None] * torch.from_numpy(np.outer(a, a)) + fixed
    norms: Tensor = torch.linalg.eigvalsh(parts).abs().amax((1, 2))
    return norms


def _log_density(data: GaussianMixture, y: Tensor, s2: float) -> tuple[Tensor, Tensor]:
    """Gradient (n, d) and Hessian (n, d, d) of the log density of blurred data."""
    variances = data.covs + s2
    pull = (data.means - y[:, None]) / variances
    logs = data.weights.log() - 0.5 * variances.log().sum(1)
    share = torch.softmax(logs - 0.5 * (pull * pull * variances).sum(2), 1)
    gradient = torch.einsum("nk,nki->ni", share, pull)
    hessian = torch.einsum("nk,nki,nkj->nij", share, pull, pull)
    hessian -= gradient[:, :, None] * gradient[:, None, :]
    return gradient, hessian - torch.diag_embed(share @ (1.0 / variances))


def relative_fisher(data: GaussianMixture, sde: CLD, x0: Tensor, seed: int) -> float:
    """`E |grad log p_0/p_inf|^2`, by the mean over rows of the data with drawn velocities."""
    generator = torch.Generator(x0.device).manual_seed(seed)
    noise = torch.randn(x0.shape, generator=generator, dtype=torch.float64, device=x0.device)
    v = math.sqrt(sde.v0_var) * noise
    (p_xx, p_xv), (_, p_vv) = sde.prior().precision
    of_x = _log_density(data, x0, 0.0)[0] + p_xx * x0 + p_xv * v
    of_v = -v / sde.v0_var + p_xv * x0 + p_vv * v
    return float((of_x.square() + of_v.square()).sum(1).mean())


def shape(sde: CLD, t: float) -> float:
    """L(t) for C = 1."""
    tau = float(sde.tau(t))
    return (1.0 + tau**-0.5) * math.exp(-2.0 * A * tau)


def along_time(name: str, x_noise: float, times: Sequence[float], samples: int) -> list[Row]:
    """Hessian norms at all times, and the relative Fisher information, for one process."""
    data, sde = DATA[name](), process(A, x_noise)
    x0 = data.sample(samples, 0).double()
    fisher = relative_fisher(data, sde, x0, 1)
    rows: list[Row] = []
    for t in times:
        norms = hessian_norms(data, sde, t, x0, 2)
        rows.append(
            {
                "data": name, "x_noise": x_noise, "t": t, "tau": float(sde.tau(t)),
                "largest": float(norms.max()), "mean": float(norms.mean()),
                "bound_shape": shape(sde, t), "relative_fisher": fisher,
            }
        )  # fmt: skip
    constant = max(row["largest"] / row["bound_shape"] for row in rows)
    return [dict(row) | {"C": constant} for row in rows]


def regularity_study(
    folder: PathLike,
    times: Sequence[float] = TIMES,
    samples: int = SAMPLES,
    *,
    workers: int = 1,
    quiet: bool = False,
) -> list[Row]:
    """Measure all data and processes, and write regularity.csv and regularity.png."""
    require("matplotlib")
    path = open_study(folder, {"times": times, "samples": samples})
    jobs = [
        Job(f"{name}-x{x:g}", along_time, (name, x, tuple(times), samples))
        for name in DATA for x in X_NOISE
    ]  # fmt: skip
    rows = run_jobs(path, jobs, workers, quiet)
    write_table(path / "regularity.csv", rows)
    plot(rows, path / "regularity.png")
    return rows


def plot(rows: Sequence[Row], path: PathLike) -> None:
    """A panel for each data set: the largest norms, and L(t) with its C as a dotted line."""
    figure = plots.new_figure(10.0, 4.2)
    for axes, name in zip(figure.subplots(1, len(DATA)), DATA, strict=True):
        for index, x_noise in enumerate(X_NOISE):
            own = [row for row in rows if (row["data"], row["x_noise"]) == (name, x_noise)]
            tau, colour = [row["tau"] for row in own], plots.COLOURS[index]
            label = f"x_noise {x_noise:g}: C = {own[0]['C']:.3g}"
            axes.loglog(tau, [row["largest"] for row in own], color=colour, label=label)
            bound = [row["C"] * row["bound_shape"] for row in own]
            axes.loglog(tau, bound, ":", color=colour)
        axes.set(xlabel="integrated rate tau", title=name)
        axes.set_ylabel("largest norm of the Hessian of log p_t/p_inf")
        axes.grid(True, alpha=0.3)
        axes.legend(frameon=False, fontsize="small")
    plots.save(figure, path)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this study."""
    add_run_options(parser)
    parser.add_argument("--samples", type=int, default=SAMPLES, help="states (%(default)s)")


def run(args: argparse.Namespace) -> list[str]:
    """The study of parsed options; the files it made. ValueError for options that do not fit."""
    if args.samples < 1:
        raise ValueError(f"--samples: expected at least 1, got {args.samples}")
    how: dict[str, Any] = {"workers": args.workers, "quiet": args.quiet}
    times, samples = (TIMES[::10], 100) if args.quick else (TIMES, args.samples)
    regularity_study(args.out, times, samples, **how)
    return ["regularity.csv", "regularity.png"]
