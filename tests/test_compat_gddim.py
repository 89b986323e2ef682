"""`compat.gddim`: coefficients against integrals by other means, layouts, samplers, both modes."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import quad_vec, solve_ivp

import cldfast
from cldfast.compat import gddim
from cldfast.parameterization import score_map

GRID = gddim.rev_times(6)
CASES = [(beta_1, eps) for beta_1 in (0.0, 3.0) for eps in (0.0, 1e-6)]


@pytest.fixture(params=CASES, ids=str)
def cld(request: pytest.FixtureRequest) -> gddim.CLD:
    beta_1, eps = request.param
    return gddim.CLD(beta_1=beta_1, numerical_eps=eps)


@pytest.fixture(scope="module")
def published() -> gddim.CLD:
    return gddim.CLD(beta_1=3.0, mode="published")


def flow(cld: gddim.CLD, start: float) -> Any:
    """R by its differential equation from its value at a time, with a Runge-Kutta of order 8."""

    def slope(t: float, entries: np.ndarray) -> np.ndarray:
        R, G = entries.reshape(2, 2), cld.G(t)
        result: np.ndarray = cld.F(t) @ R + 0.5 * G @ G.T @ np.linalg.inv(R).T
        return result.ravel()

    solution = solve_ivp(
        slope,
        (start, 1.0),
        cld.R(start).ravel(),
        "DOP853",
        dense_output=True,
        rtol=1e-12,
        atol=1e-15,
    )
    return lambda t: solution.sol(t).reshape(2, 2)


def test_factors_solve_their_equation(cld: gddim.CLD) -> None:
    start = 0.0 if cld.numerical_eps else 1e-5
    R = flow(cld, start)
    at = np.array([1e-3, 0.02, 0.3, 1.0])
    # The dense output of the reference is of order 7, its tolerance 1e-12.
    np.testing.assert_allclose(cld.R(at), [R(t) for t in at], rtol=0, atol=1e-9)
    np.testing.assert_allclose(cld.L(at), np.linalg.cholesky(cld.cov(at)), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(
        cld.R(at) @ cld.inverse_factor(at), np.broadcast_to(np.eye(2), (4, 2, 2)), atol=1e-11
    )


def test_factor_starts_on_the_diagonal(cld: gddim.CLD) -> None:
    eps = cld.numerical_eps
    wanted = np.diag([math.sqrt(eps), math.sqrt(0.04 / 4.0 + eps)])
    np.testing.assert_allclose(cld.R(0.0), wanted, rtol=1e-14, atol=0)


def test_covariance_is_the_kernels() -> None:
    cld = gddim.CLD(beta_1=3.0)
    at = np.array([1e-3, 0.3, 1.0])
    np.testing.assert_allclose(cld.cov(at), cld.sde.marginal(at).cov, rtol=1e-13)
    np.testing.assert_allclose(cld.psi(0.0, at), cld.sde.transition(cld.sde.tau(at)).phi)
    np.testing.assert_allclose(
        cld.psi(at, 0.1) @ cld.psi(0.1, at), np.stack([np.eye(2)] * 3), atol=1e-12
    )


def integral(cld: gddim.CLD, k: int, nodes: np.ndarray, form: str) -> np.ndarray:
    t, s = GRID[k], GRID[k + 1]

    def inner(log_r: float) -> np.ndarray:
        r = math.exp(log_r)
        G = cld.G(r)
        kernel = cld.psi(r, s) @ (0.5 * G @ G @ np.linalg.inv(cld.factor(r, form)).T)
        basis = [np.prod([(r - b) / (a - b) for b in nodes if b != a]) for a in nodes]
        return np.multiply.outer(basis, kernel) * r

    return np.asarray(quad_vec(inner, math.log(t), math.log(s), epsrel=1e-11, epsabs=1e-13)[0])


@pytest.mark.parametrize("form", ["R", "L"])
@pytest.mark.parametrize("order", [0, 1, 3])
def test_multistep_coefficients_are_their_integrals(cld: gddim.CLD, order: int, form: str) -> None:
    found = cld.get_deis_coef(order, GRID, form)
    assert found.shape == (6, order + 3, 2, 2)
    np.testing.assert_allclose(found[:, 0], cld.psi(GRID[:-1], GRID[1:]))
    for k in (0, 1, 5):
        count = min(k, order) + 1
        wanted = integral(cld, k, GRID[k + 1 - count : k + 1][::-1], form)
        # The last step spans a factor of 30 in t; its quadrature is good to 1e-10.
        np.testing.assert_allclose(found[k, 1 : 1 + count], wanted, rtol=0, atol=1e-9)
        assert not np.any(found[k, 1 + count :])


@pytest.mark.parametrize("order", [1, 2])
def test_corrector_coefficients_are_their_integrals(cld: gddim.CLD, order: int) -> None:
    found = cld.get_corrector_coef(order, GRID)
    for k in (0, 1, 5):
        count = min(k + 1, order) + 1
        wanted = integral(cld, k, GRID[k + 2 - count : k + 2][::-1], "R")
        np.testing.assert_allclose(found[k, 1 : 1 + count], wanted, rtol=0, atol=1e-9)


def test_r_noise_is_a_parameterization() -> None:
    cld = gddim.CLD(beta_1=3.0)
    at = np.array([1e-3, 0.3, 1.0])
    found = score_map(cld.sde, at, "full_noise_r").from_output
    np.testing.assert_allclose(found, -np.swapaxes(cld.inverse_factor(at), -1, -2), rtol=1e-9)


def test_published_factor_follows_the_recurrence() -> None:
    """Euler's method by arrays, at a coarse step that the table keeps every entry of."""
    cld = gddim.CLD(beta_1=3.0, R_dt=1e-3, numerical_eps=1e-4, mode="published")
    times = np.linspace(0.0, 1.001, 1001, endpoint=False)
    R = np.diag([1e-2, math.sqrt(0.01 + 1e-4)])
    for k, t in enumerate(times):
        if k in (0, 1, 7, 500, 1000):
            np.testing.assert_allclose(cld.R(t), R, rtol=0, atol=1e-11)
        F = 0.5 * (cld.F(t) + cld.F(t + 1e-3))
        G = 0.5 * (cld.G(t) + cld.G(t + 1e-3))
        R = R + 1e-3 * (F @ R + 0.5 * G @ G @ np.linalg.inv(R).T)


