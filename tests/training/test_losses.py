"""Perturbation and the hybrid score matching loss."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cldfast import CLD, LinearBeta, dsm_loss, hsm_loss, perturb, sample_times
from cldfast.kernels import NoiseAddress, Stream
from cldfast.kernels.backends.reference import noise_planes
from cldfast.planner.data_forms import DATA_FORMS
from cldfast.planner.parameterization import PARAMETERIZATIONS, data_form, score_map
from cldfast.training.losses import WEIGHTINGS
from cldfast.training.times import TIME_SAMPLING

# Velocity forms with noise on the position are right, if blind at small t.
pytestmark = pytest.mark.filterwarnings("ignore::cldfast.BlindLossWarning")
F64 = torch.float64
SDES = [CLD(), CLD(x_noise=0.5, beta=LinearBeta(0.5, 7.0))]


def addressed_noise(rows, d, seed):
    """The normals that `perturb` uses, (rows, 2d) float64."""
    z = noise_planes((rows, d), F64, "cpu", NoiseAddress(seed, stream=Stream.PERTURBATION))
    return torch.cat(z, 1)


@pytest.mark.parametrize("method", ["uniform", "stratified"])
def test_times_are_uniform_and_addressed(method):
    sde = CLD(T=2.0)
    t, factors = sample_times(20000, sde, t_min=0.5, seed=3, method=method)
    assert torch.equal(factors, torch.ones(20000, dtype=F64))
    assert t.dtype == F64 and float(t.min()) > 0.5 and float(t.max()) < 2.0
    # Kolmogorov-Smirnov: 1.95 / sqrt(n) is passed with probability 0.001.
    uniform = np.sort((t.numpy() - 0.5) / 1.5)
    assert np.max(np.abs(uniform - np.linspace(0, 1, 20000))) < 1.95 / np.sqrt(20000)
    if method == "uniform":
        tail, _ = sample_times(19993, sde, t_min=0.5, seed=3, first_index=7)
        assert torch.equal(t[7:], tail)
    else:
        # One time in every stratum.
        assert np.array_equal(np.floor((t.numpy() - 0.5) / 1.5 * 20000), np.arange(20000))


def test_importance_times_are_unbiased_and_flatten_the_likelihood_weight():
    sde, n = CLD(beta=LinearBeta(0.5, 7.0)), 50000
    t, factors = sample_times(n, sde, t_min=0.01, seed=3, method="importance")
    assert float(t.min()) >= 0.01 and float(t.max()) <= 1.0
    for function, integral in (
        (lambda t: t, (1 - 0.01**2) / 2 / 0.99),
        (lambda t: 1 / t, np.log(100.0) / 0.99),
    ):
        values = (function(t) * factors).numpy()
        assert abs(values.mean() - integral) < 5 * values.std() / n**0.5
    weighted = (sde.beta(t) * sde.marginal(t).ell ** 2 * factors).numpy()
    # Constant but for the table's cells, in which the weight (about t^-3) varies by 1.4 %.
    assert weighted.std() / weighted.mean() < 0.02


def test_stratified_times_vary_less():
    """Of the mean of t^2 over n rows: `sum f'^2 h^2 / 12 / n^2` in strata of h, `var f / n` without."""
    sde, n, batches = CLD(), 32, 400
    spread = {}
    for method in ("uniform", "stratified"):
        t, _ = sample_times(n * batches, sde, t_min=0.01, method=method, batch=n, seed=1)
        means = t.reshape(batches, n).square().mean(1)
        exact = (1 - 0.01**3) / 3 / 0.99
        spread[method] = float(means.var())
        assert abs(float(means.mean()) - exact) < 5 * (spread[method] / batches) ** 0.5
    # (4/3) / 12 / n^3 against (4/45) / n: 1 / 819 at n = 32; estimates of 400 are good to 30 %.
    assert spread["stratified"] < 2e-3 * spread["uniform"]


def test_batches_of_times_are_those_of_each_batch():
    sde = CLD()
    for method in TIME_SAMPLING:
        together = sample_times(30, sde, method=method, batch=10, seed=1, first_index=40)
        apart = [
            sample_times(10, sde, method=method, seed=1, first_index=40 + k) for k in (0, 10, 20)
        ]
        for got, parts in zip(together, zip(*apart, strict=True), strict=True):
            assert torch.equal(got, torch.cat(parts))
    with pytest.raises(ValueError, match="whole batches of 7, got 30"):
        sample_times(30, sde, batch=7)


def test_unknown_time_sampling_is_refused():
    with pytest.raises(ValueError, match="unknown time sampling 'x'; expected one of uniform"):
        sample_times(3, CLD(), method="x")


@pytest.mark.parametrize("sde", SDES)
def test_perturbed_data_follow_the_kernel(backend, sde):
    n, t = 40000, 0.13
    x0 = torch.full((n, 1), 0.7, dtype=F64)
    u, _ = perturb(sde, x0, torch.full((n,), t, dtype=F64), seed=1, backend=backend)
    u, z = u.cpu(), addressed_noise(n, 1, 1).cpu()
    kernel = sde.marginal(t)
    d = np.diag(kernel.cov)
    assert np.all(np.abs(u.numpy().mean(0) - 0.7 * kernel.mean) < 5 * np.sqrt(d / n))
    error = np.sqrt((np.outer(d, d) + kernel.cov**2) / n)
    assert np.all(np.abs(np.cov(u.numpy().T) - kernel.cov) < 5 * error)
    expected = 0.7 * kernel.mean + z.numpy() @ kernel.factor.T
    assert np.allclose(u.numpy(), expected, atol=1e-14)


@pytest.mark.parametrize("sde", SDES)
@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
@pytest.mark.parametrize("weighting", [*WEIGHTINGS, lambda t: 1.0 + t])
def test_loss_vanishes_at_the_score_of_the_kernel(sde, parameterization, weighting):
    """The network that knows x0 returns the kernel's own score, for which the loss is zero."""
    x0, form = torch.randn(64, 3, dtype=F64), data_form(parameterization)

    def net(u, t):
        if form is not None and form.sees_y:
            sigma = t if parameterization != "edm" else torch.exp(4.0 * t)
            made = form.coefficients(sigma[:, None])
            return (x0 - made.keep * u / made.scale) / made.gain
        rows = []
        for i in range(u.shape[0]):
            kernel = sde.marginal(float(t[i]))
            to_score = score_map(sde, t[i : i + 1].numpy(), parameterization)
            state = u[i].reshape(2, 3).numpy()
            score = -kernel.precision @ (state - np.outer(kernel.mean, x0[i].numpy()))
            rest = score - to_score.from_state[0] @ state
            # In units of the noise, in which both rows are alike.
            scaled = kernel.factor.T @ to_score.from_output[0]
            rows.append(np.linalg.lstsq(scaled, kernel.factor.T @ rest, rcond=None)[0].ravel())
        return torch.from_numpy(np.stack(rows))

    loss = hsm_loss(net, sde, x0, weighting, parameterization, seed=4, t_min=0.01, reduction="none")
    zero = hsm_loss(
        lambda u, t: net(u, t) * 0, sde, x0, weighting, parameterization, seed=4, t_min=0.01,
        reduction="none",
    )  # fmt: skip
    assert loss.shape == (64,)
    # Against the size of the loss elsewhere; squares of float64 cancellation near t = 0.01.
    assert float(loss.max()) < 1e-16 * float(zero.max())


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_weightings_by_their_definition(weighting):
    """Against `w |s - s*|^2` written out with the inverse covariance, for a network that returns 0."""
    sde = SDES[1]
    t = torch.tensor([0.05, 0.3, 0.9], dtype=F64)
    noise = torch.randn(3, 4, dtype=F64)
    for parameterization, planes in (("score", 1), ("full_score", 2)):
        got = hsm_loss(
            lambda u, t, planes=planes: torch.zeros(3, 2 * planes, dtype=F64), sde,
            torch.zeros(3, 2, dtype=F64), weighting, parameterization, t=t, noise=noise,
            reduction="none",
        )  # fmt: skip
        for i in range(3):
            kernel, beta = sde.marginal(float(t[i])), float(sde.beta(float(t[i])))
            z = noise[i].reshape(2, 2).numpy()
            score = np.linalg.solve(kernel.cov, np.linalg.cholesky(kernel.cov) @ z)
            rows, D = score, sde.D
            if planes == 1:  # the error of s_v is one of x0, and that is one of s_x too
                pull = np.linalg.solve(kernel.cov, kernel.mean)
                rows = pull[:, None] / pull[1] * score[1]
            if weighting == "likelihood":
                expected = 0.5 * beta * np.sum(D[:, None] * rows**2)
            elif weighting == "det":
                expected = np.linalg.det(kernel.cov) * np.sum(rows**2)
            else:
                expected = np.sum(z**2) if planes == 2 else np.sum(z[1] ** 2)
                expected *= 0.5 * beta * sde.D[1] if weighting == "reweighted_g2" else 1.0
                if weighting == "edm":
                    expected *= 1.0 + 1.0 / (kernel.mean @ np.linalg.solve(kernel.cov, kernel.mean))
            assert float(got[i]) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("parameterization", ["score", "full_score"])
