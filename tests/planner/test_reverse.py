"""The frozen-x0 bridge: propagators against an ODE solver, laws, posterior, limits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from cldfast import CLD, PSLD, LinearPhaseSDE
from cldfast.planner.reverse import Bridge
from cldfast.process.schedules import LinearBeta

PROCESSES = {
    "cld": CLD(beta=LinearBeta(1.0, 7.0)),
    "regularised": CLD(a=1.0, sigma=2.0**0.5, x_noise=0.25),
    "no initial velocity": CLD(v0_var=0.0),
    "underdamped": CLD(damping=0.3),
    "overdamped": CLD(damping=2.0, x_noise=1.0),
    "psld": PSLD(),
}
process = pytest.mark.parametrize("name", PROCESSES)


@process
def test_the_flow_solves_its_differential_equation(name: str) -> None:
    """`dPsi/dtau = (A + D Sigma^-1/2) Psi`; the tolerance is that of the ODE solver."""
    sde = PROCESSES[name]
    bridge = Bridge(sde)
    start = float(sde.tau(sde.T))
    end = 1e-3 * start

    def rate(tau: float, psi: np.ndarray) -> np.ndarray:
        drift = sde.A + 0.5 * np.diag(sde.D) @ bridge.marginal(np.float64(tau)).precision
        return (drift @ psi.reshape(2, 2)).ravel()

    solution = solve_ivp(
        rate, (start, end), np.eye(2).ravel(), rtol=1e-12, atol=1e-14, method="DOP853"
    )
    want = solution.y[:, -1].reshape(2, 2)
    assert np.max(np.abs(bridge.propagator(end, start) - want)) < 1e-11 * np.max(np.abs(want))


@process
def test_the_factor_is_a_square_root(name: str) -> None:
    sde = PROCESSES[name]
    bridge = Bridge(sde)
    tau = float(sde.tau(sde.T)) * np.geomspace(1e-9, 1.0, 50)
    root, cov = bridge.factor(tau), bridge.marginal(tau).cov
    size = np.sqrt(cov[:, [0, 1], [0, 1]])
    error = (root @ np.swapaxes(root, 1, 2) - cov) / (size[:, :, None] * size[:, None, :])
    assert np.max(np.abs(error)) < 1e-14
    assert np.max(np.abs(bridge.inverse_factor(tau) @ root - np.eye(2))) < 1e-10
    whitened = bridge.inverse_factor(tau) @ bridge.marginal(tau).mean[..., None]
    length = np.linalg.norm(whitened[..., 0], axis=1, keepdims=True)
    assert np.max(np.abs(bridge.whitened_mean(tau) - whitened[..., 0]) / length) < 1e-10


@process
@pytest.mark.parametrize("churn", [0.0, 0.3, 1.0])
def test_every_churn_keeps_the_law(name: str, churn: float) -> None:
    sde = PROCESSES[name]
    bridge = Bridge(sde, churn)
    end = float(sde.tau(sde.T))
    s = np.array([1e-3 * end, 0.0, 0.9 * end, 0.0, 1e-3 * end])
    t = np.array([end, end, end, 1e-3 * end, 1.001e-3 * end])
    F, L = bridge.propagator(s, t), bridge.noise_factor(s, t)
    want = bridge.marginal(s).cov
    got = F @ bridge.marginal(t).cov @ np.swapaxes(F, 1, 2) + L @ np.swapaxes(L, 1, 2)
    scale = np.maximum(np.max(np.abs(want), axis=(1, 2)), 1e-300)
    assert np.all(np.max(np.abs(got - want), axis=(1, 2)) < 1e-11 * scale)
    # No variance in x is left at t = 0, not even by rounding.
    assert np.all(F[s == 0.0, 0] == 0.0) and np.all(L[s == 0.0, 0] == 0.0)
    assert np.all(L[:, 0, 1] == 0.0)


@process
def test_churn_one_is_the_gaussian_posterior(name: str) -> None:
    """`E[w_s | w_t] = Sigma_s Phi^T Sigma_t^-1 w_t` and the covariance of that regression."""
    sde = PROCESSES[name]
    bridge = Bridge(sde, 1.0)
    end = float(sde.tau(sde.T))
    s, t = np.array([0.3 * end, 0.05 * end]), np.array([0.5 * end, 0.3 * end])
    before, after = bridge.marginal(s).cov, bridge.marginal(t)
    want = before @ np.swapaxes(sde.transition(t - s).phi, 1, 2) @ after.precision
    assert np.allclose(bridge.propagator(s, t), want, rtol=1e-11, atol=1e-13)
    # One long step is two short ones, noise included.
    middle = 0.5 * (s + t)
    late, early = bridge.propagator(s, middle), bridge.propagator(middle, t)
    assert np.allclose(late @ early, bridge.propagator(s, t), rtol=1e-11, atol=1e-13)
    a, b = late @ bridge.noise_factor(middle, t), bridge.noise_factor(s, middle)
    total = bridge.noise_factor(s, t)
    parts = a @ np.swapaxes(a, 1, 2) + b @ np.swapaxes(b, 1, 2)
    assert np.allclose(total @ np.swapaxes(total, 1, 2), parts, rtol=1e-11, atol=1e-14)


def test_moved_mean_and_small_times() -> None:
    bridge = Bridge(CLD(), 0.5)
    tau = 4.0 * np.geomspace(1e-14, 1e-11, 30)  # across the floor of the angle's series
    angle = Bridge(CLD()).angle(tau)
    # theta ~ -2 a^2 sqrt(det)/Sigma_xx tau, which is proportional to sqrt(tau).
    assert np.allclose(angle / np.sqrt(tau), angle[0] / np.sqrt(tau[0]), rtol=1e-8)
    s, t = np.array([0.1, 0.0]), np.array([0.2, 0.2])
    want = bridge.propagator(s, t) @ bridge.marginal(t).mean[..., None]
    assert np.allclose(bridge.mean_moved(s, t), want[..., 0], rtol=1e-9, atol=1e-13)


def test_the_angle_in_torch() -> None:
    bridge, tau = Bridge(CLD(x_noise=0.1)), np.geomspace(1e-13, 4.0, 60).reshape(2, 30)
    got = bridge.angle(torch.from_numpy(tau))
    assert np.allclose(got.numpy(), bridge.angle(tau), rtol=1e-14, atol=0.0)


@pytest.mark.parametrize("churn", [-0.1, 1.1, float("nan")])
def test_churn_is_checked(churn: float) -> None:
    with pytest.raises(ValueError, match="churn must lie in"):
        Bridge(CLD(), churn)


def test_any_linear_process() -> None:
    """Noise on the position alone, coupled both ways."""
    sde = LinearPhaseSDE(A=[[-1.0, 2.0], [-0.5, -3.0]], D=[1.5, 0.0], v0_var=0.2)
    bridge = Bridge(sde)
    tau = np.array([0.2, 1.0])
    F = bridge.propagator(tau[0], tau[1])
    want = bridge.marginal(tau).cov
    assert np.allclose(F @ want[1] @ F.T, want[0], rtol=1e-11)
