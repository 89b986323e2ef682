"""The studies of the theory: against closed forms, and the shape of their tables."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from cldfast.app.cli import main
from cldfast.lab.data import gaussians25
from cldfast.lab.mixture import GaussianMixture
from cldfast.studies import bound, regularity
from cldfast.studies.recipes import process


@pytest.mark.parametrize("x_noise", [0.0, 0.5])
def test_the_hessian_by_differentiating_the_score(x_noise: float) -> None:
    """Norms equal those of the Jacobian of the exact score of the mixture, by autograd."""
    data, sde, t = gaussians25(), process(bound.A, x_noise), 0.1
    x0 = data.sample(4, 3).double()
    found = regularity.hessian_norms(data, sde, t, x0, seed=5)
    # The same states: y as drawn inside; the part w of u is free, so take w = 0.
    a, q, _, s2 = regularity.sufficient_statistic(sde.marginal(t), t)
    generator = torch.Generator().manual_seed(5)
    y = x0 + math.sqrt(s2) * torch.randn(x0.shape, generator=generator, dtype=torch.float64)
    pair = torch.linalg.solve(torch.tensor([a, q], dtype=torch.float64), torch.stack([y, 0 * y], 1))
    precision = torch.from_numpy(sde.prior().precision)
    score = data.network(sde, "full_score")

    def renormalised(u: torch.Tensor) -> torch.Tensor:
        s = score(u[None], torch.full((1,), t, dtype=torch.float64))[0]
        return s + (precision @ u.view(2, 2)).flatten()

    for row, norm in zip(pair.flatten(1), found, strict=True):
        jacobian = torch.autograd.functional.jacobian(renormalised, row)
        assert torch.linalg.matrix_norm(jacobian, 2).item() == pytest.approx(norm.item(), rel=1e-6)


def test_relative_fisher_of_one_gaussian() -> None:
    """`E |grad log p_0/p_inf|^2` in closed form for N(0, c) without noise on the position."""
    c, sde = 0.4, process(bound.A, 0.0)
    data = GaussianMixture([1.0], [[0.0]], [[c]])
    x0 = data.sample(200_000, 0).double()
    (p_xx, p_xv), (_, p_vv) = sde.prior().precision
    assert p_xv == pytest.approx(0.0, abs=1e-12)
    exact = c * (p_xx - 1 / c) ** 2 + sde.v0_var * (p_vv - 1 / sde.v0_var) ** 2
    # A mean of squares of normals has the relative standard error sqrt(2/n).
    assert regularity.relative_fisher(data, sde, x0, 1) == pytest.approx(
        exact, rel=5 * math.sqrt(2 / 2e5)
    )


def test_measured_rates() -> None:
    """Of Gaussian data, exactly: linear in M, order 1 in N and not the bound's 1/2."""
    rows = [
        *bound.exact_errors("score", 0.25, (0.01, 0.1)),
        *bound.exact_errors("score", 0.25, (0.3,)),
    ]
    rows += bound.exact_errors("steps", 0.25, (64, 128, 256))
    score, steps = bound.rates(rows)
    assert score["rate"] == pytest.approx(1.0, abs=1e-9) and score["bound"] == 1.0
    assert steps["rate"] == pytest.approx(-1.0, abs=0.1) and steps["bound"] == -0.5


def test_coupled_samples_approach_each_other() -> None:
    """Two step counts on one path: nearer by a factor near 4 with 4 times the steps."""
    pytest.importorskip("ot", reason="the distance of the study needs POT")
    rows = bound.coupled_errors("steps", 0.5, (16, 64), repeat=1, samples=200, fine=256)
    by_steps = {row["value"]: row["error"] for row in rows if row["measure"] == "sliced W2"}
    assert by_steps[64] < 0.5 * by_steps[16]


@pytest.mark.parametrize("name", ["regularity", "targets", "diamonds"])
def test_quick_studies_of_the_command_line(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("ot", reason="the distance of the sweep needs POT")
    assert main(["study", name, "--quick", "--out", str(tmp_path)]) == 0
    for file in capsys.readouterr().out.split(": ")[1].strip().split(", "):
        assert (tmp_path / file).stat().st_size > 0


def test_bad_options_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", str(tmp_path)]
    assert main(["study", "funnel", "--runs", "0", *out]) == 2
    assert "runs: expected at least 1, got 0" in capsys.readouterr().err
    assert main(["study", "bound", "--runs", "1", *out]) == 2
    assert "--runs: expected at least 2, got 1" in capsys.readouterr().err
    assert np.all([not path.exists() for path in (tmp_path / "study.json",)])
