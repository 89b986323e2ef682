"""mandt-lab/PSLD itself beside `cldfast.compat.psld`."""

from __future__ import annotations

import checkouts
import numpy as np
import pytest
import torch
import upstream_psld as upstream
from psld_cases import CASES as OTHER_CASES
from psld_cases import classifier, network, rows_of

from cldfast.compat import psld
from cldfast.compat.psld.process import factor

REASON = checkouts.missing(upstream.NAME)
pytestmark = pytest.mark.skipif(bool(REASON), reason=REASON)

F64 = torch.float64
CASES = [(0.01, 4.01, "lower"), (0.01, 4.01, "upper"), *OTHER_CASES[1:]]
IDS = ["-".join(map(str, case)) for case in CASES]


def config(gamma, nu, decomposition, **changes):
    return upstream.options(
        gamma=gamma, nu=nu, decomp_mode=decomposition,
        **{"beta_min": 2.0, "beta_max": 9.0, **changes},
    )  # fmt: skip


@pytest.fixture
def theirs():
    with upstream.opened() as modules:
        yield modules


@pytest.fixture
def made(theirs):
    """Their sampler (or loss) and ours, of one name in their registry, and their SDE."""

    def pair(category, name, settings, *more, mode="published"):
        sde = upstream.process(theirs, settings)
        up = theirs.util.get_module(category, name)
        ours = psld.REGISTERED[category][name]
        return up(settings, sde, *more), ours(settings, sde, *more, mode=mode), sde

    return pair


def times(steps=20, eps=1e-3):
    return torch.linspace(0, 1.0 - eps, steps + 1, dtype=F64)


def close(got, expected, precise=True):
    assert got.dtype == F64 == expected.dtype
    # Relative to the state's size, which grows as scores of an arbitrary network make it.
    room = (1e-11 if precise else 1e-5) * max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(got, expected, rtol=0.0, atol=room)


@pytest.mark.parametrize("case", CASES, ids=IDS)
@pytest.mark.parametrize("name", ["em_sde", "sscs_sde"])
@pytest.mark.parametrize("denoise", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_published_samplers(made, recorded, case, name, denoise, dtype):
    up, ours, _ = made("samplers", name, config(*case), network(case, dtype))
    batch = torch.randn(4, 6, dtype=dtype)
    recorded.clear()
    expected = up.sample(batch, times(), 20, denoise)
    got = ours.sample(batch, times(), 20, denoise, noise=list(recorded))
    close(got, expected, precise=dtype == F64)


def test_published_draws_are_those_of_the_codebase(made):
    up, ours, _ = made("samplers", "sscs_sde", config(0.01, 4.01, "upper"), network(CASES[1]))
    batch, results = torch.randn(4, 2, 3, 3), []
    for sampler in (up, ours):
        torch.manual_seed(5)
        results.append(sampler.sample(batch, times(), 20))
    close(results[1], results[0])


@pytest.mark.parametrize("name", ["em_sde", "sscs_sde"])
def test_correctors_are_called_alike(made, recorded, name):
    def corrector(u, t, dt):
        return u * (1 - 0.1 * dt) + 0.01 * t, u

    settings = config(0.01, 4.01, "lower")
    up, ours, _ = made("samplers", name, settings, network(CASES[1]))
    up.corrector_fn = ours.corrector_fn = corrector
    batch = torch.randn(4, 6, dtype=F64)
    recorded.clear()
    expected = up.sample(batch, times(), 20)
    close(ours.sample(batch, times(), 20, noise=list(recorded)), expected)


@pytest.mark.parametrize("case", CASES[:4], ids=IDS[:4])
def test_published_class_conditional(made, recorded, case):
    settings = config(*case)
    up, ours, _ = made("samplers", "cc_em_sde", settings, network(case), classifier)
    batch = torch.randn(4, 6)
    recorded.clear()
    expected = up.sample(batch, times(), 20)
    # The classifier's gradient is of single precision in both.
    close(ours.sample(batch, times(), 20, noise=list(recorded)), expected, precise=False)


@pytest.mark.parametrize("training", ["hsm", "dsm"])
@pytest.mark.parametrize("case", CASES[:4], ids=IDS[:4])
@pytest.mark.parametrize("denoise", [True, False])
def test_published_inpainting(made, recorded, case, training, denoise):
    settings = config(*case, mode=training)
    up, ours, _ = made("samplers", "ip_em_sde", settings, network(case))
    data = torch.randn(3, 2, 4, 4, dtype=F64)
    mask = (torch.rand(3, 1, 4, 4) < 0.5).float()
    recorded.clear()
    expected = up.sample((data, mask), times(), 20, denoise)
    close(ours.sample((data, mask), times(), 20, denoise, noise=list(recorded)), expected)


@pytest.mark.parametrize("case", CASES, ids=IDS)
@pytest.mark.parametrize("denoise", [True, False])
def test_published_flow(made, case, denoise):
    up, ours, _ = made("samplers", "bb_ode", config(*case), network(case))
    batch = torch.randn(4, 6, dtype=F64)
    expected = up.sample(batch, times(), 20, denoise)
    got = ours.sample(batch, times(), 20, denoise)
    # An adaptive solver that takes the same steps: the network sees single precision.
    close(got, expected, precise=False)
    assert ours.nfe == up.nfe and ours.mean_nfe == up.mean_nfe == ours.n_steps


@pytest.mark.parametrize("case", CASES, ids=IDS)
@pytest.mark.parametrize("training", ["hsm", "dsm"])
@pytest.mark.parametrize("mean", [True, False])
@pytest.mark.parametrize("shape", [(64, 3), (16, 3, 4, 2)])
def test_published_loss(made, case, training, mean, shape):
    settings = config(*case, mode=training, reduce_mean=mean)
    up, ours, _ = made("losses", "psld_score_loss", settings)
    x_0 = torch.randn(shape, dtype=F64)
    t = torch.rand(shape[0], dtype=F64) * 0.99 + 0.01
    losses = []
    for loss in (up, ours):
        torch.manual_seed(3)
        losses.append(loss(x_0, t, network(case)))
    # The perturbed data are rounded to single precision, alike but for ties.
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-7, atol=0.0)


