"""StanislasStrasman/CLD itself beside `cldfast.compat.strasman`."""

from __future__ import annotations

from types import SimpleNamespace

import checkouts
import numpy as np
import pytest
import torch
import upstream_strasman as upstream
from strasman_cases import CASES, SAMPLERS, TOLERANCE, default_dtype, network  # noqa: F401

from cldfast import make_plan
from cldfast.compat import strasman
from cldfast.lab.data import Funnel
from cldfast.studies.position_noise import process
from cldfast.studies.recipes import RECIPES
from cldfast.training import Trainer
from cldfast.training.data_scale import DataScale

REASON = checkouts.missing(upstream.NAME)
pytestmark = pytest.mark.skipif(bool(REASON), reason=REASON)

F64 = torch.float64


def config(epsilon, **changes):
    return upstream.options(
        **{"a": 1.5, "epsilon": epsilon, "sigma": 1.2, "beta_min": 0.5, "beta_max": 7.0, **changes}
    )


@pytest.fixture
def theirs():
    with upstream.opened() as modules:
        yield modules


@pytest.fixture
def both(theirs):
    def made(epsilon, mode="published", **changes):
        settings = config(epsilon, **changes)
        ours = strasman.CriticallyDampedLangevin(settings, mode)
        return upstream.process(theirs, settings), ours

    return made


