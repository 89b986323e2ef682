"""`CLD` and `VPSDE` with the interface of CLD-SGM's `sde_lib`, over exact processes.

A variance preserving process has one plane per coordinate: the two halves of the flattened data are
packed as a pair of independent planes, so that the same kernel serves it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from cldfast.compat.draws import Draws, widened
from cldfast.compat.laws import LAWS, checked, jittered
from cldfast.compat.published import check_mode, check_name
from cldfast.compat.schedule import FunctionBeta, Rate
from cldfast.kernels import NoiseAddress
from cldfast.planner.parameterization import LinearMap
from cldfast.process.linear_flow import Covariance, Transition
from cldfast.process.sde import CLD as CriticallyDamped
from cldfast.process.sde import LinearPhaseSDE
from cldfast.sampling.run import initial_state

Tensor = torch.Tensor
ScoreFunction = Callable[[Tensor, Tensor], Tensor]
StepFunction = Callable[[Tensor, Any, Any], tuple[Tensor, Tensor]]
Samples = tuple[Tensor, Tensor | None, int]


class PublishedInterface(nn.Module, ABC):
    """What both processes share. Times run forward; only `get_reverse_sde` takes `1 - t`.

    config: the codebase's options. beta_fn, beta_int_fn: beta and its integral from 0, functions of
    a float64 tensor. mode: "exact" or "published"; None is the class's own.

    Raises ValueError for an unknown mode or parameters outside their range.
    """

    mode = "exact"
    type: str  # type: ignore[assignment]
    is_augmented: bool
    # The rows of the full score that a network of this codebase gives, as columns (2, r).
    rows: np.ndarray
    # Inverse stationary variance of each plane of the state.
    precisions: tuple[float, ...]
    # Variances of x and v at the start of the Gaussian whose score a mixed score adds.
    mixed_start: tuple[float, float]
    numerical_eps = 0.0

    def __init__(
        self, config: Any, beta_fn: Rate, beta_int_fn: Rate, mode: str | None = None
    ) -> None:
        super().__init__()
        self.config, self.beta_fn, self.beta_int_fn = config, beta_fn, beta_int_fn
        self.mode = check_mode(self.mode if mode is None else mode)
        self.mixed_score = bool(getattr(config, "mixed_score", False))
        self.process = self._process(FunctionBeta(beta_fn, antiderivative=beta_int_fn))

    @abstractmethod
    def _process(self, beta: FunctionBeta) -> LinearPhaseSDE: ...

    # --- what the samplers and losses here ask ---------------------------------------------------

    def law(
        self, t: Tensor, var0x: Tensor | float | None = None, var0v: Tensor | float | None = None
    ) -> Transition:
        """The law of the state over [0, t], t of any shape, from a start with these variances.

        None is 0, for the velocity under hybrid score matching the variance of the process.
        """
        if not self.is_augmented:
            var0v = var0x  # both planes of a pair are positions
        elif var0v is None and objective_of(self.config) == "hsm":
            var0v = self.process.v0_var
        start = [0.0 if variance is None else variance for variance in (var0x, var0v)]
        return LAWS[self.mode](self.process, self.process.tau(t), *start)

    def scaling(self, law: Transition) -> Covariance:
        """The covariance that the network's output is scaled by."""
        return jittered(law.covariance, self.numerical_eps)

    def noised(self, law: Transition) -> Covariance:
        """The covariance that data are noised with."""
        if self.mode == "exact":
            return law.covariance
        return checked(self.scaling(law), "numerical_eps")

    def mixed_variance(self, t: Tensor, dtype: torch.dtype) -> Tensor:
        """Variance of the Gaussian whose score a mixed score adds, (n,).

        dtype: of the start's variance; the published code takes it in the state's precision.
        """
        start = torch.tensor(self.mixed_start, dtype=dtype, device="cpu").tolist()
        return self.scaling(self.law(t, *start)).vv

    def gain_and_shift(self, t: Tensor, law: Transition | None = None) -> tuple[Tensor, Tensor]:
        """`score = gain output + shift state` at times t (n,), on the rows of `rows`; each (n,).

        law: the law over [0, t], if the caller has it.
        """
        own = self.scaling(self.law(t) if law is None else law)
        gain = -torch.sqrt(own.xx / own.det)
        if not self.mixed_score:
            return gain, torch.zeros_like(gain)
        return gain, -1.0 / self.mixed_variance(t, torch.float64)

    def output_map(self, times: np.ndarray) -> LinearMap:
        """`gain_and_shift` for `cldfast.compat.steps.fold`."""
        values = self.gain_and_shift(torch.tensor(times, dtype=torch.float64, device="cpu"))
        gain, shift = (value.numpy()[:, None, None] for value in values)
        return LinearMap(gain * self.rows, shift * (self.rows @ self.rows.T))

    def network(self, model: Any, shape: Sequence[int]) -> Callable[[Tensor, Tensor], Tensor]:
        """The model as a `net(u, t)` of cldfast; it is called in float32, as the codebase does.

        shape: of the states that the model sees.
        """

        def net(u: Tensor, t: Tensor) -> Tensor:
            states = self.unpack(u, shape).to(torch.float32)
            return self.pack(model(states, t.to(torch.float32)))

        return net

    def state_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape of the states whose positions have `shape`."""
        return widened(shape) if self.is_augmented else tuple(shape)

    def prior(self, shape: Sequence[int], noise: NoiseAddress) -> Tensor:
        """States of the stationary law whose positions have `shape`.

        Exact: by addressed noise. Published: from PyTorch's generator, in the codebase's order.
        """
        if self.mode == "published":
            return torch.cat([half for half in self.prior_sampling(shape) if half is not None], 1)
        states = self.state_shape(shape)
        _, planes, *rest = self.pack(torch.empty((1, *states[1:]), device="meta")).shape
        u = initial_state(
            self.process, (shape[0], planes // 2, *rest), seed=noise.seed,
            first_index=noise.first_index, device=self.config.device,
        )  # fmt: skip
        return self.unpack(u, states)

    def samples(self, u: Tensor, shape: Sequence[int], evaluations: int) -> Samples:
        """`x, v, nfe` of packed states u; shape: of the positions."""
        x, *v = self._planes(self.unpack(u, self.state_shape(shape)))
        return x, v[0] if v else None, evaluations

    def pack(self, x: Tensor) -> Tensor:
        """Positions, or states where augmented, or outputs, as planes of a stage."""
        return x

    def unpack(self, u: Tensor, shape: Sequence[int]) -> Tensor:
        """Inverse of `pack`; shape: that of the result, the rows being u's."""
        return u

    def normals_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """The dtype of the normals that an Euler step draws for a state of this dtype.

        The published step of `CLD` draws in the default dtype, whatever the state has become.
        """
        default = self.mode == "published" and self.is_augmented
        return torch.get_default_dtype() if default else dtype

    def _expand(self, values: Tensor) -> Tensor:
        """(B,) with the trailing dimensions of the data."""
        return values[(...,) + (None,) * (3 if self.config.is_image else 1)]

    def _planes(self, u: Tensor) -> Sequence[Tensor]:
        return u.chunk(len(self.precisions), dim=1)

    def _moved(self, matrix: Tensor, u: Tensor) -> Tensor:
        """Apply matrices (..., 2, 2), whose leading dimensions broadcast, to the planes of u."""
        planes = self._planes(u)
        rows = [
            sum(matrix[..., i, j] * plane for j, plane in enumerate(planes))
            for i in range(len(planes))
        ]
        return torch.cat(rows, dim=1)  # type: ignore[arg-type]

    # --- the codebase's interface ----------------------------------------------------------------

    def sde(self, u: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Drift and diffusion at states u (B, 2C, ...) or (B, C, ...) and forward times t (B,).

        Published results are float64, as the codebase's times are; exact ones have the dtype of u.
        """
        beta = self._expand(self.beta_fn(t))
        beta = beta.to(u.dtype) if self.mode == "exact" else beta
        A = torch.tensor(self.process.A.tolist(), dtype=beta.dtype, device=u.device)
        amplitudes = self.process.diffusion[: len(self.precisions)]
        diffusion = [
            torch.sqrt(square * beta) * torch.ones_like(plane)
            for square, plane in zip(amplitudes, self._planes(u), strict=True)
        ]
        return self._moved(beta[..., None, None] * A, u), torch.cat(diffusion, dim=1)

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
        check_name("mode", mode, ("forward", "reverse"))
        rate = self.sde if mode == "forward" else self.get_reverse_sde(score_fn, probability_flow)

        def step(u: Tensor, t: Any, dt: Any) -> tuple[Tensor, Tensor]:
            times = torch.ones(u.shape[0], device=u.device, dtype=torch.float64) * t
            drift, diffusion = rate(u, times)
            mean = u + drift * dt
            z = Draws().normal(u.shape, self.normals_dtype(u.dtype), u.device)
            return mean + diffusion * dt**0.5 * z, mean

        return step

    def prior_sampling(self, shape: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        """x of the given shape from the stationary law, and v where augmented.

        Drawn from PyTorch's generator.
        """
        device = self.config.device
        halves = [torch.randn(*shape, device=device) / math.sqrt(p) for p in self.precisions]
        return halves[0], halves[1] if self.is_augmented else None

    def prior_logp(self, u: Tensor) -> tuple[Tensor, Tensor | None]:
        """Log density of the stationary law at u, (B,), v apart where augmented."""
        logs = []
        for half, precision in zip(self._planes(u), self.precisions, strict=True):
            flat = half.flatten(1)
            size = flat.shape[1] * math.log(2.0 * math.pi / precision)
            logs.append(-0.5 * (size + precision * flat.square().sum(1)))
        return logs[0], logs[1] if self.is_augmented else None

    def mean(self, u: Tensor, t: Tensor) -> Tensor:
        """Mean of the perturbation kernel for starts u at times t (B,)."""
        return self._moved(self.law(self._expand(t)).phi, u)

    def var(self, t: Tensor, *variances: Tensor | None) -> list[Tensor]:
        """Covariance entries of the perturbation kernel: [xx, xv, vv], or [xx] of one plane.

        variances: see `law`.
        """
        own = self.scaling(self.law(self._expand(t), *variances))
        return [own.xx, own.xv, own.vv] if self.is_augmented else [own.xx]

    def mean_and_var(self, u: Tensor, t: Tensor, *variances: Tensor) -> tuple[Tensor, list[Tensor]]:
        """`mean` and `var`."""
        return self.mean(u, t), self.var(t, *variances)

    def noise_multiplier(self, t: Tensor, *variances: Tensor | None) -> Tensor:
        """`-ell`, which turns a network's output into the score; VPSDE: -1 over deviation."""
        own = self.scaling(self.law(self._expand(t), *variances))
        return -torch.sqrt(own.xx / own.det)

    def loss_multiplier(self, t: Tensor) -> Tensor:
        """The likelihood weight: beta times half the squared noise amplitude."""
        return self.beta_fn(t) * (0.5 * self.process.diffusion[1])

    def perturb_data(
        self, batch: Tensor, t: Tensor, *variances: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Noised starts: (perturbed, mean, noise, the standard normals)."""
        z = torch.randn_like(batch)
        factor = self.noised(self.law(self._expand(t), *variances)).factor
        mean, noise = self.mean(batch, t), self._moved(factor, z)
        if self.mode == "exact":
            mean, noise = mean.to(batch.dtype), noise.to(batch.dtype)
        return mean + noise, mean, noise, z


class CLD(PublishedInterface):
    """Critically-damped Langevin diffusion; config gives m_inv, gamma and numerical_eps.

    numerical_eps takes part in the meaning of a network's output (`noise_multiplier`, `var`), since
    a trained network was scaled by it. The exact mode adds it to no noise.
    """

    type = "cld"
    is_augmented = True
    rows = np.array([[0.0], [1.0]])

    def _process(self, beta: FunctionBeta) -> LinearPhaseSDE:
        config = self.config
        self.m_inv, self.gamma = config.m_inv, config.gamma
        self.f = 2.0 / math.sqrt(config.m_inv)
        self.g = 1.0 / self.f
        self.numerical_eps = config.numerical_eps or 0.0
        self.precisions = (1.0, config.m_inv)
        self.mixed_start = (0.0, config.gamma / config.m_inv)
        return CriticallyDamped.from_mass(config.m_inv, config.gamma, beta)


class VPSDE(PublishedInterface):
    """The variance preserving process `dX = -beta X/2 dt + sqrt(beta) dB`."""

    type = "vpsde"
    is_augmented = False
    rows = np.eye(2)
    precisions = (1.0,)
    mixed_start = (1.0, 1.0)

    def _process(self, beta: FunctionBeta) -> LinearPhaseSDE:
        return LinearPhaseSDE([[-0.5, 0.0], [0.0, -0.5]], [1.0, 1.0], 0.0, beta)

    def pack(self, x: Tensor) -> Tensor:
        """Flat rows, with a zero where their number is odd."""
        flat = x.flatten(1)
        return nn.functional.pad(flat, (0, 1)) if flat.shape[1] % 2 else flat

    def unpack(self, u: Tensor, shape: Sequence[int]) -> Tensor:
        return u[:, : math.prod(shape[1:])].reshape(u.shape[0], *shape[1:])


def objective_of(config: Any) -> str:
    """`config.cld_objective`, "hsm" where there is none."""
    return check_name("cld_objective", getattr(config, "cld_objective", "hsm"), ("hsm", "dsm"))


def as_served(sde: Any, mode: str | None = None) -> PublishedInterface:
    """An object of this file for one of the codebase's, or one of this file in another mode.

    mode: None keeps that of an object of this file, and is "exact" for the codebase's own.

    Raises ValueError for a process that is neither `cld` nor `vpsde`.
    """
    if isinstance(sde, PublishedInterface) and mode in (None, sde.mode):
        return sde
    kinds: dict[Any, type[PublishedInterface]] = {"cld": CLD, "vpsde": VPSDE}
    kind = kinds.get(getattr(sde, "type", None))
    if kind is None:
        raise ValueError(
            "sde must be one of CLD-SGM's, of type cld or vpsde, "
            f"got {getattr(sde, 'type', type(sde).__name__)!r}"
        )
    return kind(sde.config, sde.beta_fn, sde.beta_int_fn, "exact" if mode is None else mode)
