"""
The road from gradient ascent to CLD
====================================

The processes CLD grew out of, as pictures, each from a few lines of the public surface. The page
on the classical processes tells what they show. The script draws them into a folder, all or
some::

    python examples/route.py --out route
    python examples/route.py --only noising reversal

It needs the extra ``demo``.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import cldfast
from cldfast import classical
from cldfast.lab.mixture import GaussianMixture
from cldfast.lab.plots import COLOURS, new_figure, save

CLUSTERS = GaussianMixture([0.3, 0.7], [[-1.5], [1.5]], [[0.04], [0.09]])
RING = GaussianMixture(
    np.ones(6), [[2 * math.cos(a), 2 * math.sin(a)] for a in np.arange(6) * math.pi / 3],
    np.full((6, 2), 0.03),
)  # fmt: skip
F64 = torch.float64


# Name -> what draws it, and its size in inches.
PICTURES: dict[str, tuple[Callable[[Any], None], tuple[float, float]]] = {}


def picture(
    width: float, height: float
) -> Callable[[Callable[[Any], None]], Callable[[Any], None]]:
    """Enter a function among the pictures."""

    def enter(draw: Callable[[Any], None]) -> Callable[[Any], None]:
        PICTURES[draw.__name__] = (draw, (width, height))
        return draw

    return enter


def exact_score(data: GaussianMixture) -> Callable[..., torch.Tensor]:
    """The score of the data themselves."""
    return data.network(classical.Langevin(1.0), "score")


def draw_density(axes: Any, data: GaussianMixture, reach: float = 3.0) -> None:
    """The density of one-dimensional data as a line."""
    x = torch.linspace(-reach, reach, 600, dtype=F64)[:, None]
    axes.plot(x, data.log_prob(x).exp(), color="black", linewidth=1)


def cloud(axes: Any, x: torch.Tensor, title: str, reach: float) -> None:
    """Points of the plane."""
    axes.scatter(*x.T, s=1, color=COLOURS[0], linewidths=0)
    axes.set(title=title, xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")


# %%
# Langevin dynamics
# -----------------
@picture(8, 3.2)
def langevin(figure: Any) -> None:
    """Gradient ascent ends on the modes; with noise it draws the law around each mode."""
    start = torch.linspace(-3, 3, 2000)[:, None]
    score, ends = exact_score(CLUSTERS), {}
    x = start
    for _ in range(400):
        x = x + 0.01 * score(x, torch.zeros(1).expand(len(x)))
    ends["gradient ascent"] = x
    ends["Langevin"] = classical.ula(score, start, 0.01, 400, seed=1)
    for axes, (name, x) in zip(figure.subplots(1, 2), ends.items(), strict=True):
        axes.hist(x.numpy(), 80, range=(-3, 3), density=True, color=COLOURS[0], alpha=0.6)
        draw_density(axes, CLUSTERS)
        axes.set(title=name, ylim=(0, 2.5))


# %%
# The bias of a finite step
# -------------------------
@picture(5, 3.6)
def bias_of_ula(figure: Any) -> None:
    """The stationary variance for N(0, 1) against h, by the plan, by chains and by formula."""
    steps = np.linspace(0.05, 1.7, 34)
    axes = figure.subplots()
    axes.plot(steps, 2 / (2 - steps), color="black", label="2/(2 - h)")
    for name, h in {"plan.gaussian_law": steps[::3], "20,000 chains": steps[1::6]}.items():
        law = []
        for step in h:
            if name == "20,000 chains":
                x = classical.ula(lambda x, t: -x, torch.zeros(20_000, 1), step, 100, seed=3)
                law.append(float(x.var()))
            else:
                process = classical.Langevin(300 * step)
                plan = cldfast.make_plan(process, "ula", 300, "linear", t_min=0.0)
                law.append(plan.gaussian_law().cov[0, 0])
        axes.plot(h, law, "o" if "plan" in name else "x", label=name)
    x, _ = classical.mala(
        lambda x: -0.5 * x.square().sum(1), torch.zeros(20_000, 1), 0.5, 100, seed=0
    )
    axes.plot([0.5], [float(x.var())], "D", color=COLOURS[2], label="MALA")
    axes.set(xlabel="step h", ylabel="variance", yscale="log")
    axes.legend(frameon=False)


def learned_score(loss: Callable[..., torch.Tensor], steps: int = 1200) -> nn.Module:
    """A small network trained by `loss(net, x)`."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(1, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))
    rows, optimiser = CLUSTERS.sample(20_000), torch.optim.Adam(net.parameters(), 2e-3)
    for _ in range(steps):
        value = loss(lambda x, t: net(x), rows[torch.randint(len(rows), (256,))])
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
    return net


