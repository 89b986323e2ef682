"""The Metropolis-adjusted Langevin algorithm: a step that is no affine map, in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable

import torch

from cldfast import kernels
from cldfast.kernels import Stream
from cldfast.process.schedules import require

Tensor = torch.Tensor


def mala(
    log_prob: Callable[[Tensor], Tensor], x: Tensor, step: float, steps: int, *,
    score: Callable[[Tensor], Tensor] | None = None, seed: int | None = None,
    first_index: int = 0, generator: torch.Generator | None = None,
    callback: Callable[[int, float, Tensor], object] | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Chains from x (B, ...), whose law tends to the target, and their acceptance rates (B,).

    A step proposes `x' = x + step s(x) + sqrt(2 step) z` and accepts it with probability
    `min(1, p(x') q(x | x')/(p(x) q(x' | x)))`, q the proposal's density.

    log_prob: log density (B,), up to a constant. score: its gradient; None takes that of PyTorch.
    seed, first_index: chain i has the noise of sample `first_index + i`; None draws a seed from
        `generator`, see `cldfast.sample`. callback: `callback(index, time, x)` after each step,
        such as `cldfast.Trajectory()`.
    Source: Roberts and Tweedie (1996).
    """
    require("> 0", step=step, steps=steps)

    def look(x: Tensor) -> tuple[Tensor, Tensor]:
        if score is not None:
            return log_prob(x), score(x)
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            value = log_prob(x)
            (gradient,) = torch.autograd.grad(value.sum(), x)
        return value.detach(), gradient

    address = kernels.noise_address(seed, first_index, generator)
    rows = (-1, *[1] * (x.dim() - 1))
    density, slope = look(x)
    lost = int((~density.isfinite()).sum())
    if lost:
        raise ValueError(
            f"the log density is not finite for {lost} of {len(x)} rows: start where it is"
        )
    accepted = torch.zeros(len(x), device=x.device)
    for index in range(steps):
        z = kernels.normals(x.shape, address.at_stage(index), dtype=x.dtype, device=x.device)
        z = z[:, : x.shape[1]]
        proposed = x + step * slope + (2.0 * step) ** 0.5 * z
        new_density, new_slope = look(proposed)
        back = (x - proposed - step * new_slope).square().flatten(1).sum(1) / (4.0 * step)
        gain = new_density - density + 0.5 * z.square().flatten(1).sum(1) - back
        where = address.in_stream(Stream.ACCEPTANCE).at_stage(index)
        yes = torch.log(kernels.uniforms(where, len(x), x.device)) < gain
        x, slope = (
            torch.where(yes.reshape(rows), new, old)
            for new, old in ((proposed, x), (new_slope, slope))
        )
        density = torch.where(yes, new_density, density)
        accepted += yes
        if callback is not None:
            callback(index, (index + 1) * step, x)
    return x, accepted / steps
