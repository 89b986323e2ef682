"""Targets of less variance: the mean of the data over a pool of rows that could have been noised.

A row of training data x0 makes y, and the loss asks the network for x0, though it can only learn
`E[x0 | y]`. Let the pool be x0 and n rows drawn like it. Which of them was noised is not known from
y and the pool alone, so x0 may be replaced by its mean given both,

    x0' = sum w_i x_i,      w_i ~ exp(-|y - x_i|^2 / (2 sigma^2)),

which has the same mean given y and less variance (Rao and Blackwell): the minimiser stays as it is,
for any n, where all rows are drawn independently. At noise that tells the rows apart nothing
changes; where many rows could have made y the target is nearly the network's own.

Source: Xu, Tong, Jaakkola (2023), "Stable target field for reduced variance score estimation in
diffusion models"; here for y, so for every process, and unbiased because x0 is one of the pool.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cldfast.planner.data_forms import DataForm
from cldfast.process.sde import LinearPhaseSDE
from cldfast.training.row_weights import data_size

# exp of it is 2e-35, a normal float32.
_LEAST = -80.0


@dataclass(frozen=True)
class Reference:
    """The rows of a pool and what the rows of a batch need to be compared with them.

    pool: (n, ...) data. sigma: (B,), the noise level of y. size: (B,), the factor of an error of
    nu in the residual. view: (B, 1), or (B, 2), which makes y of what the network sees. All float64
    but for the pool. same: (B, n) bool, the rows of the pool that a row is compared with, or None
    for all of them. Indexed by rows of the batch, as tensors are.
    """

    pool: Tensor
    sigma: Tensor
    size: Tensor
    view: Tensor
    same: Tensor | None = None

    @classmethod
    def at(
        cls,
        t: Tensor,
        sde: LinearPhaseSDE,
        weighting: str,
        form: DataForm,
        pool: Tensor,
        same: Tensor | None = None,
    ) -> Reference:
        """The reference of rows at times t (B,) for a loss of this weighting and form."""
        kernel = sde.marginal(t)
        view = kernel.statistic
        if form.sees_y:
            scale = form.coefficients(kernel.sigma_y).scale
            assert scale is not None  # of a form that sees y
            view = 1.0 / scale[:, None]
        return cls(pool, kernel.sigma_y, data_size(sde, t, kernel, weighting, form), view, same)

    def __getitem__(self, rows: slice) -> Reference:
        same = None if self.same is None else self.same[rows]
        return Reference(self.pool, self.sigma[rows], self.size[rows], self.view[rows], same)

    @torch.no_grad()
    def shift(self, x0: Tensor, seen: Tensor) -> Tensor:
        """What the change of target adds to the residual, like x0 and flat, (B, D).

        x0: data (B, ...). seen: what the network sees of it, (B, ...) or (B, 2C, ...).
        """
        with torch.autocast(x0.device.type, enabled=False):
            rows, pool = x0.flatten(1), self.pool.flatten(1).to(x0.dtype)
            parts = seen.double().chunk(self.view.shape[1], dim=1)
            terms = zip(self.view.T[..., None], parts, strict=True)
            y = torch.stack([of * part.flatten(1) for of, part in terms]).sum(0)
            # The logarithm of each row's likelihood beside that of x0, by one product of matrices.
            # In float64: at small sigma the distances of rows are compared to many digits.
            precision = (self.sigma**-2)[:, None]
            along, wide, own = y * precision, pool.double(), rows.double()
            of_own = (along * own).sum(1, keepdim=True) - 0.5 * precision * _squares(own)
            left = torch.cat([along, -0.5 * precision, -of_own], 1)
            right = torch.cat([wide, _squares(wide), torch.ones_like(wide[:, :1])], 1)
            ratios = (left @ right.T).to(x0.dtype)
            if self.same is not None:
                ratios.masked_fill_(~self.same, -torch.inf)
            top = ratios.amax(1, keepdim=True).clamp_min_(0.0)
            # Weights below exp(_LEAST) are nothing beside the largest, and slow once subnormal.
            weights = ratios.sub_(top).clamp_min_(_LEAST).exp_()
            others = weights.sum(1, keepdim=True)
            size = (self.size / self.sigma)[:, None].to(x0.dtype)
            return size * (weights @ pool - others * rows) / (others + (-top).exp())


def _squares(rows: Tensor) -> Tensor:
    return rows.square().sum(1, keepdim=True)


def check_reference(reference: object, x0: Tensor) -> Tensor:
    """The rows of a reference; TypeError or ValueError for what is none for data x0."""
    if not isinstance(reference, Tensor):
        raise TypeError(f"reference: expected a tensor, got {type(reference).__name__}")
    if reference.shape[1:] != x0.shape[1:] or len(reference) == 0:
        raise ValueError(
            f"reference: expected rows like those of x0, (n, {', '.join(map(str, x0.shape[1:]))}), "
            f"got {tuple(reference.shape)}"
        )
    if reference.device != x0.device or not reference.is_floating_point():
        raise ValueError(
            f"reference: expected floating-point numbers on {x0.device}, got {reference.dtype} on "
            f"{reference.device}"
        )
    return reference