@pytest.mark.parametrize(("epsilon", "is_cld"), CASES)
@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("shape", [(5, 6), (3, 4, 2, 3)])
def test_published_samplers(both, recorded, dtype, epsilon, is_cld, name, shape):
    up, ours = both(epsilon)
    init = torch.randn(shape, dtype=dtype)
    recorded.clear()
    expected = getattr(up, name)(init, network(is_cld), 20, 1e-3, is_cld)
    got = getattr(ours, name)(init, network(is_cld), 20, 1e-3, is_cld, noise=list(recorded))
    assert got.dtype == dtype
    torch.testing.assert_close(got, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("name", SAMPLERS)
def test_published_samplers_draw_what_the_codebase_draws(both, name):
    up, ours = both(0.25)
    init = torch.randn(4, 6)
    results = []
    for sde in (up, ours):
        torch.manual_seed(5)
        results.append(getattr(sde, name)(init, network(False), 20, 1e-3, False))
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("epsilon", "is_cld"), CASES)
def test_published_steps(both, recorded, dtype, epsilon, is_cld):
    up, ours = both(epsilon)
    u, score, t = torch.randn(5, 6), network(is_cld), torch.tensor(0.4)
    for name, more in (("Euler_Maruyama_discr_step", ()), ("leapfrog_step", (score,))):
        recorded.clear()
        expected = getattr(up, name)(u, score(u, t), t, 0.05, is_cld, *more)
        got = getattr(ours, name)(u, score(u, t), t, 0.05, is_cld, *more, noise=list(recorded))
        torch.testing.assert_close(got, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("epsilon", [0.0, 0.25])
@pytest.mark.parametrize("shape", [(6, 4), (6, 4, 3, 2)])
def test_published_kernels(both, dtype, epsilon, shape):
    up, ours = both(epsilon)
    t = torch.linspace(0.01, 1.0, 6)
    u = torch.randn(shape)
    same = dict(rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    torch.testing.assert_close(ours.mean(u, t), up.mean(u, t), **same)
    torch.testing.assert_close(ours.mean_hsm(u, t), up.mean_hsm(u, t), **same)
    for name in ("cov", "cov_hsm"):
        for argument in (t, t[:, None]):
            expected = getattr(up, name)(argument)
            assert all(
                torch.equal(a, b)
                for a, b in zip(getattr(ours, name)(argument), expected, strict=True)
            )
    for a, b in zip(
        ours.compute_cholesky(*up.cov(t)), up.compute_cholesky(*up.cov(t)), strict=True
    ):
        assert torch.equal(a, b)
    assert torch.equal(ours.get_time_steps(7, 0.01), up.get_time_steps(7, 0.01))
    for hsm in (False, True):
        torch.manual_seed(3)
        expected = up.generate_forward(u, t, hsm)
        torch.manual_seed(3)
        for a, b in zip(ours.generate_forward(u, t, hsm), expected, strict=True):
            torch.testing.assert_close(a, b, **same)
    for dim in (3, (2, 4, 5)):
        torch.manual_seed(3)
        expected = up.sample_final(7, dim)
        torch.manual_seed(3)
        torch.testing.assert_close(ours.sample_final(7, dim), expected, **same)


@pytest.mark.parametrize("a", [0.0, 5e-4, 0.7, 2.0])
def test_published_schedule(theirs, dtype, a):
    up = theirs.schedule.beta_parametric(a, 1.5, 0.5, 7.0)
    ours = strasman.beta_parametric(a, 1.5, 0.5, 7.0, "published")
    t = torch.linspace(0.0, 1.5, 9)
    for _ in range(2):
        for f in ("__call__", "integrate", "square_integrate"):
            # Their closed form of the square cancels: about 4 beta_max^2 delta/a units of rounding.
            room = 1e-3 if f == "square_integrate" and a < 1 else 10 * TOLERANCE[dtype]
            if dtype == F64 or f != "square_integrate":
                torch.testing.assert_close(
                    getattr(ours, f)(t), getattr(up, f)(t), rtol=room, atol=room
                )
        for schedule in (up, ours):
            schedule.change_a(a + 1.0)


@pytest.mark.parametrize(("epsilon", "is_cld"), CASES)
@pytest.mark.parametrize("shape", [(64, 3), (64, 2, 3, 2)])
def test_published_loss(theirs, both, dtype, epsilon, is_cld, shape):
    up, ours = both(epsilon)
    x0 = torch.randn(shape)
    losses = []
    for module, sde in ((theirs.loss, up), (strasman, ours)):
        torch.manual_seed(11)
        losses.append(module.loss_hsm(network(is_cld), sde, 0.01)(x0, is_cld))
    # In single precision their determinant is a difference of products.
    room = 2e-3 if dtype == torch.float32 else 1e-11
    torch.testing.assert_close(losses[1], losses[0], rtol=room, atol=room)


@pytest.mark.parametrize(("epsilon", "is_cld"), CASES)
def test_exact_loss_has_their_mean(theirs, both, epsilon, is_cld):
    """Both average over times and noise; their jitter is set to zero, double precision."""
    torch.set_default_dtype(F64)
    try:
        up, ours = both(epsilon, "exact", numerical_eps=0.0)
        x0 = torch.randn(200_000, 2)
        parts = []
        for module, sde in ((theirs.loss, up), (strasman, ours)):
            loss = module.loss_hsm(network(is_cld), sde, 0.01)
            parts.append(torch.stack([loss(rows, is_cld) for rows in x0.split(2000)]))
    finally:
        torch.set_default_dtype(torch.float32)
    means = [p.mean() for p in parts]
    error = sum(p.var() / len(p) for p in parts).sqrt()
    # Five standard errors.
    assert abs(means[0] - means[1]) < 5 * error


def test_install_swaps_and_uninstall_puts_back(theirs):
    scope = SimpleNamespace()
    exec("from CLD import CriticallyDampedLangevin\nfrom loss import loss_hsm", vars(scope))
    before = theirs.CLD.CriticallyDampedLangevin
    strasman.install(mode="published")
    try:
        with pytest.raises(RuntimeError, match="already installed"):
            strasman.install()
        sde = theirs.CLD.CriticallyDampedLangevin(config(0.1))
        assert isinstance(sde, strasman.CriticallyDampedLangevin) and sde.mode == "published"
        assert theirs.loss.loss_hsm is strasman.loss_hsm
        assert theirs.CLD.beta_parametric is not strasman.beta_parametric
        assert theirs.CLD.beta_parametric.mode == "published"
    finally:
        strasman.uninstall()
    assert theirs.CLD.CriticallyDampedLangevin is before


def gaussian_score(sde, is_cld, data_var=0.49):
    """The exact score for data N(0, data_var), float32, t (B,) or scalar."""

    def score(u, t):
        kernel = sde.process.marginal(float(t.reshape(-1)[0]))
        m = kernel.mean
        precision = np.linalg.inv(kernel.cov + data_var * np.outer(m, m))
        x, v = u.chunk(2, 1)
        rows = [-(float(p[0]) * x + float(p[1]) * v) for p in precision]
        return rows[1] if is_cld else torch.cat(rows, 1)

    return score


@pytest.mark.parametrize(("epsilon", "is_cld"), CASES)
def test_law_of_the_samples(both, epsilon, is_cld):
    """Variance at 5e4 samples of both modes beside theirs, and beside the exact law of the plan."""
    n, steps = 50_000, 100
    up, ours = both(epsilon)
    exact = strasman.CriticallyDampedLangevin(config(epsilon))
    variance = {}
    for name, sde in (("up", up), ("published", ours), ("exact", exact)):
        init = sde.sample_final(n, 1)
        x = sde.Euler_Maruyama_discr_sampler(
            init, gaussian_score(exact, is_cld), steps, 1e-3, is_cld
        )
        assert abs(float(x.mean())) < 5 * float(x.std()) / n**0.5
        variance[name] = float(x.var())
    # A sample variance has the relative error sqrt(2/n); five of the difference of two.
    error = 5 * variance["up"] * (2.0 / n) ** 0.5 * 2**0.5
    assert abs(variance["published"] - variance["up"]) < error
    plan = make_plan(
        exact.process, "em", steps, "linear", 1e-3, "score" if is_cld else "full_score"
    )
    law = plan.gaussian_law(data_var=0.49).cov[0, 0]
    assert abs(variance["exact"] - law) < error


@pytest.mark.parametrize("x_noise", [0.0, 0.25])
def test_the_published_recipe_of_the_studies(theirs, x_noise):
    """The network of `study funnel --published` is theirs, and its training falls like theirs.

    Times, noise and rows are drawn by other generators, so losses are compared in the mean over
    the last 100 of 200 steps, with the standard error of the difference of the two means.
    """
    dim, steps, last = 20, 200, 100
    recipe = RECIPES["published"]
    net = recipe.network(dim, x_noise)
    other = theirs.model.DualDecoder(2 * dim, 512, 3, is_cld=x_noise == 0.0)
    parts = [other.decoder1, *([] if other.decoder2 is None else [other.decoder2])]
    for mine, their in zip(net.parts, parts, strict=True):
        pairs = [(their.in_fc, mine.first), (their.out_fc, mine.last)]
        pairs += [(layer.fc1, own) for layer, own in zip(their.temp_fc, mine.hidden, strict=True)]
        pairs += [(layer.enc, own) for layer, own in zip(their.temp_fc, mine.times, strict=True)]
        for layer, own in [*pairs, (their.t_proj[0], mine.embedding)]:
            layer.load_state_dict(own.state_dict())
    u, t = torch.randn(7, 2 * dim), torch.rand(7)
    torch.testing.assert_close(net(u, t), other(u, t), rtol=1e-5, atol=1e-6)

    rows = Funnel(dim).sample(5_000)
    rows = DataScale.fit(rows).standardise(rows)
    settings = config(x_noise, a=1.0, sigma=2.0**0.5, beta_min=4.0, beta_max=4.0)
    up = upstream.process(theirs, settings)
    optimiser = torch.optim.Adam(other.parameters(), lr=2e-4)
    loss = theirs.loss.loss_hsm(other, up, 1e-5)
    ema = theirs.ema.EMA(other, decay=0.9999)
    trainer = Trainer(net, process(1.0, x_noise), rows, recipe.config(x_noise, steps, 0))
    curves = [], []
    for _ in range(steps):
        batch = rows[torch.randint(len(rows), (256,))]
        curves[0].append(
            theirs.train.train_one_epoch(
                loss, other, [batch], settings, optimiser, ema, x_noise == 0.0
            )
        )
        curves[1].append(trainer.train_step()[0])
    first, second = (torch.tensor(curve[-last:], dtype=F64) for curve in curves)
    error = ((first.var() + second.var()) / last).sqrt()
    assert abs(first.mean() - second.mean()) < 4 * error
    assert second.mean() < 0.9 * curves[1][0]
