"""The published-style training loop that the benchmark compares with does the same work as ours."""

from __future__ import annotations

import pytest
import torch
import training_step

from cldfast import CLD, hsm_loss
from cldfast.lab.models import MLPScore


def test_both_loops_minimise_the_same_loss() -> None:
    """Given its times and noise, our loss is that of the published loop."""
    sde, x0 = CLD(a=1.5, beta=3.0), torch.randn(32, 3)
    net = MLPScore(3, width=16, depth=1)
    torch.nn.init.normal_(net.last.weight, std=0.25)
    loop = training_step.PublishedLoop(net, sde, torch.randn(100, 3), 32)
    torch.manual_seed(5)
    published = loop.loss(x0)
    torch.manual_seed(5)
    t = torch.rand(32, dtype=torch.float64) * (1.0 - training_step.T_MIN) + training_step.T_MIN
    noise = torch.randn(32, 6)
    ours = hsm_loss(net, sde, x0, "reweighted", "mixed", t=t, noise=noise)
    # float32 sums of 96 squares, and a state rounded to float32 under -v / Sigma_vv / ell <~ 10.
    assert float(ours.detach()) == pytest.approx(float(published.detach()), rel=1e-5)


def test_all_contestants_run() -> None:
    steps = training_step.contestants(training_step.Case(64, 2, 16))
    published = [float(steps["published"]()) for _ in range(50)]
    ours = [steps["cldfast"]()[0] for _ in range(50)]
    steps["network"]()
    # Means of 3,200 rows each, from the same weights: the loss of a row is of the size of its mean.
    assert sum(ours) == pytest.approx(sum(published), rel=0.3)
