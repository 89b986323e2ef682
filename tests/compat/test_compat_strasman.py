"""`compat.strasman` beside its published formulas, written again from drift and noise matrices."""

from __future__ import annotations

import math
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.linalg import expm, solve_continuous_lyapunov
from strasman_cases import CASES, SAMPLERS, TOLERANCE, default_dtype, network  # noqa: F401

from cldfast import make_plan, run
from cldfast.compat import strasman

F64 = torch.float64


def config(epsilon, **changes):
    values = {
        "a": 1.5, "epsilon": epsilon, "sigma": 1.2, "device": torch.device("cpu"), "T": 1.0,
        "beta_min": 0.5, "beta_max": 7.0, "v0_var": 0.02, "numerical_eps": 1e-3,
    }  # fmt: skip
    return SimpleNamespace(**(values | changes))


def made(epsilon, mode="exact", **changes):
    return strasman.CriticallyDampedLangevin(config(epsilon, **changes), mode)


def rate(t):
    return 0.5 + 6.5 * t


def integral(t):
    return 0.5 * t + 3.25 * t * t


def drift_and_noise(epsilon):
    return np.array([[0.0, 1.5**2], [-1.0, -3.0]]), np.array([epsilon**2, 1.2**2])


def kernel(t, epsilon, start):
    """Propagator, and covariance from `start`, by a matrix exponential (Van Loan 1978)."""
    A, D = drift_and_noise(epsilon)
    blocks = expm(np.block([[-A, np.diag(D)], [np.zeros((2, 2)), A.T]]) * integral(t))
    phi = blocks[2:, 2:].T
    return phi, phi @ blocks[:2, 2:] + phi @ start @ phi.T


# --- published ---------------------------------------------------------------------------------


def planes(u):
    return u.double().chunk(2, 1)


def full(score, is_cld):
    score = score.double()
    return (0.0 * score, score) if is_cld else score.chunk(2, 1)


def published_times(steps, end):
    """Forward times 1 to `end`, and the length of a step."""
    times = [1 - (1 - end) * i / (steps - 1) for i in range(steps)]
    return times, times[0] - times[1]


def published_em(u, score, draws, steps, end, epsilon, is_cld):
    """A step of one spacing from each of the times, the last one too."""
    A, D = drift_and_noise(epsilon)
    draws, (times, h), (x, v) = iter(draws), published_times(steps, end), planes(u)
    for t in times:
        o = score(torch.cat([x, v], 1).to(u.dtype), torch.full((len(u),), t, dtype=u.dtype))
        s_x, s_v = full(o, is_cld)
        z_x, z_v = (next(draws).double() for _ in range(2))
        w, spread = h * rate(t), (h * rate(t) * D) ** 0.5
        x, v = (
            x - w * (A[0, 0] * x + A[0, 1] * v) + w * D[0] * s_x + spread[0] * z_x,
            v - w * (A[1, 0] * x + A[1, 1] * v) + w * D[1] * s_v + spread[1] * z_v,
        )
    return x


def published_leapfrog(u, score, draws, steps, end, epsilon, is_cld):
    """Kick and drift at t, noise of the whole step, drift and kick with what holds at t + h/2."""
    A, D = drift_and_noise(epsilon)
    draws, (times, h), (x, v) = iter(draws), published_times(steps, end), planes(u)

    def ask(t):
        state = torch.cat([x, v], 1).to(u.dtype)
        return full(score(state, torch.tensor(t, dtype=u.dtype)), is_cld)

    for t in times:
        s_x, s_v = ask(t)
        w = 0.5 * h * rate(t)
        v = v + w * (-A[1, 0] * x - A[1, 1] * v + D[1] * s_v)
        x = x + w * (-A[0, 1] * v + D[0] * s_x)
        x = x + (h * rate(t) * D[0]) ** 0.5 * next(draws).double()
        v = v + (h * rate(t) * D[1]) ** 0.5 * next(draws).double()
        s_x, s_v = ask(t + 0.5 * h)
        w = 0.5 * h * rate(t + 0.5 * h)
        x = x + w * (-A[0, 1] * v + D[0] * s_x)
        v = v + w * (-A[1, 0] * x - A[1, 1] * v + D[1] * s_v)
    return x


