"""`CLD` and `VPSDE` with the interface of CLD-SGM's `sde_lib`, over exact processes.

A variance preserving process has one plane per coordinate: the two halves of the flattened data are
packed as a pair of independent planes, so that the same kernel serves it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from cldfast.compat.cld_sgm import formulas
from cldfast.compat.cld_sgm.interface import Kernel, PublishedInterface
from cldfast.compat.schedule import FunctionBeta
from cldfast.process.linear_flow import Covariance, Transition
from cldfast.process.sde import CLD as CriticallyDamped
from cldfast.process.sde import LinearPhaseSDE

Tensor = torch.Tensor


class CLD(PublishedInterface):
    """Critically-damped Langevin diffusion; config gives m_inv, gamma and numerical_eps.

    numerical_eps takes part in the meaning of a network's output (`noise_multiplier`, `var`), since
    a trained network was scaled by it. The exact mode adds it to no noise.
    """

    type = "cld"  # type: ignore[assignment]
    is_augmented = True
    rows = np.array([[0.0], [1.0]])

    def _process(self, beta: FunctionBeta) -> LinearPhaseSDE:
        config = self.config
        self.m_inv, self.gamma = config.m_inv, config.gamma
        self.f = 2.0 / math.sqrt(config.m_inv)
        self.g = 1.0 / self.f
        self.numerical_eps = config.numerical_eps or 0.0
        return CriticallyDamped.from_mass(config.m_inv, config.gamma, beta)

    @property
    def _objective(self) -> str:
        objective = getattr(self.config, "cld_objective", "hsm")
        if objective not in ("hsm", "dsm"):
            raise ValueError(f"cld_objective must be hsm or dsm, got {objective!r}")
        return str(objective)

    def _covariance(
        self,
        t: Tensor,
        var0x: Tensor | float,
        var0v: Tensor | float,
        jitter: float,
        step: Transition | None = None,
    ) -> Covariance:
        """Of the kernel, each entry like t; the variances broadcast against it.

        step: the exact transition over t, where it is at hand.
        """
        if self.mode == "published":
            xx, xv, vv = formulas.covariance(
                self.beta_int_fn(t), self.f, self.g, var0x, var0v, jitter
            )
            return Covariance(xx, xv, vv, xx * vv - xv**2)
        if step is None:
            step = self.process.transition(self.process.tau(t))
        x_x, x_v, v_x, v_v = step.entries
        exact = step.covariance
        for weight, x, v in ((var0x, x_x, v_x), (var0v, x_v, v_v)):
            if isinstance(weight, Tensor) or weight > 0.0:
                exact = exact.plus_outer(weight, x, v)  # type: ignore[arg-type]
        return _jittered(exact, jitter)

    def _var0v(self) -> float:
        """Variance of the start's velocity that the kernel integrates out."""
        return self.gamma / self.m_inv if self._objective == "hsm" else 0.0

    def gain_and_shift(self, s: Tensor) -> tuple[Tensor, Tensor]:
        """See the base class: `s_v = -ell o [- v / mixed_variance]`."""
        return self._output(s, self._covariance(s, 0.0, self._var0v(), self.numerical_eps))

    def _output(self, s: Tensor, own: Covariance) -> tuple[Tensor, Tensor]:
        gain = -torch.sqrt(own.xx / own.det)
        if not getattr(self.config, "mixed_score", False):
            return gain, torch.zeros_like(gain)
        return gain, -1.0 / self.mixed_variance(s, torch.float64)

    def mixed_variance(self, s: Tensor, dtype: torch.dtype) -> Tensor:
        """See the base class; hybrid whatever the objective."""
        start = torch.tensor(self.gamma / self.m_inv, dtype=dtype, device=s.device)
        return self._covariance(s, 0.0, start, self.numerical_eps).vv

    def kernel(self, s: Tensor) -> Kernel:
        """See the base class; the velocity start of hybrid score matching is 0."""
        if self.mode == "published":
            own = self._covariance(s, 0.0, self._var0v(), self.numerical_eps)
            l_xx, l_vx, l_vv = formulas.lower_factor(own.xx, own.xv, own.vv)
            factor = torch.stack([l_xx, torch.zeros_like(l_xx), l_vx, l_vv], -1)
            mean = formulas.transition(self.beta_int_fn(s), self.g)
            gain, shift = self._output(s, own)
            return Kernel(mean, factor.unflatten(-1, (2, 2)), -gain, gain, shift)
        step = self.process.transition(self.process.tau(s))
        exact = self._covariance(s, 0.0, self._var0v(), 0.0, step)
        gain, shift = self._output(s, _jittered(exact, self.numerical_eps))
        return Kernel(step.phi, exact.factor, torch.sqrt(exact.xx / exact.det), gain, shift)

    def sde(self, u: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """See the base class."""
        x, v = u.chunk(2, dim=1)
        beta = self._beta(u, t)
        drift = torch.cat([self.m_inv * beta * v, -beta * x - self.f * self.m_inv * beta * v], 1)
        amplitude = torch.sqrt(2.0 * self.f * beta) * torch.ones_like(v)
        return drift, torch.cat([torch.zeros_like(amplitude), amplitude], 1)

    def prior_sampling(self, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
        """See the base class; drawn from PyTorch's generator."""
        device = self.config.device
        x, v = torch.randn(*shape, device=device), torch.randn(*shape, device=device)
        return x, v / math.sqrt(self.m_inv)

    def prior_logp(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """See the base class."""
        x, v = (half.flatten(1) for half in u.chunk(2, dim=1))
        count = x.shape[1]
        return (
            -0.5 * (count * math.log(2.0 * math.pi) + x.square().sum(1)),
            -0.5 * (count * math.log(2.0 * math.pi / self.m_inv) + self.m_inv * v.square().sum(1)),
        )

    def euler_normals(self, u: Tensor) -> Tensor:
        """The published step draws in the default dtype, whatever the state has become."""
        if self.mode == "published":
            return torch.randn(u.shape, device=u.device)
        return torch.randn_like(u)

    def mean(self, u: Tensor, t: Tensor) -> Tensor:
        """See the base class."""
        if self.mode == "published":
            phi = formulas.transition(self.beta_int_fn(t), self.g)
        else:
            phi = self.process.transition(self.process.tau(t)).phi
        x, v = u.chunk(2, dim=1)
        rows = [[self._expand(phi[:, i, j]) for j in range(2)] for i in range(2)]
        return torch.cat([row[0] * x + row[1] * v for row in rows], dim=1)

    def _start(
        self, t: Tensor, var0x: Tensor | None = None, var0v: Tensor | None = None
    ) -> tuple[Tensor | float, Tensor | float]:
        return (
            0.0 if var0x is None else var0x,
            self._var0v() if var0v is None else var0v,
        )

    def var(self, t: Tensor, *variances: Tensor | None) -> list[Tensor]:
        """[xx, xv, vv] for starts of variances (x, v); None: 0, and what the objective says."""
        own = self._covariance(self._expand(t), *self._start(t, *variances), self.numerical_eps)
        return [own.xx, own.xv, own.vv]

    def noise_multiplier(self, t: Tensor, *variances: Tensor | None) -> Tensor:
        """`-ell`, which turns a network's output into the velocity score."""
        own = self._covariance(self._expand(t), *self._start(t, *variances), self.numerical_eps)
        return -torch.sqrt(own.xx / own.det)

    def loss_multiplier(self, t: Tensor) -> Tensor:
        """The likelihood weight, `beta f`."""
        return self.beta_fn(t) * self.f

    def _noise(self, t: Tensor, z: Tensor, *variances: Tensor | None) -> Tensor:
        start = self._start(t, *variances)
        z_x, z_v = z.chunk(2, dim=1)
        if self.mode == "published":
            own = self._covariance(self._expand(t), *start, self.numerical_eps)
            l_xx, l_vx, l_vv = formulas.lower_factor(own.xx, own.xv, own.vv)
        else:
            factor = self._covariance(self._expand(t), *start, 0.0).factor
            l_xx, l_vx, l_vv = factor[..., 0, 0], factor[..., 1, 0], factor[..., 1, 1]
        return torch.cat([l_xx * z_x, l_vx * z_x + l_vv * z_v], dim=1)


class VPSDE(PublishedInterface):
    """The variance preserving process `dX = -beta X/2 dt + sqrt(beta) dB`."""

    type = "vpsde"  # type: ignore[assignment]
    is_augmented = False
    rows = np.eye(2)

    def _process(self, beta: FunctionBeta) -> LinearPhaseSDE:
        """Two independent coordinates, packed as a pair."""
        return LinearPhaseSDE([[-0.5, 0.0], [0.0, -0.5]], [1.0, 1.0], 0.0, beta)

    def _variance(self, t: Tensor, var0x: Tensor | float = 0.0) -> Tensor:
        tau = self.beta_int_fn(t)
        if self.mode == "published":
            return 1.0 - (1.0 - var0x) * torch.exp(-tau)
        return var0x * torch.exp(-tau) - torch.expm1(-tau)

    def gain_and_shift(self, s: Tensor) -> tuple[Tensor, Tensor]:
        """See the base class: `-o / deviation [- x / mixed_variance]`."""
        gain = -1.0 / torch.sqrt(self._variance(s))
        mixed = getattr(self.config, "mixed_score", False)
        return gain, torch.full_like(gain, -1.0 if mixed else 0.0)

    def mixed_variance(self, s: Tensor, dtype: torch.dtype) -> Tensor:
        """See the base class; that of the stationary law."""
        return torch.ones_like(s)

    def kernel(self, s: Tensor) -> Kernel:
        """See the base class."""
        gain, shift = self.gain_and_shift(s)
        unit = torch.eye(2, dtype=s.dtype, device=s.device)
        decay = torch.exp(-0.5 * self.beta_int_fn(s))
        factor = (-1.0 / gain)[:, None, None] * unit
        return Kernel(decay[:, None, None] * unit, factor, -gain, gain, shift)

    def pack(self, x: Tensor) -> Tensor:
        """Flat rows, with a zero where their number is odd."""
        flat = x.flatten(1)
        return nn.functional.pad(flat, (0, 1)) if flat.shape[1] % 2 else flat

    def unpack(self, u: Tensor, shape: Sequence[int]) -> Tensor:
        """See the base class."""
        return u[:, : math.prod(shape[1:])].reshape(u.shape[0], *shape[1:])

    def sde(self, u: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """See the base class."""
        beta = self._beta(u, t)
        return -0.5 * beta * u, torch.sqrt(beta) * torch.ones_like(u)

    def prior_sampling(self, shape: Sequence[int]) -> tuple[Tensor, None]:
        """See the base class; drawn from PyTorch's generator."""
        return torch.randn(*shape, device=self.config.device), None

    def prior_logp(self, u: Tensor) -> tuple[Tensor, None]:
        """See the base class."""
        x = u.flatten(1)
        return -0.5 * (x.shape[1] * math.log(2.0 * math.pi) + x.square().sum(1)), None

    def mean(self, u: Tensor, t: Tensor) -> Tensor:
        """See the base class."""
        return u * torch.exp(-0.5 * self._expand(self.beta_int_fn(t)))

    def var(self, t: Tensor, *variances: Tensor | None) -> list[Tensor]:
        """[variance] for starts of variance `variances[0]`; none or None: 0."""
        start = variances[0] if variances else None
        return [self._variance(self._expand(t), 0.0 if start is None else start)]

    def noise_multiplier(self, t: Tensor, *variances: Tensor | None) -> Tensor:
        """Minus one over the deviation, which turns a network's output into the score."""
        return -1.0 / torch.sqrt(self.var(t, *variances)[0])

    def loss_multiplier(self, t: Tensor) -> Tensor:
        """The likelihood weight, `beta / 2`."""
        return 0.5 * self.beta_fn(t)

    def _noise(self, t: Tensor, z: Tensor, *variances: Tensor | None) -> Tensor:
        return torch.sqrt(self.var(t, *variances)[0]) * z


def _jittered(own: Covariance, jitter: float) -> Covariance:
    """With `jitter` added to xx and vv."""
    if jitter == 0.0:
        return own
    det = own.det + jitter * (own.xx + own.vv + jitter)
    return Covariance(own.xx + jitter, own.xv, own.vv + jitter, det)


def as_served(sde: Any, mode: str | None = None) -> PublishedInterface:
    """An object of this file for one of the codebase's, or one of this file in another mode.

    mode: None keeps that of an object of this file, and is "exact" for the codebase's own.

    Raises ValueError for a process that is neither `cld` nor `vpsde`.
    """
    if isinstance(sde, PublishedInterface) and mode in (None, sde.mode):
        return sde
    kind = {"cld": CLD, "vpsde": VPSDE}.get(getattr(sde, "type", None))  # type: ignore[arg-type]
    if kind is None:
        raise ValueError(
            "sde must be one of CLD-SGM's, of type cld or vpsde, "
            f"got {getattr(sde, 'type', type(sde).__name__)!r}"
        )
    return kind(sde.config, sde.beta_fn, sde.beta_int_fn, "exact" if mode is None else mode)
