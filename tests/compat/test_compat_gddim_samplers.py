"""The samplers of `compat.gddim`: exact ones by their law, published ones by their formulas."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import cldfast
from cldfast.compat import gddim


@pytest.fixture(params=[(0.0, 0.0), (3.0, 1e-6)], ids=str)
def cld(request: pytest.FixtureRequest) -> gddim.CLD:
    beta_1, eps = request.param
    return gddim.CLD(beta_1=beta_1, numerical_eps=eps)


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
    out = cldfast.run(plan, gddim.as_network(point_noise(cld, 0.7)), u, seed=0)
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
            cldfast.sample(net, cld.sde, (4, 3), solver, 9, parameterization="full_score", seed=0)
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
