"""The mixtures against laws built another way: autograd, finite differences, mpmath, sampling."""

from __future__ import annotations

import math
from types import SimpleNamespace

import mpmath as mp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import expm

from cldfast.lab import mixture
from cldfast.lab.mixture import GaussianMixture

torch.set_num_threads(1)


class VanLoanCLD:
    """Critically-damped diffusion by matrix exponentials (Van Loan 1978), beta(t) = 2 + 4 t."""

    def __init__(self, a=2.0, sigma2=2.0, x_noise2=0.0, v0_var=0.01):
        self.drift = np.array([[0.0, a * a], [-1.0, -2 * a]])
        self.noise = np.diag([x_noise2, sigma2])
        self.v0_var = v0_var
        self.calls = 0

    def marginal(self, t, objective="hsm"):
        assert objective == "hsm"
        self.calls += 1
        block = np.block([[self.drift, self.noise], [np.zeros((2, 2)), -self.drift.T]])
        big = expm(block * (2 * t + 2 * t * t))
        phi = big[:2, :2]
        cov = phi @ np.diag([0.0, self.v0_var]) @ phi.T + big[:2, 2:] @ phi.T
        return SimpleNamespace(mean=phi[:, 0], cov=(cov + cov.T) / 2)


def random_covs(generator, count, dim, rank):
    root = torch.randn(count, dim, rank, generator=generator, dtype=torch.float64)
    return 0.3 * root @ root.mT


def mixtures():
    g = torch.Generator().manual_seed(1)
    means = torch.randn(4, 3, generator=g, dtype=torch.float64)
    weights = torch.tensor([0.1, 0.2, 0.3, 0.4])
    diagonal = torch.rand(4, 3, generator=g, dtype=torch.float64) * 0.2 + 0.01
    degenerate = diagonal.clone()
    degenerate[1:3] = 0.0
    return {
        "diagonal": GaussianMixture(weights, means, diagonal),
        "full": GaussianMixture(weights, means, random_covs(g, 4, 3, 5)),
        "points": GaussianMixture(weights, means, torch.zeros(4, 3)),
        "some points": GaussianMixture(weights, means, degenerate),
        "lines": GaussianMixture(weights, means, random_covs(g, 4, 3, 1)),
        "one": GaussianMixture([1.0], [[0.5, -1.0]], [[0.04, 0.5]]),
    }


SDES = {
    "critical": VanLoanCLD(),
    "regularised": VanLoanCLD(a=1.0, sigma2=2.0, x_noise2=0.0625, v0_var=0.04),
    "no start velocity": VanLoanCLD(v0_var=0.0),
}


def log_density(mix, u, marginal):
    """log p_t(u) from the joint (2d, 2d) covariances, nothing shared with the code under test."""
    m, sigma = (torch.as_tensor(part) for part in (marginal.mean, marginal.cov))
    covs = mix.covs if mix.covs.ndim == 3 else torch.diag_embed(mix.covs)
    terms = []
    for weight, mean, cov in zip(mix.weights, mix.means, covs, strict=True):
        joint = torch.kron(torch.outer(m, m), cov) + torch.kron(sigma, torch.eye(mix.dim).double())
        law = torch.distributions.MultivariateNormal(torch.kron(m, mean), joint)
        terms.append(weight.log() + law.log_prob(u))
    return torch.stack(terms).logsumexp(0)


def states(mix, marginal, n, seed=0):
    """Draws of p_t, so that the score is tested where it is used."""
    g = torch.Generator().manual_seed(seed)
    x0 = mix.sample(n, seed).double()
    factor = torch.linalg.cholesky(torch.as_tensor(marginal.cov))
    z = torch.randn(2, n, mix.dim, generator=g, dtype=torch.float64)
    noise = torch.einsum("ij,jnd->ind", factor, z)
    return torch.cat([marginal.mean[0] * x0 + noise[0], marginal.mean[1] * x0 + noise[1]], dim=1)


@pytest.mark.parametrize("sde", SDES.values(), ids=SDES.keys())
@pytest.mark.parametrize("name", mixtures())
@pytest.mark.parametrize("t", [0.02, 0.2, 1.0])
def test_score_is_the_gradient_of_the_log_density(name, sde, t):
    mix, marginal = mixtures()[name], sde.marginal(t)
    u = states(mix, marginal, 64).requires_grad_()
    (expected,) = torch.autograd.grad(log_density(mix, u, marginal).sum(), u)
    got = mix.score(u.detach(), t, sde)
    assert got.dtype == torch.float64
    # The reference solves 2d x 2d systems; its error is their condition number times 1e-16.
    scale = expected.abs().max()
    torch.testing.assert_close(got, expected, rtol=1e-7, atol=1e-8 * float(scale))