def test_published_runge_kutta_is_exact_but_for_its_short_steps() -> None:
    """99,999 intervals fill [0, 1]; steps of 1e-5 make 1/1.00001 of the way."""
    cld = gddim.CLD(beta_1=3.0, is_R_rk=True, mode="published")
    exact = gddim.CLD(beta_0=4.0 / 1.00001, beta_1=3.0 / 1.00001, numerical_eps=1e-6)
    at = np.array([1e-3, 0.02, 0.3, 0.999])
    # Interpolation errs by h^2/8 R'', which is below (4 beta)^2 here.
    np.testing.assert_allclose(cld.R(at), exact.R(at), rtol=0, atol=1e-8)


def test_published_coefficients_are_left_sums(published: gddim.CLD) -> None:
    t, s = GRID[2], GRID[3]
    r = t + (s - t) * np.arange(10_000) / 10_000
    basis = [(r - GRID[1]) / (t - GRID[1]), (r - t) / (GRID[1] - t)]
    wanted = np.zeros((2, 2, 2))
    for k, point in enumerate(r):
        G = published.G(point)
        kernel = published.psi(point, s) @ (0.5 * G @ G @ np.linalg.inv(published.R(point)).T)
        wanted += np.stack([kernel * basis[0][k], kernel * basis[1][k]]) * (s - t) / 10_000
    found = published.get_deis_coef(1, GRID)
    np.testing.assert_allclose(found[2, 1:3], wanted, rtol=0, atol=1e-12)