@pytest.mark.parametrize(("epsilon", "is_cld"), CASES)
@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("shape", [(5, 6), (3, 2, 2, 3)])
def test_published_samplers_follow_the_formulas(dtype, epsilon, is_cld, name, shape):
    init = torch.randn(shape, dtype=dtype)
    draws = [torch.randn(shape[0], shape[1] // 2, *shape[2:], dtype=dtype) for _ in range(40)]
    formula = published_em if name.startswith("Euler") else published_leapfrog
    expected = formula(init, network(is_cld), draws, 20, 1e-2, epsilon, is_cld)
    sampler = getattr(made(epsilon, "published"), name)
    got = sampler(init, network(is_cld), 20, 1e-2, is_cld, noise=draws)
    assert got.dtype == dtype
    room = TOLERANCE[dtype] * max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(got.double(), expected, rtol=0.0, atol=room)


@pytest.mark.parametrize("name", SAMPLERS)
def test_published_draws_are_of_the_default_generator_x_before_v(name):
    sde, init = made(0.25, "published"), torch.randn(4, 6)
    torch.manual_seed(3)
    got = getattr(sde, name)(init, network(False), 5, 1e-2)
    torch.manual_seed(3)
    draws = [torch.randn(4, 3) for _ in range(10)]
    expected = getattr(sde, name)(init, network(False), 5, 1e-2, noise=draws)
    assert torch.equal(got, expected)


def test_noise_of_the_wrong_number_or_shape_is_refused():
    sde, init = made(0.25, "published"), torch.randn(4, 6)
    with pytest.raises(ValueError, match=r"after 2 tensors one of shape \(4, 3\) is missing"):
        sde.Euler_Maruyama_discr_sampler(
            init, network(False), 5, 1e-2, noise=[torch.randn(4, 3)] * 2
        )
    with pytest.raises(ValueError, match=r"noise\[0\] must have shape \(4, 3\), got \(4, 6\)"):
        sde.Euler_Maruyama_discr_sampler(init, network(False), 5, 1e-2, noise=[torch.randn(4, 6)])


@pytest.mark.parametrize("mode", ["exact", "published"])
@pytest.mark.parametrize("epsilon", [0.0, 0.25])
def test_kernels(mode, epsilon):
    """Both modes, but for the jitter of the published one."""
    sde = made(epsilon, mode)
    jitter = np.eye(2) * (1e-3 if mode == "published" else 0.0)
    t = torch.tensor([0.05, 0.4, 1.0], dtype=F64)
    u = torch.randn(3, 6, dtype=F64)
    x, v = u.chunk(2, 1)
    exact = [kernel(float(s), epsilon, np.zeros((2, 2))) for s in t]
    hybrid = [kernel(float(s), epsilon, np.diag([0.0, 0.02])) for s in t]
    moved = [phi[0, 0] * x[i] + phi[0, 1] * v[i] for i, (phi, _) in enumerate(exact)]
    assert np.allclose(sde.mean(u, t)[:, :3], torch.stack(moved), atol=1e-13)
    expected = [phi[1, 0] * x[i] for i, (phi, _) in enumerate(exact)]
    assert np.allclose(sde.mean_hsm(x, t)[:, 3:], torch.stack(expected), atol=1e-13)
    for got, parts in ((sde.cov(t), exact), (sde.cov_hsm(t[:, None]), hybrid)):
        for i, (_, cov) in enumerate(parts):
            entries = [float(e[i]) for e in got]
            assert np.allclose(entries, (cov + jitter)[[0, 0, 1], [0, 1, 1]], rtol=1e-9)
    z = torch.randn(3, 6, dtype=F64)
    for hsm, parts in ((False, exact), (True, hybrid)):
        state, scaled, back = sde.generate_forward(x if hsm else u, t, hsm, noise=z)
        mean = sde.mean_hsm(x, t) if hsm else sde.mean(u, t)
        assert torch.equal(back, z) and torch.allclose(state, mean + scaled, atol=1e-13)
        for i, (_, cov) in enumerate(parts):
            L = np.linalg.cholesky(cov + jitter)
            pair = np.stack(z[i].chunk(2))
            assert np.allclose(np.concatenate(L @ pair), scaled[i], atol=1e-8)


@pytest.mark.parametrize("mode", ["exact", "published"])
@pytest.mark.parametrize("hsm", [True, False])
def test_what_generate_forward_draws(mode, hsm):
    """Its own normals: unit variance, and the three results belong together."""
    sde, n = made(0.25, mode), 20_000
    u = torch.full((n, 1 if hsm else 2), 0.7)
    state, scaled, z = sde.generate_forward(u, torch.full((n,), 0.4), hsm)
    mean = sde.mean_hsm(u[:1], torch.tensor([0.4])) if hsm else sde.mean(u[:1], torch.tensor([0.4]))
    assert torch.allclose(state - scaled, mean.expand(n, 2), atol=1e-5)
    # Five standard errors of a mean and of a variance.
    assert torch.all(z.mean(0).abs() < 5 / n**0.5)
    assert torch.all((z.var(0) - 1).abs() < 5 * (2 / n) ** 0.5)


def test_exact_kernels_hold_where_the_published_ones_need_jitter():
    t = torch.tensor([1e-5])
    exact, published = made(0.0), made(0.0, "published", numerical_eps=0.0)
    parts = [math.isfinite(float(e)) for e in exact.compute_cholesky(*exact.cov(t))]
    assert all(parts)
    _, cov = kernel(1e-5, 0.0, np.zeros((2, 2)))
    # Without noise on the position its variance goes like t^3, below what a difference can hold.
    assert float(exact.cov(t)[0]) == pytest.approx(cov[0, 0], rel=1e-3, abs=0.0)
    assert abs(float(published.cov(t)[0]) / cov[0, 0] - 1.0) > 0.5


@pytest.mark.parametrize("mode", ["exact", "published"])
@pytest.mark.parametrize("dim", [3, (2, 3, 4)])
def test_prior(mode, dim):
    sde = made(0.25, mode)
    u = sde.sample_final(5000, dim)
    assert u.shape == ((5000, 6) if dim == 3 else (5000, 4, 3, 4)) and u.dtype == torch.float32
    x, v = (half.flatten().double() for half in u.chunk(2, 1))
    A, D = drift_and_noise(0.25)
    cov = solve_continuous_lyapunov(A, -np.diag(D))
    n = x.numel()
    got = np.cov(torch.stack([x, v]).numpy())
    error = np.sqrt((np.outer(np.diag(cov), np.diag(cov)) + cov**2) / n)
    assert np.all(np.abs(got - cov) < 5 * error)


@pytest.mark.parametrize(("epsilon", "is_cld"), CASES)
@pytest.mark.parametrize("shape", [(32, 3), (16, 2, 3, 2)])
def test_published_loss_follows_the_formula(dtype, epsilon, is_cld, shape):
    """`|s/ell + z_v|^2`, or `det |s + Sigma^-1 L z|^2`: summed over dimension 1, else averaged."""
    sde = made(epsilon, "published")
    x0 = torch.randn(shape)
    t = torch.linspace(0.05, 1.0, shape[0])
    z = torch.randn(shape[0], 2 * shape[1], *shape[2:])
    got = strasman.loss_hsm(network(is_cld), sde, 0.01)(x0, is_cld, t=t, noise=z)
    terms = []
    for i, s in enumerate(t.tolist()):
        phi, cov = kernel(s, epsilon, np.diag([0.0, 0.02]))
        cov = cov + 1e-3 * np.eye(2)
        L = np.linalg.cholesky(cov)
        pair = np.stack(z[i].double().chunk(2))
        u = np.tensordot(L, pair, 1) + phi[:, :1].reshape(2, *[1] * (x0.dim() - 1)) * x0[i].numpy()
        state = torch.from_numpy(np.concatenate(u))[None].to(dtype)
        score = full(network(is_cld)(state, t[i : i + 1]), is_cld)
        score = np.stack([part[0].numpy() for part in score])
        if is_cld:
            ell = math.sqrt(cov[0, 0] / np.linalg.det(cov))
            terms.append((score[1] / ell + pair[1]) ** 2)
        else:
            away = score + np.tensordot(np.linalg.inv(cov) @ L, pair, 1)
            terms.append(np.linalg.det(cov) * (away**2).sum(0))
    expected = float(np.stack(terms).sum(1).mean())
    # In single precision their covariance is a difference, 6e-8 beside a jitter of 1e-3.
    assert float(got) == pytest.approx(expected, rel=1e-3 if dtype == torch.float32 else 1e-10)


# --- exact -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("epsilon", "is_cld"), CASES)
@pytest.mark.parametrize(("name", "solver"), [*zip(SAMPLERS, ["em", "leapfrog"], strict=True)])
def test_exact_samplers_are_plans_with_times_from_T_to_the_end(epsilon, is_cld, name, solver):
    sde = made(epsilon, T=1.4)
    plan = make_plan(
        sde.process, solver, 7, "linear", 0.01, "score" if is_cld else "full_score"
    )  # fmt: skip
    init = torch.randn(4, 6, dtype=F64)
    noise = [torch.randn(4, 6, dtype=F64) for _ in plan.stages]
    asked = []

    def score(u, t):
        asked.append(float(t.reshape(-1)[0]))
        return network(is_cld)(u, t)

    got = getattr(sde, name)(init, score, 7, 0.01, is_cld, noise=noise)
    expected = run(plan, network(is_cld), init, noise=noise)
    assert torch.equal(got, expected[:, :3])
    assert asked == [stage.t for stage in plan.stages if stage.t is not None]
    assert asked[0] == 1.4 and asked == sorted(asked, reverse=True)
    steps = sde.get_time_steps(7, 0.01)
    assert np.allclose(steps, plan.grid[:-1], rtol=1e-6)


def test_exact_samples_are_governed_by_the_default_generator():
    sde, init = made(0.25), torch.randn(4, 6)
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(sde.leapfrog_sampler(init, network(False), 4, 1e-2))
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])