# %%
# One score by four losses
# ------------------------
@picture(6, 4)
def four_losses(figure: Any) -> None:
    """Four losses, one score where there are data; in one dimension the middle two are the same."""

    def signs(x: torch.Tensor) -> torch.Tensor:
        return torch.randint(0, 2, x.shape) * 2.0 - 1.0

    one = torch.ones(256)
    losses: dict[str, Callable[..., torch.Tensor]] = {
        "implicit": lambda net, x: classical.implicit_loss(net, x, one),
        "Hutchinson": lambda net, x: classical.implicit_loss(net, x, one, signs(x)),
        "sliced": lambda net, x: classical.sliced_loss(net, x, one, signs(x)),
        "denoising, 0.1": lambda net, x: classical.multi_scale_loss(net, x, [0.1]),
    }
    x = torch.linspace(-3, 3, 400)[:, None]
    axes = figure.subplots()
    axes.plot(x, exact_score(CLUSTERS)(x, torch.zeros(1).expand(400)), "black", label="score")
    for name, loss in losses.items():
        axes.plot(x, learned_score(loss)(x).detach(), label=name)
    axes.set(ylim=(-45, 45), xlabel="x", ylabel="score")
    axes.legend(frameon=False)


# %%
# Langevin dynamics at one noise level
# ------------------------------------
@picture(10, 3)
def fixed_noise(figure: Any) -> None:
    """Langevin with the score at one noise level: little noise does not mix, much noise blurs."""
    for axes, sigma in zip(figure.subplots(1, 3), (0.1, 0.6, 1.5), strict=True):
        blurred = GaussianMixture(CLUSTERS.weights, CLUSTERS.means, CLUSTERS.covs + sigma**2)
        step = 0.2 * min(sigma**2 + 0.04, 0.5)
        x = classical.ula(exact_score(blurred), torch.full((4000, 1), -1.5), step, 300, seed=2)
        axes.hist(x.numpy(), 80, range=(-5, 5), density=True, color=COLOURS[0], alpha=0.6)
        draw_density(axes, CLUSTERS, 5.0)
        axes.set(title=f"noise {sigma}", ylim=(0, 2))


# %%
# What noise does to two clusters
# -------------------------------
@picture(11, 3.2)
def smoothing(figure: Any) -> None:
    """Two clusters under smoothing: density, potential and score."""
    x = torch.linspace(-4, 4, 500, dtype=F64)[:, None]
    three = figure.subplots(1, 3)
    for index, sigma in enumerate((0.1, 0.5, 1.0, 2.0)):
        blurred = GaussianMixture(CLUSTERS.weights, CLUSTERS.means, CLUSTERS.covs + sigma**2)
        log = blurred.log_prob(x)
        score = exact_score(blurred)(x, torch.zeros(1).expand(500))
        for axes, y in zip(three, (log.exp(), -log, score), strict=True):
            axes.plot(x, y, color=COLOURS[index], label=f"noise {sigma}")
    for axes, title, limits in zip(
        three, ("density", "potential", "score"), ((0, 1.3), (0, 15), (-8, 8)), strict=True
    ):
        axes.set(title=title, ylim=limits)
    three[0].legend(frameon=False)


# %%
# Annealing
# ---------
@picture(10, 3.6)
def annealed(figure: Any) -> None:
    """Annealed Langevin finds all modes with their weights; without levels it stays at one."""
    path = classical.VE(0.05, 5.0)
    net = RING.network(path)
    ends = {
        "Langevin from one mode": classical.ula(
            exact_score(RING), torch.tensor([[2.0, 0.0]]).repeat(2000, 1), 0.01, 300, seed=1
        ),
        "annealed over 12 levels": classical.annealed_langevin(
            net, path, (2000, 2), 12, inner=25, seed=1
        ),
        "data": RING.sample(2000),
    }  # fmt: skip
    for axes, (name, x) in zip(figure.subplots(1, 3), ends.items(), strict=True):
        cloud(axes, x, name, 4)


# %%
# Forward in time
# ---------------
@picture(10, 10)
def noising(figure: Any) -> None:
    """Data on the way to noise: OU, VE, and CLD by position and velocity."""
    processes: dict[str, Any] = {
        "OU": classical.OU(8.0), "VE": classical.VE(0.01, 3.0), "CLD": cldfast.CLD()
    }  # fmt: skip
    x0, z = RING.sample(1500), torch.randn(1500, 4)
    grid = figure.subplots(4, 4)
    for column, t in enumerate((0.02, 0.15, 0.4, 1.0)):
        for row, (name, process) in enumerate(processes.items()):
            if name == "CLD":
                u, _ = cldfast.perturb(process, x0, torch.full((1500,), t), noise=z)
                cloud(grid[2, column], u[:, :2], f"CLD, x, t = {t}", 5)
                cloud(grid[3, column], u[:, 2:], f"CLD, v, t = {t}", 3)
            else:
                x = float(process.alpha(t)) * x0 + float(process.sigma(t)) * z[:, :2]
                cloud(grid[row, column], x, f"{name}, t = {t}", 5)