def test_dsm_target_is_the_score_given_the_initial_state(parameterization):
    """With zero data and a network that knows nothing, the residual is the noise itself."""
    sde = CLD(x_noise=0.3)
    x0 = torch.zeros(20000, 1, dtype=F64)
    loss = dsm_loss(
        lambda u, t: 0 * u if parameterization == "full_score" else 0 * u[:, 1:], sde, x0,
        parameterization=parameterization, seed=1, reduction="none",
    )  # fmt: skip
    mean = 2.0 if parameterization == "full_score" else 1.0
    assert float(loss.mean()) == pytest.approx(mean, abs=5 * (2 * mean / 20000) ** 0.5)


def test_dsm_and_hsm_share_their_minimiser():
    """At the exact score of Gaussian data both gradients vanish in the mean."""
    sde, n, t, var = CLD(x_noise=0.3), 100000, 0.2, 0.25
    x0 = torch.randn(n, 1, dtype=F64) * var**0.5
    exact = sde.marginal(t)
    cov = exact.cov + var * np.outer(exact.mean, exact.mean)
    row = torch.from_numpy(-np.linalg.inv(cov)[1])
    for loss in (hsm_loss, dsm_loss):
        scale = torch.ones(2, dtype=F64, requires_grad=True)
        rows = loss(
            lambda u, t, scale=scale: (u * (scale * row)).sum(1, keepdim=True), sde, x0,
            parameterization="score", seed=5, t=torch.full((n,), t, dtype=F64), reduction="none",
        )  # fmt: skip
        # The gradient's own size per row, from the residual's size 1: 2 |residual| |row u| / ell.
        grad = torch.autograd.grad(rows.mean(), scale)[0]
        typical = 2 * float(rows.detach().mean().sqrt()) * (row.numpy() ** 2 * np.diag(cov)) ** 0.5
        typical /= float(exact.ell)
        assert np.all(np.abs(grad.numpy()) < 8 * typical / n**0.5 + 1e-12)