@pytest.mark.parametrize("mode", ["exact", "published"])
@pytest.mark.parametrize(("epsilon", "is_cld"), CASES)
def test_steps_make_up_the_samplers(mode, epsilon, is_cld):
    """A sampler of the mode, written with its own step."""
    sde, score = made(epsilon, mode), network(is_cld)
    init = torch.randn(4, 6, dtype=F64)
    times = sde.get_time_steps(5, 0.1).double()
    h = float(times[0] - times[1])
    for name, step in zip(SAMPLERS, ("Euler_Maruyama_discr_step", "leapfrog_step"), strict=True):
        draws = [torch.randn(4, 3, dtype=F64) for _ in range(10)]
        u = init
        more = (score,) if step.startswith("leap") else ()
        for k, t in enumerate(times):
            pair = draws[2 * k : 2 * k + 2]
            u = getattr(sde, step)(u, score(u, t), t, h, is_cld, *more, noise=pair)
        noise = draws
        if mode == "exact":
            noise = [torch.cat(draws[2 * k : 2 * k + 2], 1) for k in range(5)]
            if more:
                noise = [z for pair in zip(noise, [None] * 5, strict=True) for z in pair]
        expected = getattr(sde, name)(init, score, 5, 0.1, is_cld, noise=noise)
        # Times of single precision.
        torch.testing.assert_close(u[:, :3], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", ["exact", "published"])
def test_a_changed_process_is_another_one(mode):
    init, noise = torch.randn(4, 6), [torch.randn(4, 3) for _ in range(10)]
    if mode == "exact":
        noise = [torch.cat(noise[2 * k : 2 * k + 2], 1) for k in range(5)]
    changed, other = made(0.25, mode), made(0.25, mode, sigma=2.0)
    results = []
    for sigma in (1.2, 2.0):
        changed.sigma = sigma
        results.append(
            changed.Euler_Maruyama_discr_sampler(init, network(False), 5, 0.1, noise=noise)
        )
    expected = other.Euler_Maruyama_discr_sampler(init, network(False), 5, 0.1, noise=noise)
    assert torch.equal(results[1], expected) and not torch.equal(results[0], expected)


def test_a_step_draws_its_own_noise():
    sde, u = made(0.25), torch.zeros(20_000, 2)
    t, score = torch.tensor(0.5), torch.zeros(20_000, 2)
    out = sde.Euler_Maruyama_discr_step(u, score, t, 0.1, False)
    expected = torch.tensor([0.25**2, 1.2**2]) * 0.1 * rate(0.5)
    assert torch.all((out.var(0) / expected - 1).abs() < 5 * (2 / 20_000) ** 0.5)
    again = sde.leapfrog_step(u, score, t, 0.1, False, lambda u, t: 0 * u)
    assert torch.all(again.std(0) > 0)


@pytest.mark.parametrize(("epsilon", "is_cld"), CASES)
@pytest.mark.parametrize("shape", [(32, 3), (16, 2, 3, 2)])
def test_exact_loss_is_the_published_one_without_jitter(epsilon, is_cld, shape):
    x0 = torch.randn(shape, dtype=F64)
    t = torch.linspace(0.05, 1.0, shape[0], dtype=F64)
    z = torch.randn(shape[0], 2 * shape[1], *shape[2:], dtype=F64)
    losses = [
        strasman.loss_hsm(network(is_cld), made(epsilon, mode, numerical_eps=0.0), 0.01)(
            x0, is_cld, t=t, noise=z
        )
        for mode in ("exact", "published")
    ]
    # The published covariance cancels: about 1e-16 over its smallest entry at t = 0.05.
    assert float(losses[0]) == pytest.approx(float(losses[1]), rel=1e-9)


def test_loss_draws_times_and_has_gradients():
    net = torch.nn.Linear(4, 2)
    for mode in ("exact", "published"):
        loss = strasman.loss_hsm(lambda u, t: net(u), made(0.0, mode), 1e-3)
        torch.manual_seed(0)
        first, second = loss(torch.randn(16, 2), True), loss(torch.randn(16, 2), True)
        assert float(first) != float(second)
        net.zero_grad()
        first.backward()
        assert all(float(p.grad.abs().sum()) > 0 for p in net.parameters())


def test_loss_takes_an_sde_of_the_codebase():
    """Any object with its attributes."""
    ours = made(0.25)
    theirs = SimpleNamespace(
        a=1.5, epsilon=0.25, sigma=1.2, v0_var=0.02, final_time=1.0,
        beta=SimpleNamespace(a=0, beta_min=0.5, beta_max=7.0),
    )  # fmt: skip
    x0, z, t = torch.randn(8, 3), torch.randn(8, 6), torch.rand(8) + 0.01
    losses = [strasman.loss_hsm(network(False), s, 0.01)(x0, t=t, noise=z) for s in (ours, theirs)]
    assert torch.equal(losses[0], losses[1])
    with pytest.raises(TypeError, match="sde must be a CriticallyDampedLangevin with a, epsilon"):
        strasman.loss_hsm(network(False), object(), 0.01)


# --- schedule and switch -----------------------------------------------------------------------


@pytest.mark.parametrize("a", [0.0, 1e-4, 0.7, 3.0, -2.0])
def test_schedule(a):
    beta = strasman.beta_parametric(0, 1.5, 0.5, 7.0)
    beta.change_a(a)
    t = torch.linspace(0.0, 1.5, 7, dtype=F64)
    assert float(beta(t)[0]) == pytest.approx(0.5) and float(beta(t)[-1]) == pytest.approx(7.0)
    # Gauss-Legendre quadrature of the rate, and of its square.
    nodes, weights = np.polynomial.legendre.leggauss(30)
    for s in t[1:].tolist():
        at = torch.from_numpy(0.5 * s * (nodes + 1))
        values, room = beta(at).numpy(), dict(rel=1e-11)
        one = torch.tensor([s], dtype=F64)
        assert float(beta.integrate(one)) == pytest.approx(0.5 * s * values @ weights, **room)
        square = 0.5 * s * (values**2) @ weights
        assert float(beta.square_integrate(one)) == pytest.approx(square, **room)
    published = strasman.beta_parametric(0, 1.5, 0.5, 7.0, "published")
    published.change_a(a)
    if abs(a) > 1e-3 or a == 0:
        for name in ("__call__", "integrate", "square_integrate"):
            assert torch.allclose(getattr(published, name)(t), getattr(beta, name)(t), rtol=1e-9)
    assert beta(t.float()).dtype == torch.float32


def test_published_schedule_of_a_tiny_shape_keeps_its_slip():
    """The slope of the exponential in the formula of the line, for 0 < |a| < 1e-3."""
    beta = strasman.beta_parametric(1e-4, 1.0, 0.5, 7.0, "published")
    assert float(beta(torch.tensor(1.0))) == pytest.approx(0.5 + 6.5 / math.expm1(1e-4))
    assert float(strasman.beta_parametric(1e-4, 1.0, 0.5, 7.0)(torch.tensor(1.0))) == 7.0


def test_unknown_modes_are_refused():
    with pytest.raises(ValueError, match="mode must be one of exact, published, got 'fast'"):
        made(0.0, "fast")


def test_install_finds_every_name_and_uninstall_puts_them_back(monkeypatch):
    modules = {name: ModuleType(name) for name in ("CLD", "loss", "schedule", "script")}
    old = [type(n, (), {}) for n in ("CriticallyDampedLangevin", "loss_hsm", "beta_parametric")]
    modules["CLD"].CriticallyDampedLangevin, modules["loss"].loss_hsm = old[:2]
    modules["schedule"].beta_parametric = modules["CLD"].beta_parametric = old[2]
    # As `from CLD import CriticallyDampedLangevin` leaves it.
    modules["script"].CriticallyDampedLangevin = old[0]
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    strasman.install(mode="published")
    try:
        with pytest.raises(RuntimeError, match="already installed"):
            strasman.install()
        assert modules["script"].CriticallyDampedLangevin(config(0.1)).mode == "published"
        assert modules["loss"].loss_hsm is strasman.loss_hsm
        assert modules["CLD"].beta_parametric.mode == "published"
    finally:
        strasman.uninstall()
    assert modules["script"].CriticallyDampedLangevin is old[0]
    assert modules["CLD"].CriticallyDampedLangevin is old[0]
    assert modules["CLD"].beta_parametric is old[2]
    strasman.uninstall()