def test_modes_agree_within_the_published_errors() -> None:
    exact = gddim.CLD(numerical_eps=1e-6)
    published = gddim.CLD(is_R_rk=True, mode="published")
    a, b = (c.get_deis_coef(2, GRID) for c in (exact, published))
    # A left sum of 1e4 points over a step errs by half the change of its terms in units of 1e-4.
    assert 1e-6 < np.abs(a - b).max() / np.abs(a).max() < 1e-3


def test_stochastic_coefficients_meet_the_flow_and_the_posterior() -> None:
    """lambda 0 is the probability flow, and 1 the exact posterior of u_s given u_t and x0."""
    cld = gddim.CLD(beta_1=3.0)
    flow = gddim.LambdaCLD(cld, 0.0).get_deis_coef(2, GRID)
    # The tolerance of the differential equation's solver, 1e-11 a step, and its safety.
    assert not np.any(np.abs(flow[:, -1]) > 1e-12)
    order0 = gddim.LambdaCLD(cld, 0.0).get_deis_coef(0, GRID)
    np.testing.assert_allclose(order0[:, 1], cld.get_deis_coef(0, GRID)[:, 1], atol=1e-8)
    reverse = gddim.LambdaCLD(cld, 1.0).get_deis_coef(0, GRID)
    for k, (t, s) in enumerate(zip(GRID[:-1], GRID[1:], strict=True)):
        psi, before, after = cld.psi(s, t), cld.cov(s), cld.cov(t)
        gain = before @ psi.T @ np.linalg.inv(after)
        posterior = before - gain @ after @ gain.T
        hat_psi = reverse[k, 0] + reverse[k, 1] @ cld.inverse_factor(t)
        np.testing.assert_allclose(hat_psi, gain, rtol=0, atol=1e-7)
        np.testing.assert_allclose(reverse[k, 3], posterior, rtol=0, atol=1e-9)


@pytest.mark.parametrize("scale", [0.3, 1.0])
def test_stochastic_coefficients_sum_to_those_of_order_0(scale: float) -> None:
    """A polynomial through equal noises is their constant."""
    rule = gddim.LambdaCLD(gddim.CLD(beta_1=3.0, numerical_eps=1e-6), scale)
    high, low = rule.get_deis_coef(3, GRID), rule.get_deis_coef(0, GRID)
    assert high.shape == (6, 7, 2, 2) and low.shape == (6, 4, 2, 2)
    np.testing.assert_allclose(high[:, 1:5].sum(axis=1), low[:, 1], atol=1e-8)
    np.testing.assert_allclose(high[:, -1], low[:, -1], atol=1e-15)


def test_stochastic_noise_keeps_the_law() -> None:
    """`hat psi Sigma_t hat psi^T` and the noise make Sigma_s, at every lambda."""
    cld = gddim.CLD(beta_1=3.0, numerical_eps=1e-6)
    for scale in (0.2, 1.5):
        c = gddim.LambdaCLD(cld, scale).get_deis_coef(0, GRID)
        hat_psi = c[:, 0] + c[:, 1] @ cld.inverse_factor(GRID[:-1])
        moved = hat_psi @ cld.cov(GRID[:-1]) @ np.swapaxes(hat_psi, -1, -2)
        np.testing.assert_allclose(moved + c[:, -1], cld.cov(GRID[1:]), rtol=0, atol=1e-8)


# --- layout ------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(5, 3), (4, 6), (2, 3, 5, 4), (1, 1, 1, 1)])
def test_layouts_are_inverse(shape: tuple[int, ...]) -> None:
    n, channels, *spatial = shape
    u = torch.randn(n, 2 * channels, *spatial)
    pairs = gddim.from_state(u)
    assert pairs.shape == (n, *spatial, channels, 2)
    assert pairs.untyped_storage().data_ptr() == u.untyped_storage().data_ptr()
    x, v = u.chunk(2, dim=1)
    assert torch.equal(pairs[..., 0], x.movedim(1, -1))
    assert torch.equal(pairs[..., 1], v.movedim(1, -1))
    assert torch.equal(gddim.to_state(pairs), u)
    assert torch.equal(gddim.to_state(pairs.contiguous().numpy()), u)


