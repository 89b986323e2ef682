"""What the processes of CLD-SGM's `sde_lib` share, and what the samplers and losses ask of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from cldfast.compat.published import check_mode
from cldfast.compat.schedule import FunctionBeta, Rate
from cldfast.process.sde import LinearPhaseSDE

Tensor = torch.Tensor
ScoreFunction = Callable[[Tensor, Tensor], Tensor]
StepFunction = Callable[[Tensor, Any, Any], tuple[Tensor, Tensor]]


class Kernel(NamedTuple):
    """Law of `U_s` given the start, and the meaning of a network's output; n times each.

    mean: (n, 2, 2). factor: lower (n, 2, 2). ell: (n,), the score is `-ell` times unit noise.
    gain, shift: (n,), see `PublishedInterface.gain_and_shift`.
    """

    mean: Tensor
    factor: Tensor
    ell: Tensor
    gain: Tensor
    shift: Tensor


class PublishedInterface(nn.Module, ABC):
    """What both processes share. Times named s run forward; only `get_reverse_sde` takes `1 - s`.

    config: the codebase's options. beta_fn, beta_int_fn: beta and its integral from 0, functions of
    a float64 tensor. mode: "exact" or "published"; None is the class's own.

    Raises ValueError for an unknown mode or parameters outside their range.
    """

    mode = "exact"
    is_augmented: bool
    # The rows of the full score that a network of this codebase gives, as columns (2, r).
    rows: np.ndarray

    def __init__(
        self, config: Any, beta_fn: Rate, beta_int_fn: Rate, mode: str | None = None
    ) -> None:
        super().__init__()
        self.config, self.beta_fn, self.beta_int_fn = config, beta_fn, beta_int_fn
        self.mode = check_mode(self.mode if mode is None else mode)
        self.process = self._process(FunctionBeta(beta_fn, beta_int_fn))

    # --- what the samplers and losses here ask ---------------------------------------------------

    @abstractmethod
    def _process(self, beta: FunctionBeta) -> LinearPhaseSDE: ...

    @abstractmethod
    def gain_and_shift(self, s: Tensor) -> tuple[Tensor, Tensor]:
        """`score = gain output + shift state` at times s (n,), on the rows of `rows`; each (n,)."""

    @abstractmethod
    def mixed_variance(self, s: Tensor, dtype: torch.dtype) -> Tensor:
        """Variance of the Gaussian that a mixed score adds to, (n,), from a start rounded to dtype.

        The published code takes the start's variance in the state's precision.
        """

    def output_map(self, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`gain_and_shift` as an output map of `cldfast.compat.published.fold`."""
        values = self.gain_and_shift(torch.tensor(times, dtype=torch.float64))
        gain, shift = (value.numpy()[:, None, None] for value in values)
        return gain * self.rows, shift * (self.rows @ self.rows.T)

    @abstractmethod
    def kernel(self, s: Tensor) -> Kernel:
        """What a loss needs at times s (n,)."""

    def pack(self, x: Tensor) -> Tensor:
        """Positions, or states where augmented, or outputs, as planes of a stage."""
        return x

    def unpack(self, u: Tensor, shape: Sequence[int]) -> Tensor:
        """Inverse of `pack`; shape: that of the result, the rows being u's."""
        return u

    # --- the codebase's interface ----------------------------------------------------------------

    def _expand(self, values: Tensor) -> Tensor:
        """(B,) with the trailing dimensions of the data."""
        return values[(...,) + (None,) * (3 if self.config.is_image else 1)]

    def _beta(self, u: Tensor, s: Tensor) -> Tensor:
        """beta per row; the published float64 times promote what they touch, the exact do not."""
        beta = self._expand(self.beta_fn(s))
        return beta.to(u.dtype) if self.mode == "exact" else beta

    @abstractmethod
    def sde(self, u: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Drift and diffusion at states u (B, 2C, ...) or (B, C, ...) and forward times t (B,)."""

    def get_reverse_sde(
        self, score_fn: ScoreFunction | None = None, probability_flow: bool = False
    ) -> Callable[..., tuple[Tensor, Tensor]]:
        """`reverse_sde(u, t, score=None)`: drift and diffusion at reversed times t (B,)."""

        def reverse_sde(u: Tensor, t: Tensor, score: Tensor | None = None) -> tuple[Tensor, Tensor]:
            drift, diffusion = self.sde(u, 1.0 - t)
            if score is None:
                if score_fn is None:
                    raise ValueError("a reverse SDE needs score_fn, or a score in each call")
                score = score_fn(u, 1.0 - t)
            amplitude = diffusion[:, diffusion.shape[1] - score.shape[1] :]
            pull = amplitude**2 * score * (0.5 if probability_flow else 1.0)
            if self.is_augmented:
                pull = torch.cat([torch.zeros_like(pull), pull], dim=1)
            return pull - drift, torch.zeros_like(diffusion) if probability_flow else diffusion

        return reverse_sde

    def get_discrete_step_fn(
        self, mode: str, score_fn: ScoreFunction | None = None, probability_flow: bool = False
    ) -> StepFunction:
        """`step(u, t, dt)` of Euler-Maruyama: the new state, and it without its noise.

        mode: "forward", or "reverse" with t reversed.
        """
        if mode not in ("forward", "reverse"):
            raise ValueError(f"mode must be forward or reverse, got {mode!r}")
        rate = self.sde if mode == "forward" else self.get_reverse_sde(score_fn, probability_flow)

        def step(u: Tensor, t: Any, dt: Any) -> tuple[Tensor, Tensor]:
            times = torch.ones(u.shape[0], device=u.device, dtype=torch.float64) * t
            drift, diffusion = rate(u, times)
            mean = u + drift * dt
            return mean + diffusion * dt**0.5 * self.euler_normals(u), mean

        return step

    def euler_normals(self, u: Tensor) -> Tensor:
        """The normals of an Euler-Maruyama step, from PyTorch's generator."""
        return torch.randn_like(u)

    @abstractmethod
    def prior_sampling(self, shape: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        """x of the given shape from the stationary law, and v where augmented."""

    @abstractmethod
    def prior_logp(self, u: Tensor) -> tuple[Tensor, Tensor | None]:
        """Log density of the stationary law at u, (B,), v apart where augmented."""

    @abstractmethod
    def mean(self, u: Tensor, t: Tensor) -> Tensor:
        """Mean of the perturbation kernel for starts u at times t (B,)."""

    @abstractmethod
    def var(self, t: Tensor, *variances: Tensor) -> list[Tensor]:
        """Covariance entries of the perturbation kernel; variances: of the start."""

    def mean_and_var(self, u: Tensor, t: Tensor, *variances: Tensor) -> tuple[Tensor, list[Tensor]]:
        """`mean` and `var`."""
        return self.mean(u, t), self.var(t, *variances)

    @abstractmethod
    def _noise(self, t: Tensor, z: Tensor, *variances: Tensor) -> Tensor: ...

    def perturb_data(
        self, batch: Tensor, t: Tensor, *variances: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Noised starts: (perturbed, mean, noise, the standard normals)."""
        z = torch.randn_like(batch)
        mean, noise = self.mean(batch, t), self._noise(t, z, *variances)
        if self.mode == "exact":
            mean, noise = mean.to(batch.dtype), noise.to(batch.dtype)
        return mean + noise, mean, noise, z
