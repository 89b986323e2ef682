"""How far the start of sampling is from the law at T."""

from __future__ import annotations

import math

import numpy as np
import pytest
from mpmath import mp

from cldfast import CLD, PSLD
from cldfast.classical import VP, Brownian


@pytest.mark.parametrize(
    "sde", [CLD(), CLD(a=1.0, x_noise=0.5, beta=0.3), CLD(a=0.5, beta=40.0), PSLD()], ids=str
)
def test_divergence_and_distance_of_one_point(sde):
    """For one point the bounds are the distances of two Gaussians, here with 60 digits."""
    point, dim = 1.7, 3
    law, prior = sde.marginal(sde.T), sde.prior()
    with mp.workdps(60):
        S, P = mp.matrix(law.cov.tolist()), mp.matrix(prior.cov.tolist())
        m = mp.matrix((law.mean * point).tolist())
        inverse = P**-1
        kl = ((inverse * S)[0, 0] + (inverse * S)[1, 1] - 2 + mp.log(mp.det(P) / mp.det(S))) / 2
        kl = dim * kl + dim * (m.T * inverse * m)[0] / 2
        cross = S[0, 0] * P[0, 0] + 2 * S[0, 1] * P[0, 1] + S[1, 1] * P[1, 1]
        bures = S[0, 0] + S[1, 1] + P[0, 0] + P[1, 1]
        bures -= 2 * mp.sqrt(cross + 2 * mp.sqrt(mp.det(S) * mp.det(P)))
        w2 = mp.sqrt(dim * bures + dim * (m.T * m)[0])
    gap = sde.prior_gap(dim * point**2, dim)
    # Entries of S and P are rounded, and their distance is at least that of the means here.
    assert gap.kl == pytest.approx(float(kl), rel=1e-7, abs=1e-15)
    assert gap.w2 == pytest.approx(float(w2), rel=1e-7, abs=1e-15)
    assert gap.total_variation == min(1.0, math.sqrt(gap.kl / 2))


def test_the_heat_equation():
    """`E |x0|^2/(4 T)`: the variance at T is that of the start."""
    for end in (1.0, 9.0):
        gap = Brownian(1.0, end).prior_gap(5.0, dim=7)
        assert gap.kl == pytest.approx(5.0 / (4.0 * end), rel=1e-14)
        assert gap.w2 == pytest.approx(math.sqrt(5.0), rel=1e-14)


def test_a_path_counts_coordinates():
    """KL of `N(alpha x0, sigma^2)` and N(0, 1) in closed form, an odd number of coordinates."""
    path = VP(beta=1.0)
    alpha2 = math.exp(-1.0)
    expected = 0.5 * (alpha2 * 2.0 + 3 * ((1 - alpha2) - 1 - math.log(1 - alpha2)))
    assert path.prior_gap(2.0, dim=3).kl == pytest.approx(expected, rel=1e-13)


def test_a_start_without_density_and_bad_arguments():
    with pytest.raises(ValueError, match="second_moment: expected a finite number >= 0, got -1"):
        CLD().prior_gap(-1.0)
    with pytest.raises(ValueError, match="dim: expected a number of coordinates >= 1, got 0"):
        CLD().prior_gap(1.0, 0)
    longer = [CLD(beta=beta).prior_gap(1.0).kl for beta in (1.0, 2.0, 4.0, 8.0)]
    assert np.all(np.diff(longer) < 0)