# %%
# Backward in time
# ----------------
@picture(8, 3.2)
def reversal(figure: Any) -> None:
    """The reverse SDE and Langevin dynamics with the same scores: only one is a time reversal."""
    path = classical.VP()
    for axes, solver in zip(figure.subplots(1, 2), ("em", "frozen_langevin"), strict=True):
        x = cldfast.sample(CLUSTERS.network(path), path, (8000, 1), solver, 500, "linear", seed=1)
        axes.hist(x.numpy(), 100, range=(-4, 4), density=True, color=COLOURS[0], alpha=0.6)
        draw_density(axes, CLUSTERS, 4.0)
        axes.set(title=solver, ylim=(0, 1.6))


# %%
# One Brownian path, three step counts
# ------------------------------------
@picture(6, 4)
def coupled(figure: Any) -> None:
    """Three step counts on one Brownian path: the curves approach one another."""
    path, axes = classical.VP(), figure.subplots()
    for index, steps in enumerate((16, 64, 1024)):
        record = cldfast.Trajectory()
        cldfast.sample(
            CLUSTERS.network(path), path, (4, 1), "em", steps, "linear", seed=5, noise="brownian",
            callback=record,
        )  # fmt: skip
        curves = torch.as_tensor(record.states)[:, :, 0]
        lines = axes.plot(
            record.times, curves, color=COLOURS[index], linewidth=0.7 + 0.4 * (2 - index)
        )
        lines[0].set_label(f"{steps} steps")
    axes.set(xlabel="t", ylabel="x")
    axes.invert_xaxis()
    axes.legend(frameon=False)


# %%
# Schedules are changes of time
# -----------------------------
@picture(8, 3.2)
def schedules(figure: Any) -> None:
    """Schedules run along one curve at different speeds: alpha against t, and against tau."""
    rates: dict[str, Any] = {
        "constant": 10.0, "linear": cldfast.LinearBeta(0.1, 20.0),
        "exponential": cldfast.ExponentialBeta(0.1, 1.6, 3.5), "cosine": cldfast.CosineBeta(),
    }  # fmt: skip
    t, (left, right) = np.linspace(0.0, 1.0, 300), figure.subplots(1, 2)
    for name, beta in rates.items():
        path = classical.OU(beta)
        left.plot(t, path.alpha(t), label=name)
        right.plot(path.beta.integral(t), path.alpha(t), label=name, linewidth=3, alpha=0.5)
    left.set(xlabel="t", ylabel="alpha")
    right.set(xlabel="integral of beta", ylabel="alpha", xlim=(0, 10))
    left.legend(frameon=False)


# %%
# Curvature: what makes errors grow
# ---------------------------------
@picture(6, 4)
def curvature(figure: Any) -> None:
    """Data N(0, 0.3^2), log-concave: the backward drift of OU contracts, that of CLD does not.

    Drawn is the largest eigenvalue of the symmetric part of the drift's Jacobian: how fast two
    backward paths on one Brownian path may part.
    """
    t, axes, var = np.linspace(1e-3, 1.0, 400), figure.subplots(), 0.09
    for name, sde in {"CLD": cldfast.CLD(), "CLD, x_noise 1": cldfast.CLD(x_noise=1.0)}.items():
        marginal = sde.marginal(t)
        mean = marginal.mean
        covariance = marginal.covariance.plus_outer(var, mean[..., 0], mean[..., 1])
        jacobian = -sde.A - np.diag(sde.D) @ covariance.inverse
        symmetric = 0.5 * (jacobian + np.swapaxes(jacobian, -1, -2))
        axes.plot(t, np.linalg.eigvalsh(symmetric)[:, -1], label=name)
    path = classical.OU(8.0)
    law = path.alpha(t) ** 2 * var + path.sigma(t) ** 2
    axes.plot(t, (-path.drift(t) - path.diffusion(t) / law) / 8.0, label="OU")
    axes.axhline(0.0, color="black", linewidth=0.7)
    axes.set(xlabel="t", ylabel="largest growth rate per unit of tau", ylim=(-6, 4))
    axes.legend(frameon=False)


# %%
# The command line
# ----------------
def main(arguments: Sequence[str] | None = None) -> None:
    """Draw the pictures into a folder."""
    parser = argparse.ArgumentParser(description="The road from gradient ascent to CLD.")
    parser.add_argument("--out", type=Path, default=Path("route"), help="folder (%(default)s)")
    parser.add_argument("--only", nargs="+", choices=PICTURES, default=list(PICTURES))
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.only:
        draw, size = PICTURES[name]
        figure = new_figure(*size)
        draw(figure)
        save(figure, options.out / f"{name}.png")
        print(options.out / f"{name}.png")


if __name__ == "__main__":
    main()