@pytest.mark.parametrize("case", CASES, ids=IDS)
@pytest.mark.parametrize("training", ["hsm", "dsm"])
def test_exact_loss_has_their_mean(made, case, training):
    settings = config(*case, mode=training)
    up, ours, _ = made("losses", "psld_score_loss", settings, mode="exact")
    parts = []
    for loss in (up, ours):
        values = []
        for _ in range(60):
            x_0, t = torch.randn(2000, 1), torch.rand(2000, dtype=F64) * 0.99 + 0.01
            values.append(loss(x_0, t, network(case)))
        parts.append(torch.stack(values))
    means = [p.mean() for p in parts]
    error = sum(p.var() / len(p) for p in parts).sqrt()
    assert abs(means[0] - means[1]) < 5 * error


def gaussian_noise(sde, chosen, data_var=0.49):
    """The exact prediction for data N(0, data_var): `eps = -C^T score`."""
    process = psld.process_of(sde)

    def score_fn(u, t):
        kernel = process.marginal(float(t[0]))
        m = kernel.mean
        precision = np.linalg.inv(kernel.cov + data_var * np.outer(m, m))
        gain = (factor(kernel.covariance, sde.decomp_mode).T @ precision).tolist()
        x, v = u.chunk(2, 1)
        planes = [gain[r][0] * x + gain[r][1] * v for r in chosen]
        return torch.cat(planes, 1)

    return score_fn


@pytest.mark.parametrize("name", ["em_sde", "sscs_sde"])
@pytest.mark.parametrize("case", [CASES[0], CASES[1], CASES[3]], ids=str)
def test_law_of_the_samples(made, name, case):
    """Variances at 4e4 samples of both modes beside theirs, constant rate."""
    n, steps = 40_000, 60
    settings = config(*case, beta_min=8.0, beta_max=8.0)
    up, ours, sde = made("samplers", name, settings, None)
    exact = psld.REGISTERED["samplers"][name](settings, sde, None, mode="exact")
    variance = {}
    for key, sampler in (("up", up), ("published", ours), ("exact", exact)):
        sampler.score_fn = gaussian_noise(sde, rows_of(*case))
        u = sampler.sample(sde.prior_sampling((n, 1)), times(steps), steps, True)
        x = u[:, 0]
        assert abs(float(x.mean())) < 5 * float(x.std()) / n**0.5
        variance[key] = float(x.var())
    error = 5 * variance["up"] * (2.0 / n) ** 0.5 * 2**0.5
    assert abs(variance["published"] - variance["up"]) < error
    if name == "em_sde":
        assert abs(variance["exact"] - variance["up"]) < error
    # The exact splitting asks in the middle of a step, so its error is another one.
    assert abs(variance["exact"] - 0.49) < abs(variance["up"] - 0.49) + error


def test_install_swaps_and_uninstall_puts_back(theirs):
    get = theirs.util.get_module
    before = {n: get("samplers", n) for n in psld.REGISTERED["samplers"]}
    psld.install(mode="published")
    try:
        with pytest.raises(RuntimeError, match="already installed"):
            psld.install()
        for name, cls in psld.REGISTERED["samplers"].items():
            assert issubclass(get("samplers", name), cls)
            assert get("samplers", name).mode == "published"
        assert issubclass(get("losses", "psld_score_loss"), psld.PSLDScoreLoss)
    finally:
        psld.uninstall()
    assert all(get("samplers", n) is cls for n, cls in before.items())