def test_memory_is_shared_where_it_can_be() -> None:
    u = torch.randn(2, 6, 5, 4)
    array = gddim.from_state(u).numpy()
    assert gddim.to_state(array).data_ptr() == u.data_ptr()
    # Pairs that lie together become channels-last planes, with one copy.
    state = gddim.to_state(np.ascontiguousarray(array))
    assert torch.equal(state, u) and state.is_contiguous(memory_format=torch.channels_last)


def test_networks_see_the_layout_they_ask_for() -> None:
    u = torch.randn(2, 6, 5, 4)
    seen = []

    def function(array: np.ndarray, t: np.ndarray) -> np.ndarray:
        seen.append((array.shape, t.shape))
        assert np.shares_memory(array, u.numpy())
        return 2.0 * array.astype(np.float64)

    t = torch.tensor(0.5).expand(2)
    for layout in ("pairs", "halves"):
        out = gddim.as_network(function, layout=layout)(u, t)
        assert torch.equal(out, 2.0 * u.double())
    assert seen == [((2, 5, 4, 3, 2), (2,)), ((2, 5, 4, 6), (2,))]


def test_read_only_and_reversed_arrays_are_copied() -> None:
    array = np.arange(12.0).reshape(2, 3, 2)
    fixed = array[:, ::-1]
    wanted = torch.from_numpy(fixed.copy())
    assert torch.equal(gddim.as_tensor(fixed), wanted)
    fixed = fixed.copy()
    fixed.flags.writeable = False
    assert torch.equal(gddim.as_tensor(fixed), wanted)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: gddim.to_state(np.zeros((4, 3))), ValueError, "x and v last, got (4, 3)"),
        (lambda: gddim.to_state(np.zeros((4, 3, 3))), ValueError, "got (4, 3, 3)"),
        (lambda: gddim.to_state([1.0]), TypeError, "DLPack, got list"),
        (lambda: gddim.from_state(torch.zeros(4, 3)), ValueError, "got (4, 3)"),
        (lambda: gddim.as_network(len, layout="nchw"), ValueError, "pairs, halves, got 'nchw'"),
        (lambda: gddim.as_network(len, xp=math), TypeError, "from_dlpack"),
        (lambda: gddim.CLD(mode="fast"), ValueError, "exact, published, got 'fast'"),
        (lambda: gddim.CLD(numerical_eps=-1.0), ValueError, "numerical_eps must be"),
        (lambda: gddim.CLD(numerical_eps=0.0, mode="published"), ValueError, "numerical_eps > 0"),
        (lambda: gddim.CLD(m_inv=-1.0), ValueError, "mass_inv"),
        (lambda: gddim.CLD().R(1.5), ValueError, "times must lie in [0, 1.0], got 1.5"),
        (lambda: gddim.CLD().get_deis_coef(1, [0.1, 0.5]), ValueError, "must descend"),
        (lambda: gddim.CLD().get_deis_coef(1, [0.5]), ValueError, "at least 2 times"),
        (lambda: gddim.CLD().get_deis_coef(-1, GRID), ValueError, "order must be"),
        (lambda: gddim.CLD().get_corrector_coef(0, GRID), ValueError, "order >= 1"),
        (lambda: gddim.CLD().get_deis_coef(1, GRID, "K"), ValueError, "'R' or 'L', got 'K'"),
        (lambda: gddim.LambdaCLD(gddim.CLD(), -1.0), ValueError, "lambda_coef must be"),
        (
            lambda: gddim.LambdaCLD(gddim.CLD(mode="published", R_dt=1e-3)),
            ValueError,
            "sdeis needs the mode 'exact'",
        ),
        (
            lambda: gddim.multistep_plan(gddim.CLD(), GRID, np.ones((6, 4, 2, 2))),
            ValueError,
            "step 0 has coefficients for 3 noises",
        ),
        (
            lambda: gddim.deis_plan(gddim.CLD(), [1.0, 0.1], denoising=True),
            ValueError,
            "the grid ends at 0.1",
        ),
    ],
)  # fmt: skip
def test_bad_input(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        call()
    assert message in str(caught.value)


def test_a_function_of_the_wrong_shape_is_told() -> None:
    net = gddim.as_network(lambda u, t: u[..., 0])
    with pytest.raises(ValueError, match=r"shaped like its input, \(2, 3, 2\), got \(2, 3\)"):
        net(torch.zeros(2, 6), torch.ones(2))


# --- samplers ----------------------------------------------------------------------------------


def config(method: str = "deis", **sampling: Any) -> Any:
    """A configuration with the codebase's fields."""
    model = dict(m_inv=4.0, beta_0=4.0, beta_1=3.0, vv_gamma=0.04)
    model |= dict(mixed_score=sampling.pop("mixed_score", False), is_R_rk=False, R_dt=1e-5)
    values = dict(
        method=method, nfe=21, noise_removal=True, is_em=False, deis_order=2, ts_order=2,
        noise_nfe_ratio=0.3, img_t_ratio=0.3, lambda_coef=1.0,
    )  # fmt: skip
    data = dict(dataset="ps_olympic", dim=3)
    return SimpleNamespace(
        model=SimpleNamespace(**model),
        sampling=SimpleNamespace(**(values | sampling)),
        data=SimpleNamespace(**data),
    )


def any_noise(mixed: bool = False, xp: Any = np) -> Any:
    """A function that keeps the sampler stable and is no exact noise: every coefficient matters."""
    cld = gddim.CLD(beta_1=3.0, numerical_eps=1e-6)
    w = xp.asarray([[0.7, -0.4], [0.2, 0.9]])

    def function(u: Any, t: Any) -> Any:
        R, time = cld.R(float(t[0])), float(t[0])
        # The noise of a state that is stationary, with the precision diag(1, 4).
        matrix = R.T @ np.diag([1.0, 4.0])
        if mixed:
            matrix = matrix - np.linalg.inv(R) @ np.diag([0.0, 1.0])
        return u @ xp.asarray(matrix.T, dtype=u.dtype) + 0.3 * xp.tanh(u @ w.T + math.cos(time))

    return function


def published_run(c: Any, u: np.ndarray, noise: list[np.ndarray]) -> tuple[np.ndarray, float]:
    """The published sampling loop in float64 with `any_noise`, from its formulas.

    noise: normals in the order of the plan's stages, where a method draws. Returns the last state
    and the size of the largest on the way.
    """
    s = c.sampling
    cld = gddim.CLD(beta_1=3.0, mixed_score=c.model.mixed_score, mode="published")
    network = any_noise(c.model.mixed_score)

    def at(matrix: np.ndarray, values: np.ndarray) -> np.ndarray:
        return np.einsum("ij,...j->...i", matrix, values)

    def eps(u: np.ndarray, t: float) -> np.ndarray:
        out = network(u, np.full(len(u), t))
        if c.model.mixed_score:
            only_v = u * np.array([0.0, 1.0])
            out = out + at(np.linalg.inv(cld.R(t)), only_v)
        return out

    def score(u: np.ndarray, t: float) -> np.ndarray:
        return -at(np.linalg.inv(cld.R(t)).T, eps(u, t))

    n = s.nfe - 1
    ts = np.linspace(1.0, 1e-3**0.5, n + 1) ** 2
    if s.method == "hybdeis":
        first = int(n * s.noise_nfe_ratio)
        power = np.linspace(1.0, 1e-3**0.5, n - first + 1) ** 2
        ts = np.concatenate([np.linspace(1.0, 0.3, first, endpoint=False), power])
    kept: list[np.ndarray] = []
    coefficients, peak = None, 1.0
    if "deis" in s.method:
        form = "L" if s.method == "ldeis" else "R"
        coefficients = cld.get_deis_coef(s.deis_order, ts, form)
    for k in range(n):
        peak = max(peak, float(np.abs(u).max()))
        t, t_next = ts[k], ts[k + 1]
        G, h = cld.G(t), ts[k + 1] - ts[k]
        if s.method == "em":
            lam = s.lambda_coef
            drift = at(cld.F(t), u) - 0.5 * (1.0 + lam) * at(G @ G, score(u, t))
            u = u + h * drift + lam * math.sqrt(-h) * at(G, noise[k])
        elif s.method == "order0":
            R = cld.R(t)
            pull = 0.5 * G @ G @ np.linalg.inv(R).T * h
            u = at(np.eye(2) + cld.F(t) * h, u) + at(pull, eps(u, t))
        elif s.method == "sscs":
            back = 1.0 - t, 1.0 - t_next
            half = 0.5 * (back[0] + back[1])
            u = free(cld, u, back[0], half, noise[2 * k])
            push = 2.0 * cld.beta(back[0]) * cld.Gamma * (back[1] - back[0])
            kick = score(u, 1.0 - back[0])[..., 1] + cld.m_inv * u[..., 1]
            u = np.stack([u[..., 0], u[..., 1] + push * kick], axis=-1)
            u = free(cld, u, half, back[1], noise[2 * k + 1])
        else:
            new = eps(u, t)
            if s.method == "ldeis":
                L = np.linalg.cholesky(cld.R(t) @ cld.R(t).T)
                new = at(L.T @ np.linalg.inv(cld.R(t)).T, new)
            kept = [new, *kept][: s.deis_order + 1]
            assert coefficients is not None
            u = at(coefficients[k, 0], u) + sum(
                at(coefficients[k, 1 + j], old) for j, old in enumerate(kept)
            )
    h, G = 1e-3, cld.G(1e-3)
    return u - h * at(cld.F(1e-3), u) + h * at(G @ G, score(u, 1e-3)), peak


def free(cld: gddim.CLD, u: np.ndarray, start: float, end: float, z: np.ndarray) -> np.ndarray:
    """The exact half-step of SSCS at backward times, Dockhorn et al. (2022), appendix B.2."""
    b = cld.beta_int(1.0 - start) - cld.beta_int(1.0 - end)
    g = cld.Gamma
    mean = np.array([[1 + 2 * b / g, -4 * b / g**2], [b, 1 - 2 * b / g]]) * math.exp(-2 * b / g)
    grow = math.exp(4 * b / g)
    xx = grow - 1 - 4 * b / g - 8 * b**2 / g**2
    xv = -4 * b**2 / g
    vv = (g / 2) ** 2 * (grow - 1) + b * g - 2 * b**2
    factor = np.linalg.cholesky(np.array([[xx, xv], [xv, vv]]) * math.exp(-4 * b / g))
    return np.einsum("ij,...j->...i", mean, u) + np.einsum("ij,...j->...i", factor, z)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "changes",
    [
        dict(method="deis"),
        dict(method="deis", deis_order=3, mixed_score=True),
        dict(method="ldeis", deis_order=1),
        dict(method="ldeis", deis_order=0, mixed_score=True),
        dict(method="hybdeis"),
        dict(method="order0", is_em=True),
        dict(method="em", lambda_coef=0.5),
        dict(method="sscs", mixed_score=True),
    ],
    ids=str,
)
def test_published_mode_keeps_to_the_letter(changes: dict[str, Any], dtype: torch.dtype) -> None:
    """20 steps and the denoising step, with the same draws: states agree with the formulas."""
    c = config(**changes)
    rng = np.random.default_rng(0)
    u = rng.normal(size=(7, 3, 2)) * [1.0, 0.5]
    draws = [rng.normal(size=u.shape) for _ in range(40)]
    wanted, peak = published_run(c, u, draws)
    sampler = gddim.get_sampling_fn(
        c, any_noise(c.model.mixed_score), mode="published", dtype=dtype
    )
    stages = len(gddim.plan_from_config(c, gddim.from_config(c, "published")).stages)
    noise = None
    if changes["method"] in ("em", "sscs"):
        noise = [*draws[: stages - 1], None]
    x, v, nfe = sampler(0, len(u), u, noise)
    assert nfe == 21 and x.dtype == (np.float32 if dtype == torch.float32 else np.float64)
    # Rounding is relative to the states on the way, of which the L form makes large ones.
    tolerance = 1e-5 if dtype == torch.float32 else 1e-11
    np.testing.assert_allclose(np.stack([x, v], -1), wanted, rtol=0, atol=tolerance * peak)