@pytest.mark.parametrize("name", ["diagonal", "full", "points"])
def test_score_matches_finite_differences(name):
    mix, sde, t, h = mixtures()[name], SDES["regularised"], 0.3, 1e-5
    marginal = sde.marginal(t)
    u = states(mix, marginal, 5)
    numeric = torch.empty_like(u)
    for j in range(u.shape[1]):
        step = torch.zeros(u.shape[1], dtype=torch.float64)
        step[j] = h
        up, down = (log_density(mix, u + s * step, marginal) for s in (1, -1))
        numeric[:, j] = (up - down) / (2 * h)
    # Central differences: truncation about h^2 = 1e-10 of a third derivative below 1e4 here,
    # rounding about 1e-14 / h = 1e-9.
    torch.testing.assert_close(mix.score(u, t, sde), numeric, rtol=1e-6, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), angle=st.floats(-3.0, 3.0), t=st.floats(0.01, 1.0))
def test_score_turns_with_the_data(seed, angle, t):
    g = torch.Generator().manual_seed(seed)
    means = torch.randn(3, 2, generator=g, dtype=torch.float64)
    covs = random_covs(g, 3, 2, 2)
    c, s = math.cos(angle), math.sin(angle)
    turn = torch.tensor([[c, -s], [s, c]], dtype=torch.float64)
    u = torch.randn(8, 4, generator=g, dtype=torch.float64)
    both = torch.block_diag(turn, turn)
    straight = GaussianMixture([1, 2, 3], means, covs).score(u, t, SDES["critical"])
    turned = GaussianMixture([1, 2, 3], means @ turn.mT, turn @ covs @ turn.mT)
    got = turned.score(u @ both.mT, t, SDES["critical"])
    torch.testing.assert_close(got, straight @ both.mT, rtol=1e-7, atol=1e-6)


@pytest.mark.parametrize("t", ["1e-6", "1e-3", "0.5"])
@pytest.mark.parametrize("variance", ["0", "1e-12", "0.01"])
def test_score_keeps_its_digits_near_time_zero(t, variance):
    """Two Gaussians in d = 1, in 60 digits: closed forms of exp(A tau), quadrature of the rest."""
    a, sigma2, v0_var = mp.mpf(2), mp.mpf(2), mp.mpf("0.01")
    with mp.workdps(60):
        tau = 2 * mp.mpf(t) + 2 * mp.mpf(t) ** 2

        def phi(s):
            return mp.exp(-a * s) * mp.matrix([[1 + a * s, a * a * s], [-s, 1 - a * s]])

        p = phi(tau)
        cov = p * mp.diag([0, v0_var]) * p.T

        def spread(i, j):
            return mp.quad(lambda s: sigma2 * phi(s)[i, 1] * phi(s)[j, 1], [0, tau])

        cov += mp.matrix([[spread(0, 0), spread(0, 1)], [spread(1, 0), spread(1, 1)]])
        mean = p[:, 0]
        total = cov + mp.mpf(variance) * mean * mean.T
        deviation = [mp.sqrt(total[0, 0]), mp.sqrt(total[1, 1])]
        exact = SimpleNamespace(
            mean=np.array([float(e) for e in mean]),
            cov=np.array([[float(cov[i, j]) for j in range(2)] for i in range(2)]),
            det=float(mp.det(cov)),
        )
        u = np.array([[float(s * mean[i] + k * deviation[i]) for i in range(2)] for s, k in SHIFTS])
        expected = []
        for x, v in u:
            terms, pulls = [], []
            for sign in (-1, 1):
                centred = mp.matrix([mp.mpf(x), mp.mpf(v)]) - sign * mean
                pull = mp.lu_solve(total, centred)
                terms.append(mp.exp(-(centred.T * pull)[0] / 2))
                pulls.append(pull)
            weighted = (terms[0] * pulls[0] + terms[1] * pulls[1]) / (terms[0] + terms[1])
            expected.append([-float(weighted[0]), -float(weighted[1])])
    mix = GaussianMixture([1, 1], [[-1.0], [1.0]], np.full((2, 1), float(variance)))
    got = mix.score(torch.from_numpy(u), float(t), FixedMarginal(exact)).numpy()
    # Rounding u itself moves the score by (1e-16 |u|) / s2, s2 the narrowest variance seen by x.
    m = exact.mean
    kappa = (
        m[1] ** 2 * exact.cov[0, 0]
        - 2 * m[0] * m[1] * exact.cov[0, 1]
        + exact.cov[1, 1] * m[0] ** 2
    )
    narrow = float(variance) + exact.det / kappa
    np.testing.assert_allclose(got, expected, rtol=1e-8, atol=1e-14 / narrow)


SHIFTS = [(1, 0.5), (-1, 1.5), (1, -2.0), (-1, -0.1)]


