"""Langevin dynamics for the score of a target, as plans whose time is that of the chain.

Nothing is noised, so a target is a path with alpha = 1 and sigma = 0, and its time runs down from
the length T of the chain to 0. Kinetic Langevin dynamics has a velocity of unit mass,

    dX = V dt,      dV = s(X) dt - friction V dt + sqrt(2 friction) dB,

and is split into kicks B, moves A and friction with noise O (Leimkuhler and Matthews 2013).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from cldfast import kernels
from cldfast.classical.paths import EDM, GaussianPath
from cldfast.classical.solvers import Stages, kicks
from cldfast.kernels import Stream
from cldfast.network import Network
from cldfast.planner.parameterization import LinearMap
from cldfast.planner.solvers import Solver, solver
from cldfast.planner.stage import affine_stages
from cldfast.process.linear_flow import Covariance, stack_matrix
from cldfast.process.schedules import as_float64, require
from cldfast.process.sde import Marginal
from cldfast.sampling.run import sample

OVERDAMPED: dict[str, Solver] = {}
KINETIC: dict[str, Solver] = {}


class Langevin(EDM):
    """`dX = s(X) dt + sqrt(2) dB` for a time T; a chain starts from `N(0, 1)`, or from `init`."""

    solvers = OVERDAMPED
    prior_var = 1.0

    def sigma(self, t: Any) -> Any:
        return 0.0 * as_float64(t)


class KineticLangevin(Langevin):
    """Langevin dynamics with a velocity, `V ~ N(0, 1)` per coordinate, for a time T."""

    solvers = KINETIC
    paired = False

    def __init__(self, T: float, friction: float = 1.0) -> None:
        super().__init__(T)
        require("> 0", friction=friction)
        self.friction = float(friction)

    def gaussian(self, t: Any, data_var: float) -> Marginal:
        one, zero = self.alpha(t), self.sigma(t)
        covariance = Covariance(one * data_var, zero, one, one * data_var)
        return Marginal(np.stack([one, zero], axis=-1), covariance)

    def score_map(self, t: np.ndarray, parameterization: Any) -> LinearMap:
        one, zero = self.alpha(t), self.sigma(t)
        row = np.stack([one, zero], axis=-1)[..., None]
        return LinearMap(row, stack_matrix(zero, zero, zero, -one))

    def input_map(self, t: np.ndarray, parameterization: Any) -> tuple[np.ndarray, np.ndarray]:
        super().score_map(t, parameterization)  # refuses all but the score, which sees positions
        return np.broadcast_to([[1.0, 0.0]], (len(t), 1, 2)), np.asarray(t, dtype=np.float64)


@solver("ula", order=1, table=OVERDAMPED)
def unadjusted(path: Langevin, grid: np.ndarray, parameterization: str) -> Stages:
    """`x' = x + h s(x) + sqrt(2 h) z`. Order 1. Source: Roberts and Tweedie (1996)."""
    h = -np.diff(grid)
    return kicks(path, grid, grid[:-1], parameterization, 1.0, h, 2.0 * h)


@solver("euler", order=1, table=KINETIC)
def euler(path: KineticLangevin, grid: np.ndarray, parameterization: str) -> Stages:
    """Euler-Maruyama. Order 1, one evaluation per step."""
    h = -np.diff(grid)
    zero, one, spread = 0.0 * h, np.ones_like(h), np.sqrt(2.0 * path.friction * h)
    P = stack_matrix(one, h, zero, one - path.friction * h)
    L = stack_matrix(zero, zero, zero, spread)
    return tuple(affine_stages(grid[:-1], grid[1:], P, np.stack([zero, h], -1)[..., None], L))


@solver("baoab", order=2, table=KINETIC)
def baoab(path: KineticLangevin, grid: np.ndarray, parameterization: str) -> Stages:
    """Half a kick, half a move, all friction, half a move, half a kick.

    Order 2; for a normal target x has the exact stationary law. Half-kicks meet at one score: one
    evaluation per step and one more. Source: Leimkuhler and Matthews (2013).
    """
    h, before = np.append(-np.diff(grid), 0.0), np.append(0.0, -np.diff(grid))
    decay, spread = np.exp(-path.friction * h), np.sqrt(-np.expm1(-2.0 * path.friction * h))
    move = 0.5 * h * (1.0 + decay)
    return _moves(grid, grid - h, move, decay, 0.5 * (before + h), (0.5 * h * spread, spread))


@solver("obabo", order=2, table=KINETIC)
def obabo(path: KineticLangevin, grid: np.ndarray, parameterization: str) -> Stages:
    """Half the friction, half a kick, the move, half a kick, half the friction.

    Order 2, one evaluation per step and one more. Source: Bussi and Parrinello (2007).
    """
    h, before = np.append(-np.diff(grid), 0.0), np.append(0.0, -np.diff(grid))
    time = 0.5 * path.friction * (before + h)
    decay, spread = np.exp(-time), np.sqrt(-np.expm1(-2.0 * time))
    kick = 0.5 * (before + h / decay)  # before the friction, so the second half counts for more
    return _moves(grid, grid - h, h * decay, decay, kick, (h * spread, spread))


def _moves(
    t: np.ndarray, ends: np.ndarray, move: np.ndarray, decay: np.ndarray, kick: np.ndarray,
    noise: tuple[np.ndarray, np.ndarray],
) -> Stages:  # fmt: skip
    """`w = v + kick s(x)`, then `x' = x + move w + noise_x z` and `v' = decay w + noise_v z`."""
    zero, one = np.zeros_like(kick), np.ones_like(kick)
    P = stack_matrix(one, move, zero, decay)
    L = stack_matrix(noise[0], zero, noise[1], zero)
    return tuple(affine_stages(t, ends, P, P[..., 1:] * kick[:, None, None], L))


def ula(score: Network, x: torch.Tensor, step: float, steps: int, **options: Any) -> torch.Tensor:
    """Unadjusted Langevin from x (B, ...): `x' = x + step s(x) + sqrt(2 step) z`.

    score: `score(x, t)`, of which t is no matter. options: of `cldfast.sample`, such as seed.
    """
    return _run(score, Langevin(step * steps), x.shape, x, "ula", steps, options)


def kinetic_langevin(
    score: Network, x: torch.Tensor, step: float, steps: int, *, v: torch.Tensor | None = None,
    friction: float = 1.0, scheme: str = "baoab", seed: int | None = None, first_index: int = 0,
    generator: torch.Generator | None = None, **options: Any,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Kinetic Langevin from x and v like it, drawn from N(0, 1) if None; returns both.

    scheme: "baoab", "obabo" or "euler". score, options: see `ula`; a callback sees (x, v).
    """
    where = kernels.noise_address(seed, first_index, generator, stream=Stream.VELOCITY)
    if v is None:
        v = kernels.normals(x.shape, where, dtype=x.dtype, device=x.device)[:, : x.shape[1]]
    process, start = KineticLangevin(step * steps, friction), torch.cat([x, v], dim=1)
    options |= {"seed": where.seed, "first_index": where.first_index, "return_velocity": True}
    return _run(score, process, x.shape, start, scheme, steps, options)


def annealed_langevin(
    net: Network, path: GaussianPath, shape: Any, levels: int = 10, **options: Any
) -> torch.Tensor:
    """Samples by the solver of this name, levels even in log sigma; options of `cldfast.sample`."""
    made = sample(net, path, shape, "annealed_langevin", levels - 1, "log_snr", **options)
    return made  # type: ignore[return-value]


def _run(
    score: Network, process: Langevin, shape: Any, init: torch.Tensor, scheme: str, steps: int,
    options: dict[str, Any],
) -> Any:  # fmt: skip
    return sample(
        score, process, shape, scheme, steps, "linear", t_min=0.0, init=init, device=init.device,
        dtype=init.dtype, **options,
    )  # fmt: skip