def point_noise(cld: gddim.CLD, point: float) -> Any:
    """The exact R noise for data that are one point."""

    def function(u: np.ndarray, t: np.ndarray) -> np.ndarray:
        mean = np.asarray([float(entry) for entry in cld.psi(0.0, t[0])[:, 0]]) * point
        inverse = cld.inverse_factor(t[0])
        return np.einsum("ij,...j->...i", inverse, u - mean)

    return function


@pytest.mark.parametrize("order", [0, 2])
def test_point_data_are_exact_in_the_r_form(cld: gddim.CLD, order: int) -> None:
    """R noise is constant along the flow then, so 3 steps land on the exact law at any order."""
    plan = gddim.deis_plan(cld, gddim.rev_times(3), order)
    u = torch.randn(9, 4, dtype=torch.float64)
    out = cldfast.run(plan, gddim.as_network(point_noise(cld, 0.7)), u)
    move = cld.R(1e-3) @ cld.inverse_factor(1.0)
    means = [0.7 * cld.psi(0.0, t)[:, 0] for t in (1.0, 1e-3)]
    wanted = np.einsum("ij,...j->...i", move, gddim.from_state(u).numpy() - means[0]) + means[1]
    np.testing.assert_allclose(gddim.from_state(out).numpy(), wanted, atol=1e-9)


