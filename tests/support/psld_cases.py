"""What the tests of `compat.psld` share, with the codebase beside it and without."""

from __future__ import annotations

import torch

# (gamma, nu, factor of the covariance): both noised, the velocity alone, the position alone.
CASES = [
    (0.3, 3.0, "lower"),
    (0.3, 3.0, "upper"),
    (0.0, 4.0, "lower"),
    (0.0, 4.0, "upper"),
    (4.0, 0.0, "upper"),
]


def rows_of(gamma, nu, decomposition):
    """The coordinates whose noise a network predicts."""
    if gamma == 0 and decomposition == "lower":
        return [1]
    return [0] if nu == 0 and decomposition == "upper" else [0, 1]


def network(case, dtype=torch.float64):
    """Predicts the noise of a case in the given precision; it is asked in single precision."""
    chosen = rows_of(*case)

    def score_fn(u, t):
        assert u.dtype == t.dtype == torch.float32 and t.shape == (len(u),)
        x, v = u.to(dtype).chunk(2, 1)
        t = t.to(dtype).reshape(-1, *[1] * (u.dim() - 1))
        both = torch.sin(x + t), torch.tanh(0.7 * v - x * t) + 0.1 * v
        return torch.cat([both[r] for r in chosen], 1)

    return score_fn


def classifier(u, t):
    """Logits of three classes; it is asked in single precision."""
    assert u.dtype == t.dtype == torch.float32 and t.shape == (len(u),)
    return torch.stack([u.sum(1) * t, (u**2).sum(1) - t, torch.sin(u).sum(1)], 1)
