"""What the tests of `compat.strasman` share, with the codebase beside it and without."""

from __future__ import annotations

import pytest
import torch

# Noise on the position, and whether the network returns the velocity score alone.
CASES = [(0.0, True), (0.25, False)]
SAMPLERS = ["Euler_Maruyama_discr_sampler", "leapfrog_sampler"]
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-11}


@pytest.fixture(name="dtype", params=[torch.float32, torch.float64])
def default_dtype(request):
    """Of everything: the codebase takes times and coefficients in PyTorch's default dtype."""
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(torch.float32)


def network(is_cld):
    """A smooth score, of the velocity alone or of both; t (B,) or a scalar."""

    def score(u, t):
        x, v = u.chunk(2, 1)
        t = t.reshape(-1, *[1] * (u.dim() - 1)) if t.dim() else t
        s_v = torch.tanh(0.7 * v - x * t) - 1.3 * v
        return s_v if is_cld else torch.cat([torch.sin(x + t) - x, s_v], 1)

    return score
