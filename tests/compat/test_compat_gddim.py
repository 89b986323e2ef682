"""`compat.gddim`: coefficients against integrals by other means, both modes, and layouts."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import quad_vec, solve_ivp

from cldfast.compat import gddim
from cldfast.planner.parameterization import score_map

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
        (lambda: gddim.CLD().get_deis_coef(1, GRID, "K"), ValueError, "one of R, L, got 'K'"),
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