@pytest.mark.parametrize("sde", SDES)
def test_minimiser_is_the_score_of_the_data(sde):
    """Least squares of the loss on linear networks gives the exact score of Gaussian data."""
    n, t, var = 200000, 0.3, 0.25
    x0 = torch.randn(n, 1, dtype=F64) * var**0.5
    times = torch.full((n,), t, dtype=F64)
    u, kernel = perturb(sde, x0, times, seed=2)
    z = addressed_noise(n, 1, 2)
    target = -kernel.ell[:, None] * z[:, 1:]
    fitted = torch.linalg.lstsq(u, target).solution[:, 0].numpy()
    exact = sde.marginal(t)
    cov = exact.cov + var * np.outer(exact.mean, exact.mean)
    expected = -np.linalg.inv(cov)[1]
    residual = float((target[:, 0] - u @ torch.from_numpy(expected)).std())
    error = residual * np.sqrt(np.diag(np.linalg.inv(cov)) / n)
    assert np.all(np.abs(fitted - expected) < 5 * error)


@pytest.mark.parametrize("parameterization", ["score", "noise", "mixed", *DATA_FORMS])
def test_float32_path_is_right_down_to_tiny_times(parameterization):
    """No jitter: states and targets at t = 1e-8 are finite and those of float64."""
    sde = CLD()
    t = torch.logspace(-8, 0, 200, dtype=F64)
    x0 = torch.randn(200, 5)
    noise = torch.randn(200, 10)
    single, _ = perturb(sde, x0, t, noise=noise)
    double, _ = perturb(sde, x0.to(F64), t, noise=noise.to(F64))
    assert bool(torch.isfinite(single).all())
    # Three terms of size up to about 5, rounded to float32.
    assert torch.allclose(single.to(F64), double, rtol=1e-6, atol=2e-6)
    form = data_form(parameterization)
    # One plane of noise for an isotropic loss.
    noise = noise[:, :5] if form is not None and form.sees_y else noise

    def net(u, t):
        return 0.1 * u[:, -5:]

    losses = [
        hsm_loss(
            net, sde, data, parameterization=parameterization, t=t, noise=z, reduction="none"
        ).to(F64)
        for data, z in ((x0, noise), (x0.to(F64), noise.to(F64)))
    ]
    assert bool(torch.isfinite(losses[0]).all())
    assert torch.allclose(losses[0], losses[1], rtol=2e-5, atol=1e-5)