class FixedMarginal:
    def __init__(self, value):
        self.value = value

    def marginal(self, t, objective="hsm"):
        return self.value


def test_denoiser_of_two_points_is_a_hyperbolic_tangent():
    sde, t = SDES["critical"], 0.4
    mix = GaussianMixture([1, 1], [[1.0], [-1.0]], torch.zeros(2, 1))
    marginal = sde.marginal(t)
    u = torch.randn(50, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    evidence = u.numpy() @ np.linalg.solve(marginal.cov, marginal.mean)
    expected = torch.from_numpy(np.tanh(evidence))[:, None]
    torch.testing.assert_close(mix.denoiser(u, t, sde), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", mixtures())
def test_denoiser_and_score_obey_the_x0_identity(name):
    """s(u) = -Sigma^-1 (u - m E[x_0 | u]) coordinate by coordinate."""
    mix, sde, t = mixtures()[name], SDES["regularised"], 0.25
    marginal = sde.marginal(t)
    u = states(mix, marginal, 40).unflatten(1, (2, mix.dim))
    x0 = mix.denoiser(u.flatten(1), t, sde)
    left = u - torch.as_tensor(marginal.mean)[:, None] * x0[:, None, :]
    expected = -torch.einsum("ij,bjd->bid", torch.as_tensor(np.linalg.inv(marginal.cov)), left)
    torch.testing.assert_close(mix.score(u.flatten(1), t, sde), expected.flatten(1))


def test_at_time_zero_x_is_the_data_and_v_its_own_gaussian():
    mix, sde = mixtures()["diagonal"], SDES["critical"]
    u = torch.randn(9, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    x = u[:, :3].clone().requires_grad_()
    (expected,) = torch.autograd.grad(mix.log_prob(x).sum(), x)
    expected = torch.cat([expected, -u[:, 3:] / sde.v0_var], dim=1)
    torch.testing.assert_close(mix.score(u, 0.0, sde), expected)
    torch.testing.assert_close(mix.denoiser(u, 0.0, sde), u[:, :3])


@pytest.mark.parametrize("name", ["diagonal", "full", "one"])
def test_log_prob_mean_and_covariance(name):
    mix = mixtures()[name]
    covs = mix.covs if mix.covs.ndim == 3 else torch.diag_embed(mix.covs)
    law = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(mix.weights),
        torch.distributions.MultivariateNormal(mix.means, covs),
    )
    x = mix.sample(100, seed=2).double()
    torch.testing.assert_close(mix.log_prob(x), law.log_prob(x))
    torch.testing.assert_close(mix.mean(), law.mean)
    torch.testing.assert_close(mix.cov().diagonal(), law.variance)


@pytest.mark.parametrize("name", mixtures())
def test_samples_have_the_moments_of_the_law(name):
    """Mean and covariance to 5 standard errors, each error estimated as deviation / sqrt(n)."""
    mix, n = mixtures()[name], 40_000
    x = mix.sample(n, seed=5).double()
    centred = x - mix.mean()
    products = centred[:, :, None] * centred[:, None, :]
    assert x.shape == (n, mix.dim)
    for terms, expected in ((centred, torch.zeros(mix.dim)), (products, mix.cov())):
        error = terms.std(dim=0) / math.sqrt(n)
        # Plus float32 rounding, for laws with no spread of their own.
        assert ((terms.mean(dim=0) - expected).abs() <= 5 * error + 1e-6).all()


def test_samples_follow_the_weights():
    mix = GaussianMixture([3, 1, 0], [[0.0], [1.0], [2.0]], torch.zeros(3, 1))
    x = mix.sample(10_000, seed=0)[:, 0]
    # A fraction 1/4 of 10,000 has standard error sqrt(3/16 / 10,000) = 0.0043.
    assert abs(float((x == 1).float().mean()) - 0.25) < 5 * 0.0043
    assert not (x == 2).any()
    assert torch.equal(mix.sample(100, seed=7), mix.sample(100, seed=7))
    assert not torch.equal(mix.sample(100, seed=7), mix.sample(100, seed=8))


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    mixtures()["full"].sample(10, seed=0)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", ["diagonal", "full"])
def test_blocks_of_rows_change_nothing(name, monkeypatch):
    mix, sde = mixtures()[name], SDES["critical"]
    u = states(mix, sde.marginal(0.1), 37)
    whole = mix.score(u, 0.1, sde), mix.denoiser(u, 0.1, sde)
    monkeypatch.setattr(mixture, "_BLOCK_ENTRIES", 5 * 4 * 3)
    parts = mix.score(u, 0.1, sde), mix.denoiser(u, 0.1, sde)
    torch.testing.assert_close(parts, whole, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("parameterization", ["score", "full_score", "x0"])
def test_network_groups_rows_by_time(parameterization, monkeypatch):
    mix, sde = mixtures()["full"], VanLoanCLD()
    net = mix.network(sde, parameterization)
    u = torch.randn(6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t = torch.tensor([0.5, 0.1, 0.5, 0.9, 0.1, 0.5], dtype=torch.float64)
    sde.calls = 0
    got = net(u, t)
    assert sde.calls == 3
    assert got.shape == (6, 6 if parameterization == "full_score" else 3)
    rows = torch.cat([net(u[i : i + 1], t[i : i + 1]) for i in range(6)])
    torch.testing.assert_close(got, rows, rtol=1e-12, atol=1e-12)
    sde.calls = 0
    with monkeypatch.context() as patch:
        patch.setattr(torch, "unique", None)  # no search for groups where the view says one
        shared = net(u, t[:1].expand(6))
    assert sde.calls == 1
    torch.testing.assert_close(shared, net(u, torch.full((6,), 0.5).double()))


def test_network_rows_are_those_of_score_and_denoiser():
    mix, sde = mixtures()["diagonal"], SDES["critical"]
    u = torch.randn(6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t = torch.tensor([0.3], dtype=torch.float64).expand(6)
    full = mix.score(u, 0.3, sde)
    assert torch.equal(mix.network(sde, "full_score")(u, t), full)
    assert torch.equal(mix.network(sde, "score")(u, t), full[:, 3:])
    assert torch.equal(mix.network(sde, "x0")(u, t), mix.denoiser(u, 0.3, sde))


def test_images_keep_their_shape_and_float32_its_dtype():
    mix = GaussianMixture([1, 1], torch.randn(2, 8), torch.ones(2, 8))
    sde = SDES["critical"]
    u = torch.randn(3, 4, 2, 2)
    flat = mix.score(u.flatten(1).double(), 0.5, sde)
    got = mix.score(u, 0.5, sde)
    assert got.dtype == torch.float32 and got.shape == u.shape
    torch.testing.assert_close(got.flatten(1), flat.float())
    assert mix.denoiser(u, 0.5, sde).shape == (3, 2, 2, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1.0], [0.0], [1.0]), r"means: expected shape \(K, d\), got \(1,\)"),
        (([1.0, 1.0], [[0.0]], [[1.0]]), r"weights: expected shape \(1,\), got \(2,\)"),
        (([1.0], [[0.0]], [[1.0, 2.0]]), r"covs: expected shape \(1, 1\) or \(1, 1, 1\)"),
        (([-1.0], [[0.0]], [[1.0]]), "non-negative"),
        (([0.0], [[0.0]], [[1.0]]), "not all zero"),
        (([1.0], [[math.nan]], [[1.0]]), "means: expected finite"),
        (([1.0], [[0.0]], [[-1.0]]), "variances >= 0"),
        (([1.0], [[0.0, 0.0]], [[[1.0, 0.5], [0.1, 1.0]]]), "symmetric"),
        (([1.0], [[0.0, 0.0]], [[[1.0, 2.0], [2.0, 1.0]]]), "variances >= 0"),
    ],
)
def test_bad_mixtures_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        GaussianMixture(*arguments)


def test_bad_calls_are_refused():
    mix, sde = mixtures()["points"], SDES["critical"]
    u = torch.zeros(4, 6)
    with pytest.raises(ValueError, match="6 entries a row, got shape"):
        mix.score(torch.zeros(4, 5), 0.5, sde)
    with pytest.raises(ValueError, match="non-empty"):
        mix.score(torch.zeros(0, 6), 0.5, sde)
    with pytest.raises(ValueError, match="x half then v half"):
        mix.score(torch.zeros(4, 1, 6), 0.5, sde)
    with pytest.raises(TypeError, match="floating-point"):
        mix.score(torch.zeros(4, 6, dtype=torch.int64), 0.5, sde)
    with pytest.raises(ValueError, match=r"t: expected shape \(4,\), got \(3,\)"):
        mix.score(u, torch.full((3,), 0.5), sde)
    with pytest.raises(ValueError, match=r"tensor of shape \(4,\), got float"):
        mix.network(sde, "score")(u, 0.5)
    with pytest.raises(ValueError, match="unknown parameterization 'magic'"):
        mix.network(sde, "magic")
    with pytest.raises(ValueError, match="zero variance"):
        mix.score(u, 0.0, sde)
    with pytest.raises(ValueError, match="zero variance"):
        mix.log_prob(torch.zeros(4, 3))
    with pytest.raises(ValueError, match="velocity with positive variance"):
        mixtures()["diagonal"].score(u, 0.0, VanLoanCLD(v0_var=0.0))
    with pytest.raises(ValueError, match="at least 1 sample, got 0"):
        mix.sample(0)