def gaussian_noise(cld: gddim.CLD, variance: float) -> Any:
    """The exact R noise for data `N(0, variance)`."""

    def function(u: np.ndarray, t: np.ndarray) -> np.ndarray:
        mean = cld.psi(0.0, t[0])[:, 0]
        total = cld.cov(t[0]) + variance * np.outer(mean, mean)
        matrix = cld.R(t[0]).T @ np.linalg.inv(total)
        return np.einsum("ij,...j->...i", matrix, u)

    return function


@pytest.mark.parametrize(
    ("changes", "steps", "tolerance"),
    [
        (dict(method="deis", deis_order=2), 161, 2e-3),
        (dict(method="ldeis", deis_order=2), 161, 2e-2),
        (dict(method="hybdeis", deis_order=2), 161, 2e-3),
        (dict(method="sdeis", deis_order=0, lambda_coef=1.0), 801, 2e-2),
        (dict(method="sdeis", deis_order=1, lambda_coef=0.5), 401, 5e-2),
        (dict(method="em", lambda_coef=0.5), 2001, 2e-2),
        (dict(method="sscs"), 801, 2e-2),
    ],
    ids=str,
)
def test_exact_mode_converges_to_the_data(
    changes: dict[str, Any], steps: int, tolerance: float
) -> None:
    """The covariance of the output, from the linear map and noise of the plan itself."""
    c = config(**changes, nfe=steps)
    cld = gddim.from_config(c)
    plan = gddim.plan_from_config(c, cld)
    variance = 0.49
    cov = plan.sde.prior().cov
    kept: list[np.ndarray] = []
    # u and history rows as matrices on (the initial state, all draws so far): only covariances.
    state = np.linalg.cholesky(cov)
    for stage in plan.stages:
        width = state.shape[1]
        matrix, row = stage.P @ state, None
        if stage.t is not None:
            net = gaussian_noise(cld, variance)
            output = np.asarray(net(state.T, np.array([stage.t]))).T
            matrix = matrix + stage.E[0] @ output
            if stage.A is not None and stage.B is not None:
                row = stage.A[0] @ output + stage.B @ state
        for h, old in zip(stage.H, kept, strict=False):
            matrix[:, : old.shape[1]] += h @ old
        if np.any(stage.L):
            matrix = np.concatenate([matrix, stage.L], axis=1)
            if not plan.history_length:
                matrix = np.linalg.cholesky(matrix @ matrix.T)
        state = matrix
        assert state.shape[1] >= width or not plan.history_length
        if row is not None:
            kept = [row, *kept][: plan.history_length]
    found = (state @ state.T)[0, 0]
    assert abs(found / variance - 1.0) < tolerance