def test_reductions_and_seeds(backend):
    sde, x0 = CLD(), torch.randn(10, 2, 4, 4)

    def net(u, t):
        return u[:, 2:] * t.reshape(-1, 1, 1, 1)

    arguments = {"seed": 6, "backend": backend}
    rows = hsm_loss(net, sde, x0, reduction="none", **arguments)
    assert rows.shape == (10,)
    assert torch.allclose(rows.mean(), hsm_loss(net, sde, x0, **arguments))
    assert torch.allclose(rows.sum(), hsm_loss(net, sde, x0, reduction="sum", **arguments))
    tail = hsm_loss(net, sde, x0[4:], reduction="none", first_index=4, **arguments)
    assert torch.allclose(rows[4:], tail)
    torch.manual_seed(1)
    first = hsm_loss(net, sde, x0)
    torch.manual_seed(1)
    assert torch.equal(first, hsm_loss(net, sde, x0))


def test_gradients_reach_the_network(backend):
    layer = torch.nn.Linear(4, 2)
    hsm_loss(lambda u, t: layer(u), CLD(), torch.randn(8, 2), backend=backend).backward()
    assert float(layer.weight.grad.abs().sum()) > 0.0


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"x0": torch.zeros(0, 2)}, ValueError, "non-empty"),
        ({"x0": torch.zeros(4, 2, dtype=torch.int64)}, TypeError, "float32 or float64"),
        ({"x0": None}, TypeError, "x0 must be a tensor, got NoneType"),
        ({"weighting": "best"}, ValueError, "unknown weighting 'best'"),
        ({"parameterization": "best"}, ValueError, "unknown parameterization 'best'"),
        ({"reduction": "best"}, ValueError, "reduction must be one of mean, sum, none"),
        ({"t": torch.zeros(3)}, ValueError, "t must be (4,)"),
        ({"t_min": 0.0}, ValueError, "t_min must lie in (0, T)"),
        ({"noise": torch.zeros(4, 2)}, ValueError, "noise must be (4, 4)"),
        ({"net": lambda u, t: u}, ValueError, "needs the network's output to have 2 along dimension 1, got 4"),
        ({"net": lambda u, t: 0.0}, TypeError, "the network's output must be a tensor, got float"),
    ],
)  # fmt: skip
def test_bad_arguments_are_refused(arguments, error, words):
    call = {"net": lambda u, t: u[:, 2:], "sde": CLD(), "x0": torch.zeros(4, 2), **arguments}
    with pytest.raises(error) as caught:
        hsm_loss(call.pop("net"), call.pop("sde"), call.pop("x0"), **call)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("weighting", "error", "words"),
    [
        (lambda t: t[:3], ValueError, "weighting(t) must be (8,) on cpu, got (3,) on cpu"),
        (lambda t: t[:, None], ValueError, "got (8, 1) on cpu"),
        (lambda t: 2.0, TypeError, "weighting(t) must be a tensor, got float"),
    ],
)
def test_a_weighting_that_does_not_fit_is_refused_before_the_network_runs(weighting, error, words):
    def net(u, t):
        raise AssertionError("the network was run")

    for times in ("uniform", "importance"):
        with pytest.raises(error) as caught:
            hsm_loss(net, CLD(), torch.randn(8, 2), weighting, times=times)
        assert words in str(caught.value)


def test_a_weighting_may_be_one_number_in_a_tensor():
    x0 = torch.randn(8, 2)
    losses = [
        hsm_loss(lambda u, t: u[:, 2:], CLD(), x0, weighting, seed=1, backend=backend)
        for weighting in (
            "reweighted",
            lambda t: torch.tensor(3.0),
            lambda t: torch.full((1,), 3.0),
        )
        for backend in ("auto", "reference")
    ]
    for loss in losses[2:]:
        assert torch.allclose(loss, 3.0 * losses[0], rtol=1e-5)
