"""Gaussian mixtures with their exact phase-space score at every time: perfect test networks."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cldfast.planner.data_forms import DataForm, DataPrediction, Preconditioned
from cldfast.planner.parameterization import (
    FULL_MAPS,
    Parameterization,
    check_parameterization,
    data_form,
    default_parameterization,
    score_map,
)
from cldfast.planner.path_forms import data_form_of, parts
from cldfast.process.path import Path

# Rows are worked through in blocks of at most this many (row, component, coordinate) entries, so
# that a large batch against many components stays near 32 MiB per temporary.
_BLOCK_ENTRIES = 1 << 22

# Eigenvalues within this many float64 roundings of 0, relative to d times the largest, are 0.
_ROUNDINGS = 16


class GaussianMixture:
    """A mixture of Gaussians, with its exact density and score in phase space at every time.

    weights: (K,) non-negative, not all zero; scaled to sum to 1. means: (K, d). covs: (K, d)
    diagonal variances, or (K, d, d) symmetric positive semi-definite matrices. Zero variances
    (points, lines, ...) are allowed; their score then needs t > 0.

    Raises ValueError for a wrong shape, a non-finite entry, a negative weight or variance or an
    asymmetric matrix.

    Under hybrid score matching u = (x, v) given x_0 is N(m x_0, Sigma) for each coordinate. With
    q = (-m_v, m_x), kappa = q^T Sigma q and a = adj(Sigma) m / kappa, the pair (a^T u, q^T u) is a
    volume-preserving change of variables after which

        y = a^T u given x_0 is N(x_0, det(Sigma) / kappa),    w = q^T u is N(0, kappa),

    and w is independent of x_0 and y. So log p_t(u) is log N(w; 0, kappa) plus the log density
    of the data blurred with variance s2 = det(Sigma) / kappa, taken at y: half the coordinates, and
    no subtraction of nearly equal numbers as t goes to 0.
    """

    def __init__(self, weights: Any, means: Any, covs: Any) -> None:
        w, mu, c = (
            _float64(v, k) for v, k in ((weights, "weights"), (means, "means"), (covs, "covs"))
        )
        if mu.ndim != 2 or 0 in mu.shape:
            raise ValueError(f"means: expected shape (K, d), got {tuple(mu.shape)}")
        count, dim = mu.shape
        if w.shape != (count,):
            raise ValueError(f"weights: expected shape ({count},), got {tuple(w.shape)}")
        if c.shape not in ((count, dim), (count, dim, dim)):
            raise ValueError(
                f"covs: expected shape {(count, dim)} or {(count, dim, dim)}, got {tuple(c.shape)}"
            )
        if bool((w < 0).any()) or float(w.sum()) <= 0:
            raise ValueError("weights: expected non-negative numbers, not all zero")
        self.weights = w / w.sum()
        self.means = mu
        self.covs = c
        self._basis: Tensor | None = None
        self._variances = c
        if c.ndim == 3:
            if not torch.allclose(c, c.mT, rtol=1e-10, atol=0.0):
                raise ValueError("covs: expected symmetric matrices")
            self._variances, self._basis = torch.linalg.eigh(c)
            size = self._variances.abs()
            slack = _ROUNDINGS * dim * torch.finfo(c.dtype).eps * size.amax(dim=1, keepdim=True)
            self._variances = self._variances.where(size > slack, 0.0)
        self._least_variance = float(self._variances.min())
        if self._least_variance < 0:
            raise ValueError(
                f"covs: expected variances >= 0, got an eigenvalue {self._least_variance:.3g}"
            )
        self._on_device: dict[Any, Any] = {}

    def __repr__(self) -> str:
        return f"GaussianMixture(components={len(self.weights)}, dim={self.dim})"

    @property
    def dim(self) -> int:
        """Number of coordinates d."""
        return self.means.shape[1]

    def sample(self, n: int, seed: int = 0) -> Tensor:
        """Draw (n, d) float32; same seed, same data."""
        generator = sample_generator(n, seed)
        label = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        noise = torch.randn(n, self.dim, generator=generator, dtype=torch.float64, device="cpu")
        noise *= self._variances[label].sqrt()
        if self._basis is not None:
            for k, basis in enumerate(self._basis):
                noise[label == k] = noise[label == k] @ basis.mT
        return (self.means[label] + noise).float()

    def mean(self) -> Tensor:
        """The mean (d,), float64."""
        return self.weights @ self.means

    def cov(self) -> Tensor:
        """The covariance (d, d), float64."""
        covs = self.covs if self.covs.ndim == 3 else torch.diag_embed(self.covs)
        centred = self.means - self.mean()
        between = (self.weights[:, None] * centred).mT @ centred
        return torch.einsum("k,kij->ij", self.weights, covs) + between

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density (B,) at x (B, d), in the dtype of x with float64 inside.

        Raises ValueError for a wrong shape or a component without a density (a zero variance).
        """
        x = _check_rows(x, self.dim, "x")
        self._check_density(0.0, "log_prob")
        constant = 0.5 * self.dim * math.log(2 * math.pi)
        rows = self._rowwise(
            x.double(), lambda y: self._components(y, 0.0)[0].logsumexp(dim=1) - constant
        )
        return rows.to(x.dtype)

    def score(self, u: Tensor, t: float | Tensor, sde: Any) -> Tensor:
        """Exact full score, the gradient of log p_t(u), in the shape and dtype of u.

        u: the state, (B, 2d), or (B, 2C, H, W) with C H W = d; x half, then v half. t: forward
        time, a number or (B,). sde: `marginal(t, objective="hsm")` gives `mean` (2,), `cov` (2, 2).

        Raises ValueError for a wrong shape or a density that does not exist (zero variance at
        t = 0).
        """
        return self._by_time(u, t, sde, "full_score")

    def denoiser(self, u: Tensor, t: float | Tensor, sde: Any) -> Tensor:
        """Exact E[x_0 | u_t = u], shape (B, d) or (B, C, H, W); arguments as for `score`."""
        return self._by_time(u, t, sde, "x0")

    def network(
        self, sde: Any, parameterization: Parameterization | None = None
    ) -> Callable[..., Tensor]:
        """A perfect network net(u, t) for this data, in the calling convention of the samplers.

        sde: as for `score`, or a process of the library where the parameterization has to look at
        more. parameterization: what it returns and sees, as `cldfast.make_plan` takes it, with the
        same default; ValueError for an unknown name.

        Where all rows share t (`t.stride(0) == 0` or B = 1) a call is one evaluation, otherwise one
        for each different time. It reads t on the host.

        For a path of `cldfast.classical` the network sees samples x, (B, d) or (B, C, H, W).
        """
        if parameterization is None:
            parameterization = default_parameterization(sde)
        if isinstance(sde, Path):
            form = data_form_of(sde, parameterization)
        else:
            check_parameterization(parameterization)
            form = data_form(parameterization)
        if form is not None and form.sees_y:
            return self._denoising_network(form)
        what = parameterization if form is None else form.name

        def net(u: Tensor, t: Tensor) -> Tensor:
            if not isinstance(t, Tensor) or t.shape != (u.shape[0],):
                got = tuple(t.shape) if isinstance(t, Tensor) else type(t).__name__
                raise ValueError(f"t: expected a tensor of shape ({u.shape[0]},), got {got}")
            return self._by_time(u, t, sde, what)

        return net

    def _denoising_network(self, form: DataForm) -> Callable[..., Tensor]:
        """The perfect network of a form that sees y: net(scale y, argument), of any process."""

        def net(seen: Tensor, argument: Tensor) -> Tensor:
            flat = _check_rows(seen, self.dim, "y").double()
            levels = argument.double()
            if isinstance(form, Preconditioned):
                levels = (4.0 * levels).exp()
            made = form.coefficients(levels)
            assert made.scale is not None  # of a form that sees y
            y, s2 = flat / made.scale[:, None], levels**2
            if bool((levels == levels[0]).all()):
                pull = self._rowwise(y, lambda rows: self._blurred_pull(rows, float(s2[0])))
            else:
                pull = torch.cat([
                    self._blurred_pull(row, float(level))
                    for row, level in zip(y.split(1), s2, strict=True)
                ])  # fmt: skip
            output = (made.drop[:, None] * y - s2[:, None] * pull) / made.gain[:, None]
            return output.to(seen.dtype).reshape(seen.shape)

        return net

    def _by_time(self, u: Tensor, t: float | Tensor, sde: Any, what: Parameterization) -> Tensor:
        on_path = isinstance(sde, Path)
        flat = _check_rows(u, self.dim if on_path else 2 * self.dim, "u").double()
        shape = list(u.shape)
        if not on_path and shape[1] % 2:
            raise ValueError(
                f"u: expected x half then v half along dimension 1, got {tuple(shape)}"
            )
        if not on_path and what not in FULL_MAPS:
            shape[1] //= 2
        if not isinstance(t, Tensor) or t.ndim == 0:
            rows = self._at_time(flat, float(t), sde, what)
        elif t.shape != u.shape[:1]:
            raise ValueError(f"t: expected shape ({u.shape[0]},), got {tuple(t.shape)}")
        elif t.stride(0) == 0 or len(t) == 1:
            rows = self._at_time(flat, float(t[0]), sde, what)
        else:
            times, group = torch.unique(t, return_inverse=True)
            picks = [torch.nonzero(group == i)[:, 0] for i in range(len(times))]
            parts = [
                self._at_time(flat[pick], float(time), sde, what)
                for time, pick in zip(times, picks, strict=True)
            ]
            rows = torch.cat(parts)[torch.argsort(torch.cat(picks))]
        return rows.to(u.dtype).reshape(shape)

    def _on_path(self, x: Tensor, t: float, path: Path, what: Parameterization) -> Tensor:
        """Rows of a form for float64 rows x (B, d) that share one time."""
        alpha, sigma = float(path.alpha(t)), float(path.sigma(t))
        if alpha == 0.0:  # x says nothing of the data
            data, noise = self.mean().to(x).expand_as(x), x / sigma
        else:
            y, s2 = x / alpha, (sigma / alpha) ** 2
            self._check_density(s2, f"score at t={t:g}")
            pull = self._rowwise(y, lambda rows: self._blurred_pull(rows, s2))
            if what == "score":
                return -pull / alpha
            data = self._rowwise(y, lambda rows: self._posterior_mean(rows, s2))
            noise = sigma / alpha * pull
        p, q = parts(path, np.array(t), what)
        return float(p) * data + float(q) * noise

    def _at_time(self, u: Tensor, t: float, sde: Any, what: Parameterization) -> Tensor:
        """Rows of a parameterisation for float64 rows u (B, 2d) that share one time."""
        if isinstance(sde, Path):
            return self._on_path(u, t, sde, what)
        a, q, kappa, s2 = sufficient_statistic(sde.marginal(t, objective="hsm"), t)
        self._check_density(s2, f"score at t={t:g}")
        x, v = u.chunk(2, dim=1)
        y = a[0] * x + a[1] * v
        form = data_form(what)
        if isinstance(form, DataPrediction):
            return self._rowwise(y, lambda rows: self._posterior_mean(rows, s2))
        pull = self._rowwise(y, lambda rows: self._blurred_pull(rows, s2))
        if form is not None:
            made = form.coefficients(np.float64(math.sqrt(s2)))
            return (float(made.drop) * y - s2 * pull) / float(made.gain)
        w = (q[0] * x + q[1] * v) / kappa
        velocity = -a[1] * pull - q[1] * w
        if what == "score":
            return velocity
        score = [-a[0] * pull - q[0] * w, velocity]
        if what == "full_score":
            return torch.cat(score, dim=1)
        # `score_map` gives the score from output and state; here the output is asked for.
        to_score = score_map(sde, np.array([t]), what)
        shift, back = to_score.from_state[0].tolist(), to_score.left_inverse()[0].tolist()
        rows = [s - on_x * x - on_v * v for s, (on_x, on_v) in zip(score, shift, strict=True)]
        return torch.cat([on_x * rows[0] + on_v * rows[1] for on_x, on_v in back], dim=1)

    def _components(self, y: Tensor, s2: float) -> tuple[Tensor, Tensor]:
        """Log weighted densities (b, K) less 2 pi, and precision times y - mean, in eigenbases."""
        log_weights, means, variances, basis = self._tensors(y.device)
        variances = variances + s2
        centred = y[:, None, :] - means
        if basis is not None:
            centred = torch.einsum("bki,kij->bkj", centred, basis)
        pull = centred / variances
        return log_weights - 0.5 * (variances.log().sum(1) + (centred * pull).sum(2)), pull

    def _blurred_pull(self, y: Tensor, s2: float) -> Tensor:
        """Minus the score of the data blurred with variance s2, at y (b, d)."""
        logits, pull = self._components(y, s2)
        return (logits.softmax(dim=1)[:, :, None] * self._out_of_bases(pull)).sum(1)

    def _posterior_mean(self, y: Tensor, s2: float) -> Tensor:
        """E[x_0 | y] of the data blurred with variance s2, at y (b, d)."""
        logits, pull = self._components(y, s2)
        _, means, variances, _ = self._tensors(y.device)
        mean = means + self._out_of_bases(variances * pull)
        return (logits.softmax(dim=1)[:, :, None] * mean).sum(1)

    def _out_of_bases(self, rows: Tensor) -> Tensor:
        basis = self._tensors(rows.device)[3]
        return rows if basis is None else torch.einsum("bkj,kij->bki", rows, basis)

    def _rowwise(self, y: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        block = max(1, _BLOCK_ENTRIES // self.means.numel())
        return torch.cat([function(rows) for rows in y.split(block)])

    def _tensors(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Log weights, means, variances, eigenbases (None: the axes), kept per device."""
        if device not in self._on_device:
            basis = None if self._basis is None else self._basis.to(device)
            parts = (part.to(device) for part in (self.weights.log(), self.means, self._variances))
            self._on_device[device] = (*parts, basis)
        return self._on_device[device]

    def _check_density(self, s2: float, what: str) -> None:
        if self._least_variance + s2 <= 0:
            raise ValueError(
                f"{what}: a component has zero variance, so there is no density; "
                "expected t > 0 (and large enough for det(Sigma) > 0 in float64)"
            )


def sufficient_statistic(
    marginal: Any, t: float
) -> tuple[tuple[float, float], tuple[float, float], float, float]:
    """The numbers a, q, kappa and s2 of `GaussianMixture` for a marginal with `mean` and `cov`."""
    m_x, m_v = (float(entry) for entry in marginal.mean)
    (xx, xv), (_, vv) = np.asarray(marginal.cov, dtype=np.float64).tolist()
    # The determinant that a marginal brings is more accurate than the difference of products.
    det = float(getattr(marginal, "det", xx * vv - xv * xv))
    kappa = m_v * m_v * xx - 2.0 * m_x * m_v * xv + m_x * m_x * vv
    if not (math.isfinite(kappa) and kappa > 0):
        raise ValueError(f"t={t:g}: expected a velocity with positive variance, got kappa={kappa}")
    a = ((vv * m_x - xv * m_v) / kappa, (xx * m_v - xv * m_x) / kappa)
    return a, (-m_v, m_x), kappa, max(det, 0.0) / kappa


def sample_generator(n: int, seed: int) -> torch.Generator:
    """A generator for drawing n samples; ValueError for n below 1."""
    if n < 1:
        raise ValueError(f"n: expected at least 1 sample, got {n}")
    return torch.Generator().manual_seed(seed)


def _float64(value: Any, name: str) -> Tensor:
    tensor = torch.as_tensor(value, device="cpu").detach().to(torch.float64, copy=True)
    if not bool(torch.isfinite(tensor).all()):
        raise ValueError(f"{name}: expected finite numbers")
    return tensor


def _check_rows(rows: Tensor, width: int, name: str) -> Tensor:
    """Rows as (B, width); raises unless floating point, non-empty and of that width."""
    if not isinstance(rows, Tensor) or not rows.is_floating_point():
        got = rows.dtype if isinstance(rows, Tensor) else type(rows).__name__
        raise TypeError(f"{name}: expected a floating-point tensor, got {got}")
    if rows.ndim < 2 or len(rows) == 0 or math.prod(rows.shape[1:]) != width:
        raise ValueError(
            f"{name}: expected a non-empty batch with {width} entries a row, "
            f"got shape {tuple(rows.shape)}"
        )
    return rows.flatten(1)