def test_samples_do_not_depend_on_the_batch_size() -> None:
    c = config("em", nfe=5)
    sampler = gddim.get_sampling_fn(c, any_noise())
    x, v, nfe = sampler(3, 6)
    fewer, _, _ = sampler(3, 2)
    assert nfe == 5 and x.shape == v.shape == (6, 3)
    np.testing.assert_array_equal(fewer, x[:2])


def test_score_functions_of_arrays_run_in_any_solver() -> None:
    """A score in the codebase's layout beside the same one in ours."""
    cld = gddim.CLD(beta_1=3.0)

    def score(u: np.ndarray, t: np.ndarray) -> np.ndarray:
        return -u * np.array([1.0, 4.0]) / (1.0 + t[:, None, None])

    def ours(u: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        x, v = u.chunk(2, dim=1)
        return -torch.cat([x, 4.0 * v], 1) / (1.0 + t[:, None])

    for solver in ("sscs", "unipc"):
        a, b = (
            cldfast.sample(net, cld.sde, (4, 3), solver, 9, parameterization="full_score")
            for net in (gddim.as_network(score), ours)
        )
        torch.testing.assert_close(a, b)


def test_images_dictionaries_and_scalers() -> None:
    c = config()
    as_dict = {name: vars(getattr(c, name)) for name in ("model", "sampling")}
    as_dict["data"] = dict(dataset="CIFAR10", image_size=4, num_channels=3)
    for layout, shape in (("pairs", (2, 4, 4, 3, 2)), ("halves", (2, 4, 4, 6))):
        seen = []

        def eps(u: np.ndarray, t: np.ndarray, seen: list[Any] = seen) -> np.ndarray:
            seen.append(u.shape)
            return 0.1 * u

        sampler = gddim.get_sampling_fn(as_dict, eps, lambda x: (x + 1.0) / 2.0, layout=layout)
        x, v, nfe = sampler(0, 2)
        assert set(seen) == {shape} and x.shape == v.shape == (2, 4, 4, 3) and nfe == 21
    plain, _, _ = gddim.get_sampling_fn(as_dict, lambda u, t: 0.1 * u)(0, 2)
    np.testing.assert_allclose(x, (plain + 1.0) / 2.0, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(method="ode"), "sampling.method must be one of deis, order0"),
        (dict(method="deis", nfe=1), "leaves 0 steps"),
    ],
)
def test_bad_configurations(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gddim.get_sampling_fn(config(**changes), any_noise())


def test_a_missing_field_is_named() -> None:
    c = config()
    del c.sampling.nfe
    with pytest.raises(ValueError, match="needs 'nfe'"):
        gddim.get_sampling_fn(c, any_noise())


def test_jax_functions_are_sampled() -> None:
    jax = pytest.importorskip("jax")
    numpy = jax.numpy
    weights = numpy.asarray([[0.7, -0.4], [0.2, 0.9]])

    @jax.jit
    def eps(u: Any, t: Any) -> Any:
        return numpy.tanh(u @ weights.T + numpy.cos(3.0 * t)[:, None, None])

    def same(u: np.ndarray, t: np.ndarray) -> np.ndarray:
        return np.asarray(np.tanh(u @ np.asarray(weights).T + np.cos(3.0 * t)[:, None, None]))

    c = config()
    x, v, nfe = gddim.get_sampling_fn(c, eps, xp=numpy)(0, 5)
    assert isinstance(x, jax.Array)
    wanted, _, _ = gddim.get_sampling_fn(c, same)(0, 5)
    # Float32 functions of two libraries.
    np.testing.assert_allclose(x, wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())
