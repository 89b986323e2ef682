"""Processes: the published parametrisations, kernels, time reversal and contraction."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import weakref
from collections.abc import Callable
from typing import Any

import exact
import mpmath as mp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cldfast.process.schedules import CosineBeta, ExponentialBeta, LinearBeta
from cldfast.process.sde import CLD, PSLD, LinearPhaseSDE, sde_from_config

LINEAR = LinearBeta(0.5, 8.0)
PROCESSES = [
    CLD(beta=LINEAR),
    CLD(a=0.25, sigma=2.0**0.5, x_noise=0.25, beta=LINEAR),
    CLD(a=1.0, x_noise=1.0, v0_var=0.0, beta=LINEAR),
    CLD(damping=0.3, beta=LINEAR),
    CLD(damping=3.0, x_noise=0.1, beta=LINEAR),
    PSLD(beta=LINEAR),
]


def test_published_parameters() -> None:
    """Dockhorn et al. (2022): `1/M = 4, gamma = 0.04` is `a = 2, sigma^2 = 2, v0_var = 0.01`."""
    sde = CLD.from_mass(4.0, 0.04)
    assert np.array_equal(sde.A, [[0.0, 4.0], [-1.0, -4.0]])
    # sigma^2 goes through a square root and back: two roundings.
    assert np.allclose(sde.D, [0.0, 2.0], rtol=1e-15, atol=0.0)
    assert sde.v0_var == 0.01
    default = CLD()
    assert np.array_equal(default.A, sde.A) and default.v0_var == sde.v0_var
    assert np.allclose(default.D, sde.D, rtol=1e-15, atol=0.0)
    assert default.beta(0.3) == 4.0 and default.tau(0.25) == 1.0 and default.time(1.0) == 0.25


@pytest.mark.parametrize("friction", [0.5, 1.0, 3.0])
def test_from_mass_with_friction(friction: float) -> None:
    """`dV = -beta (X + Gamma V / M)`, `D_vv = 2 Gamma`; the stationary law is N(0, 1) x N(0, M)."""
    mass_inv = 4.0
    sde = CLD.from_mass(mass_inv, 0.04, friction=friction, x_noise=0.0)
    assert np.allclose(sde.A, [[0.0, mass_inv], [-1.0, -friction * mass_inv]], rtol=1e-15)
    assert np.allclose(sde.D, [0.0, 2.0 * friction], rtol=1e-15)
    assert np.allclose(sde.prior().cov, np.diag([1.0, 1.0 / mass_inv]), rtol=0, atol=1e-15)


@pytest.mark.parametrize("a", [0.25, 1.0, 2.0, 7.0])
@pytest.mark.parametrize("x_noise", [0.0, 0.3, 2.0])
def test_stationary_law_in_closed_form(a: float, x_noise: float) -> None:
    sigma = 1.7
    sde = CLD(a=a, sigma=sigma, x_noise=x_noise)
    xx = (5.0 * x_noise**2 / a + a * sigma**2) / 4.0
    xv = -(x_noise**2) / (2.0 * a**2)
    vv = (x_noise**2 + a**2 * sigma**2) / (4.0 * a**3)
    prior = sde.prior()
    assert np.allclose(prior.cov, [[xx, xv], [xv, vv]], rtol=1e-14, atol=0.0)
    assert np.allclose(prior.det, xx * vv - xv**2, rtol=1e-13)
    assert np.array_equal(prior.mean, np.zeros(2))


def test_critical_propagator_in_closed_form() -> None:
    """`exp(A tau) = exp(-a tau) [[1 + a tau, a^2 tau], [-tau, 1 - a tau]]`."""
    a, tau = 2.0, np.linspace(0.0, 4.0, 9)
    want = np.exp(-a * tau)[:, None, None] * np.moveaxis(
        np.array([[1 + a * tau, a**2 * tau], [-tau, 1 - a * tau]]), -1, 0
    )
    # The exponent 8 costs 8 roundings.
    assert np.allclose(CLD(a=a).transition(tau).phi, want, rtol=2e-15, atol=0.0)


def test_psld_parameters() -> None:
    """Pandey and Mandt (2023): the stationary law is N(0, 1) x N(0, M), critical by default."""
    sde = PSLD(0.01, 4.01)
    assert np.allclose(sde.A, [[-0.005, 2.0], [-0.5, -2.005]], rtol=1e-15)
    assert np.allclose(sde.D, [0.01, 1.0025], rtol=1e-14)
    assert np.allclose(sde.prior().cov, np.diag([1.0, 0.25]), rtol=0, atol=1e-14)
    eigenvalues = np.linalg.eigvals(sde.A)
    # A double eigenvalue is found to the root of rounding.
    assert np.allclose(eigenvalues, -1.005, rtol=0, atol=1e-7)


@pytest.mark.parametrize("sde", PROCESSES, ids=repr)
@pytest.mark.parametrize("t", [1e-8, 1e-3, 0.2, 1.0])
def test_marginal_against_exact(sde: LinearPhaseSDE, t: float) -> None:
    """Both objectives at a non-constant rate."""
    tau = float(0.5 * t + 3.75 * t * t)
    assert abs(float(sde.tau(t)) / tau - 1.0) < 4e-16
    want = exact.transition(sde.A, sde.D, float(sde.tau(t)))
    given_u0 = sde.marginal(t, objective="dsm")
    assert exact.phi_error(given_u0.mean, want.phi, sde.A) < 1e-12
    assert max(exact.covariance_errors(given_u0.cov, given_u0.det, want.q)) < 1e-13
    given_x0 = sde.marginal(t)
    sigma = want.sigma(sde.v0_var)
    assert max(exact.covariance_errors(given_x0.cov, given_x0.det, sigma)) < 1e-13
    assert np.array_equal(given_x0.mean, given_u0.mean[:, 0])
    with mp.workdps(exact.DIGITS):
        det = sigma[0, 0] * sigma[1, 1] - sigma[0, 1] ** 2
        ell = mp.sqrt(sigma[0, 0] / det)
        assert exact.relative(given_x0.ell, ell) < 1e-13
        assert exact.relative(given_x0.factor[1, 1], 1 / ell) < 1e-13
        assert exact.relative(given_x0.precision[0, 0], sigma[1, 1] / det) < 1e-13


def test_the_naive_formulas_would_not_do() -> None:
    """What the library replaces: at t = 1e-6 the textbook difference has no digit of Sigma_xx."""
    sde = CLD(v0_var=0.0)
    t = 1e-6
    step, s = sde.transition(sde.tau(t)), sde.prior().cov
    naive = (s - step.phi @ s @ step.phi.T)[0, 0]
    right = sde.marginal(t).cov[0, 0]
    tau = 4.0 * t
    # Q_xx = a^4 sigma^2 tau^3/3 (1 - 3 a tau/2 + ...).
    assert abs(right / (16.0 * 2.0 * tau**3 / 3.0) - 1.0) < 4.0 * tau
    assert abs(naive / right - 1.0) > 0.01


@pytest.mark.parametrize("sde", PROCESSES, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_training_times_in_torch(sde: LinearPhaseSDE, dtype: torch.dtype) -> None:
    """Per-row times down to 1e-8: float64 inside whatever comes in, and finite in float32 after."""
    t = torch.logspace(-8, 0, 200, dtype=dtype)
    got, want = sde.marginal(t), sde.marginal(t.double().numpy())
    for name in ("mean", "cov", "det", "factor", "precision", "ell"):
        tensor, array = getattr(got, name), getattr(want, name)
        assert tensor.dtype == torch.float64
        # The libraries' exponentials differ by a rounding.
        assert np.allclose(tensor.numpy(), array, rtol=1e-12, atol=1e-16 * np.abs(array).max())
    # What training casts: states from the mean and factor, targets from ell.
    for part in (got.mean, got.factor, got.ell, 1.0 / got.ell):
        single = part.float()
        assert torch.all(torch.isfinite(single))
        assert torch.allclose(single.double(), part, rtol=6e-8, atol=0.0)
    diagonal = torch.diagonal(got.factor.float(), dim1=-2, dim2=-1)
    assert torch.all(diagonal > 0.0)


def test_no_device_is_waited_for() -> None:
    """The meta device holds no values: whatever reads one (`.item()`, `bool`) raises."""
    t = torch.empty(7, device="meta")
    schedules = (4.0, LINEAR, ExponentialBeta(0.1, 2.0), CosineBeta())
    for beta in schedules:
        for damping in (0.5, 1.0, 2.0):
            kernel = CLD(beta=beta, damping=damping, x_noise=0.1).marginal(t)
            assert kernel.mean.shape == (7, 2) and kernel.mean.device.type == "meta"
            assert kernel.factor.shape == kernel.precision.shape == (7, 2, 2)
            assert kernel.ell.shape == (7,)


def test_planner_does_not_import_torch() -> None:
    """Neither array-api-compat nor any planner module, imported past the package's `__init__`."""
    code = (
        "import sys, types, pathlib, array_api_compat\n"
        "package = types.ModuleType('cldfast')\n"
        f"package.__path__ = [{str(__import__('cldfast').__path__[0])!r}]\n"
        "sys.modules['cldfast'] = package\n"
        "from cldfast.process.sde import CLD\n"
        "from cldfast.planner.make_plan import make_plan\n"
        "make_plan(CLD(), steps=3).gaussian_law()\n"
        "make_plan(CLD(), steps=3).error_budget()\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("sde", PROCESSES, ids=repr)
def test_reversed_process(sde: LinearPhaseSDE) -> None:
    """Its drift is `-A - D Sigma^-1`, and it keeps the stationary law for every tau."""
    s = sde.prior().cov
    want = -sde.A - np.diag(sde.D) @ np.linalg.inv(s)
    assert np.allclose(sde.reversed_drift, want, rtol=1e-12, atol=1e-12)
    step = sde.reversed_transition(np.array([1e-6, 0.1, 3.0]))
    kept = step.phi @ s @ np.swapaxes(step.phi, -1, -2) + step.cov
    assert np.allclose(kept, s, rtol=0, atol=1e-14)


DAMPINGS = [0.1, 0.9, 0.999, 1.0, 1.0 + 1e-12, 1.001, 1.2, 5.0]


@pytest.mark.parametrize("damping", DAMPINGS)
@pytest.mark.parametrize("x_noise", [0.0, 0.5])
@pytest.mark.parametrize("slack", [0.3, 0.05, 1e-3])
def test_contraction(damping: float, x_noise: float, slack: float) -> None:
    """The inequality by eigenvalues, and the rate against the spectrum of A."""
    sde = CLD(damping=damping, x_noise=x_noise)
    result = sde.contraction(slack)
    assert np.array_equal(result.drift, sde.reversed_drift)
    assert np.allclose(result.metric, result.metric.T, rtol=1e-12, atol=0.0)
    assert np.trace(result.metric) == pytest.approx(1.0, rel=1e-15)
    weights = np.linalg.eigvalsh(result.metric)
    assert weights[0] > 0.0
    product = result.metric @ result.drift
    # Largest generalised eigenvalue of A~^T M + M A~ against M: at most -2 eta.
    root = np.linalg.inv(np.linalg.cholesky(result.metric))
    largest = np.linalg.eigvalsh(root @ (product + product.T) @ root.T)[-1]
    condition = weights[-1] / weights[0]
    assert largest <= -2.0 * result.rate + 1e-14 * condition * np.abs(sde.A).max()
    spectral = exact_spectral_rate(sde)
    assert 0.0 < result.rate <= spectral * (1.0 + 1e-14)
    # The rate is 1 - 2 slack of the damping at least, or the spectrum's own where it is apart.
    separate = abs(1.0 - damping**2) ** 0.5 >= 2.0 * slack * damping
    if separate:
        assert abs(result.rate / spectral - 1.0) < 1e-13
    else:
        assert result.rate >= (1.0 - 2.0 * slack) * 2.0 * damping


def exact_spectral_rate(sde: LinearPhaseSDE) -> float:
    with mp.workdps(60):
        half = (mp.mpf(sde.A[0, 0]) + mp.mpf(sde.A[1, 1])) / 2
        gap = (mp.mpf(sde.A[0, 0]) - mp.mpf(sde.A[1, 1])) / 2
        discriminant = gap**2 + mp.mpf(sde.A[0, 1]) * mp.mpf(sde.A[1, 0])
        return float(-half - mp.sqrt(discriminant) if discriminant > 0 else -half)


def test_contraction_at_the_supremum() -> None:
    """Apart, slack 0 gives the spectral rate; a Jordan block attains none."""
    assert CLD(damping=0.5).contraction(0.0).rate == 1.0
    assert CLD().contraction(0.01).rate == pytest.approx(2.0 * 0.99, rel=1e-12)
    with pytest.raises(ValueError, match="supremum; pass slack > 0"):
        CLD().contraction(0.0)
    with pytest.raises(ValueError, match=r"slack must lie in \[0, 0.5\), got 0.5"):
        CLD().contraction(0.5)
    isotropic = LinearPhaseSDE([[-1, 0], [0, -1]], [1, 1])
    assert isotropic.contraction(0.0).rate == 1.0
    diagonal = LinearPhaseSDE([[-1, 0], [0, -3]], [1, 1]).contraction(0.0)
    assert diagonal.rate == 1.0


@settings(max_examples=100, deadline=None)
@given(
    st.floats(0.05, 20.0), st.floats(0.05, 20.0), st.floats(0.0, 3.0), st.floats(0.0, 1.0),
    st.floats(1e-10, 1.0),
)  # fmt: skip
def test_marginals_are_positive(
    a: float, damping: float, x_noise: float, v0: float, t: float
) -> None:
    """Covariance, its factor and ell at any time for any process: no jitter is needed."""
    sde = CLD(a=a, damping=damping, x_noise=x_noise, v0_var=v0, beta=LINEAR)
    kernel = sde.marginal(t)
    assert np.all(np.isfinite(kernel.factor)) and kernel.det > 0.0
    assert np.isfinite(kernel.ell) and kernel.ell > 0.0
    # Noise alone never makes more than the stationary law holds.
    s, q = sde.prior().cov, sde.marginal(t, "dsm").cov
    size = np.sqrt(np.outer(np.diag(s), np.diag(s)))
    assert np.linalg.eigvalsh((s - q) / size)[0] > -1e-14


@pytest.mark.parametrize(
    "sde",
    [
        *PROCESSES,
        LinearPhaseSDE([[-0.5, 2], [-1, -1]], [0.1, 1], 0.3, ExponentialBeta(0.1, 1.0), 2.0),
        CLD(beta=CosineBeta(scale=2.0)),
    ],
    ids=repr,
)
def test_config_round_trip(sde: LinearPhaseSDE) -> None:
    again = sde_from_config(sde.config())
    assert type(again) is type(sde) and again.config() == sde.config()
    assert np.array_equal(again.A, sde.A) and np.array_equal(again.D, sde.D)
    assert again.v0_var == sde.v0_var and again.T == sde.T
    assert again.schedule == sde.schedule and repr(again) == repr(sde)


@pytest.mark.parametrize("sde", PROCESSES, ids=repr)
def test_a_process_cannot_be_changed(sde: LinearPhaseSDE) -> None:
    """Nor can its copies; both serve as keys, and copies give the same numbers."""
    for process in (sde, copy.deepcopy(sde), copy.copy(sde), pickle.loads(pickle.dumps(sde))):
        assert type(process) is type(sde) and process.config() == sde.config()
        assert {process: 1}[process] == 1 and weakref.ref(process)() is process
        for name in (*vars(sde), "something_new"):
            with pytest.raises(
                AttributeError, match=f"cannot be changed: make a new one .* {name}"
            ):
                setattr(process, name, 1.0)
        for array in (process.A, process.D):
            with pytest.raises(ValueError, match="read-only"):
                array[0] = 7.0
        assert np.array_equal(process.marginal(0.3).cov, sde.marginal(0.3).cov)


def test_a_subclass_sets_its_own_attributes_first() -> None:
    class Named(CLD):
        def __init__(self, name: str) -> None:
            self.name = name
            super().__init__(a=1.0)

    sde = Named("mine")
    assert sde.name == "mine" and sde.a == 1.0
    with pytest.raises(AttributeError, match="a Named cannot be changed"):
        sde.name = "yours"


def test_the_default_sigma_gives_unit_variance_without_position_noise() -> None:
    """Position noise adds `5 x_noise^2/(4 a)` at critical damping."""
    assert CLD(a=0.5).prior().cov[0, 0] == pytest.approx(1.0, rel=1e-14)
    assert CLD(a=0.5, damping=0.3).prior().cov[0, 0] == pytest.approx(1.0, rel=1e-14)
    noisy = CLD(a=0.5, x_noise=0.6).prior().cov[0, 0]
    assert noisy == pytest.approx(1.0 + 5.0 * 0.36 / 2.0, rel=1e-14)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: CLD(a=0.0), ValueError, "a must be finite and > 0, got 0.0"),
        (lambda: CLD(a="2"), TypeError, "a must be a number, got str"),
        (lambda: CLD(a=True), TypeError, "a must be a number, got bool"),
        (lambda: CLD(sigma=-1.0), ValueError, "sigma must be finite and > 0"),
        (lambda: CLD(x_noise=float("nan")), ValueError, "x_noise must be finite and >= 0"),
        (lambda: CLD(v0_var=-1e-9), ValueError, "v0_var must be finite and >= 0"),
        (lambda: CLD(T=0.0), ValueError, "T must be finite and > 0"),
        (lambda: CLD(beta="fast"), TypeError, "beta must be a number, a schedule or a callable"),
        (lambda: CLD(beta=-1.0), ValueError, "beta must be a finite number > 0"),
        (lambda: CLD(damping=0.0), ValueError, "damping must be finite and > 0"),
        (lambda: CLD(a=1e200), ValueError, "A must be finite"),
        (lambda: CLD(a=1e120), ValueError, "A = .* too large"),
        (lambda: CLD.from_mass(0.0), ValueError, "mass_inv must be finite and > 0"),
        (lambda: CLD.from_mass(4.0, -1.0), ValueError, "gamma must be finite and >= 0"),
        (lambda: CLD.from_mass(friction=0.0), ValueError, "friction must be finite and > 0"),
        (lambda: PSLD(velocity_friction=-1.0), ValueError, "velocity_friction must be"),
        (lambda: PSLD(1.0, 1.0), ValueError, "mass_inv must be finite and > 0"),
        (lambda: LinearPhaseSDE([[1.0]], [0, 1]), ValueError, r"finite with shape \(2, 2\)"),
        (
            lambda: LinearPhaseSDE([[0, 1], [-1, float("nan")]], [0, 1]),
            ValueError,
            "A must be finite",
        ),
        (lambda: LinearPhaseSDE([[0, 1], [-1, -1]], [0, -1]), ValueError, "D must hold squared"),
        (lambda: LinearPhaseSDE([[0, 1], [-1, -1]], [0, 0]), ValueError, "D must hold squared"),
        (lambda: LinearPhaseSDE([[0, 1], [-1, 1]], [0, 1]), ValueError, "no stationary law"),
        (lambda: LinearPhaseSDE([[-1, 0], [0, -1]], [0, 1]), ValueError, "does not reach both"),
        (lambda: CLD().transition(-1.0), ValueError, "tau must be >= 0, got -1.0"),
        (lambda: CLD().reversed_transition([-2.0]), ValueError, "tau must be >= 0, got -2.0"),
        (lambda: CLD().marginal(-0.5), ValueError, "t must be >= 0, got -0.5"),
        (lambda: CLD().marginal(float("nan")), ValueError, "t must be >= 0, got nan"),
        (lambda: CLD().marginal(0.5, "score"), ValueError, "objective must be one of hsm, dsm"),
        (lambda: sde_from_config({"kind": "vp"}), ValueError, "unknown SDE kind 'vp'"),
        (lambda: sde_from_config({}), ValueError, "unknown SDE kind None"),
        (lambda: sde_from_config({"kind": "cld", "b": 1}), ValueError, "bad fields for the SDE"),
        (lambda: sde_from_config({"kind": "cld", "a": None}), ValueError, "a must be a number"),
    ],
)
def test_refusals(make: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()
