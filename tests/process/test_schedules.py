"""Schedules: closed integrals and inverses against mpmath's quadrature of the rate."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import mpmath as mp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cldfast.process.schedules import (
    CallableBeta,
    ConstantBeta,
    CosineBeta,
    ExponentialBeta,
    LinearBeta,
    Schedule,
    as_schedule,
    schedule_config,
    schedule_from_config,
)

SCHEDULES: list[Schedule] = [
    ConstantBeta(4.0),
    LinearBeta(0.1, 20.0),
    LinearBeta(0.0, 8.0),
    LinearBeta(8.0, 0.5, T=2.0),
    LinearBeta(4.0, 4.0),
    ExponentialBeta(0.1, 2.0, 3.0),
    ExponentialBeta(0.0, 1.0, 0.01),
    ExponentialBeta(0.5, 0.0, 1.0),
    ExponentialBeta(0.1, 1e-3, 12.0),
    CosineBeta(),
    CosineBeta(scale=2.0, offset=0.0, end=0.9, T=3.0),
]
TIMES = [1e-12, 1e-8, 1e-4, 0.01, 0.3, 0.77, 1.0]


def exact_beta(schedule: Schedule) -> Callable[[Any], Any]:
    """The rate by its definition, in mpmath."""
    f = mp.mpf
    if isinstance(schedule, ConstantBeta):
        return lambda t: f(schedule.value)
    if isinstance(schedule, LinearBeta):
        return lambda t: (
            f(schedule.beta_min) + (f(schedule.beta_max) - f(schedule.beta_min)) * t / f(schedule.T)
        )
    if isinstance(schedule, ExponentialBeta):
        return lambda t: f(schedule.beta_min) + f(schedule.delta) * (mp.exp(f(schedule.k) * t) - 1)
    assert isinstance(schedule, CosineBeta)
    start = mp.pi / 2 * f(schedule.offset) / (1 + f(schedule.offset))
    speed = (mp.pi / 2 * f(schedule.end) - start) / f(schedule.T)
    # The rate of alpha_bar = cos^2(angle): -d ln(alpha_bar)/dt, times the scale.
    return lambda t: f(schedule.scale) * 2 * speed * mp.tan(start + speed * t)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: repr(s).split(" at 0x")[0])
def test_beta_and_integral(schedule: Schedule) -> None:
    """To some roundings at every scale of t: `tau` is what all coefficients are functions of.

    Near its end the cosine schedule has `beta ~ 1/(1 - end t)`: 1/(1 - 0.99) roundings there.
    """
    bound = mp.mpf(100 if isinstance(schedule, CosineBeta) else 10) * mp.mpf(2) ** -53
    beta = exact_beta(schedule)
    got_beta, got_tau = schedule.beta(np.array(TIMES)), schedule.integral(np.array(TIMES))
    with mp.workdps(40):
        for t, rate, tau in zip(TIMES, got_beta, got_tau, strict=True):
            want_rate, want_tau = beta(mp.mpf(t)), mp.quad(beta, [0, mp.mpf(t) / 2, mp.mpf(t)])
            assert abs(mp.mpf(float(rate)) - want_rate) <= bound * want_rate
            assert abs(mp.mpf(float(tau)) - want_tau) <= bound * want_tau
    assert schedule.integral(0.0) == 0.0


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: repr(s).split(" at 0x")[0])
def test_inverse(schedule: Schedule) -> None:
    """`t(tau(t)) = t`; an error eps in tau is one of `eps tau / (t beta(t))` in t, relative."""
    t = np.array(TIMES)
    tau = schedule.integral(t)
    condition = np.maximum(tau / (t * schedule.beta(t)), 1.0)
    error = np.abs(schedule.inverse(tau) / t - 1.0)
    assert np.all(error < 40 * 2.0**-53 * condition)
    assert schedule.inverse(0.0) == 0.0


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from([0.0, 1e-6, 0.1, 5.0]),
    st.floats(-6.0, 2.0),
    st.floats(-3.0, 1.3),
    st.floats(-12.0, 0.0),
)
def test_exponential_inverse_everywhere(
    beta_min: float, log_delta: float, log_k: float, log_t: float
) -> None:
    """Newton's method from its bounds gets there for every shape of the schedule."""
    schedule = ExponentialBeta(beta_min, 10.0**log_delta, 10.0**log_k)
    t = 10.0**log_t
    # tau / (t beta) <= 1 for an increasing rate, so t is as good as tau: a few roundings.
    assert abs(float(schedule.inverse(schedule.integral(t))) / t - 1.0) < 1e-13


def test_cosine_is_nichol_and_dhariwal() -> None:
    """`alpha_bar(t) = f(t)/f(0)`, `f = cos^2((t + s)/(1 + s) pi/2)`, at the angles both reach."""
    offset = 0.008
    schedule = CosineBeta(offset=offset, end=0.999)
    angle = 0.5 * math.pi * np.linspace(offset / (1 + offset), 0.999, 50)
    alpha_bar = (np.cos(angle) / np.cos(angle[0])) ** 2
    # 1/cos(angle) amplifies the rounding of the angle at the end: tan(angle) < 640.
    got = np.exp(-schedule.integral(np.linspace(0.0, 1.0, 50)))
    assert np.allclose(got, alpha_bar, rtol=1e-12, atol=0.0)


def test_callable_is_integrated() -> None:
    schedule = CallableBeta(lambda t: 0.1 + 19.9 * t)
    exact = LinearBeta(0.1, 20.0)
    t = np.array([[0.5, 1e-6], [1.0, 0.5]])  # unsorted, repeated, any shape
    assert np.allclose(schedule.integral(t), exact.integral(t), rtol=1e-12, atol=0.0)
    assert np.allclose(schedule.beta(t), exact.beta(t), rtol=1e-15)
    tau = exact.integral(t)
    # brentq stops at 1e-15 T and at 4 roundings of t.
    assert np.allclose(schedule.inverse(tau), t, rtol=1e-12, atol=1e-14)
    assert schedule.inverse(np.array([0.0]))[0] == 0.0
    kink = CallableBeta(lambda t: 1.0 if t < 0.3 else 5.0)
    assert np.allclose(kink.integral(1.0), 0.3 + 3.5, rtol=1e-9)


@pytest.mark.parametrize(
    "schedule",
    [*SCHEDULES, CallableBeta(lambda t: 1.0 + t * t)],
    ids=lambda s: repr(s).split(" at 0x")[0],
)
def test_torch(schedule: Schedule) -> None:
    """Tensors of any float dtype in, float64 tensors out, the numbers of numpy."""
    t = np.array(TIMES)[2:]
    for method in (schedule.beta, schedule.integral, schedule.inverse):
        want = method(t)
        got = method(torch.from_numpy(t))
        assert got.dtype == torch.float64
        assert np.allclose(got.numpy(), want, rtol=1e-13, atol=0.0)
        assert method(torch.from_numpy(t).float()).dtype == torch.float64


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: repr(s).split(" at 0x")[0])
def test_config_round_trip(schedule: Schedule) -> None:
    assert schedule_from_config(schedule_config(schedule)) == schedule


@pytest.mark.parametrize(
    "schedule", [*SCHEDULES, CallableBeta(math.exp)], ids=lambda s: repr(s).split(" at 0x")[0]
)
def test_a_schedule_cannot_be_changed(schedule: Schedule) -> None:
    for name in (*vars(schedule), "something_new"):
        with pytest.raises(AttributeError, match="cannot assign to field"):
            setattr(schedule, name, 1.0)
    for same in (copy.deepcopy(schedule), pickle.loads(pickle.dumps(schedule))):
        assert same == schedule and hash(same) == hash(schedule)


def test_what_a_number_and_a_function_become() -> None:
    assert as_schedule(4, 1.0) == ConstantBeta(4.0)
    assert as_schedule(np.float32(0.5), 1.0) == ConstantBeta(0.5)
    assert as_schedule(LinearBeta(1.0, 2.0), 1.0) == LinearBeta(1.0, 2.0)
    schedule = as_schedule(math.exp, 2.0)
    assert isinstance(schedule, CallableBeta) and schedule.T == 2.0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ConstantBeta(0.0), "value must be a finite number > 0, got 0.0"),
        (lambda: ConstantBeta(math.nan), "value must be a finite number > 0, got nan"),
        (lambda: LinearBeta(-1.0, 2.0), "beta_min must be a finite number >= 0"),
        (lambda: LinearBeta(1.0, math.inf), "beta_max must be a finite number > 0"),
        (lambda: LinearBeta(1.0, 2.0, T=0.0), "T must be a finite number > 0"),
        (lambda: ExponentialBeta(0.0, 0.0), "beta_min_plus_delta must be a finite number > 0"),
        (lambda: ExponentialBeta(0.1, -1.0), "delta must be a finite number >= 0"),
        (lambda: ExponentialBeta(0.1, 1.0, 0.0), "k must be a finite number > 0"),
        (lambda: CosineBeta(end=1.0), "end must lie between"),
        (lambda: CosineBeta(offset=-0.1), "offset must be"),
        (lambda: CallableBeta(lambda t: -1.0).integral(1.0), "beta must be finite and >= 0"),
        (lambda: CallableBeta(lambda t: 1.0).inverse(2.0), r"tau must lie in \[0, 1.0\], got 2.0"),
        (lambda: schedule_from_config({"kind": "step"}), "unknown schedule 'step'"),
        (lambda: schedule_from_config({"kind": "linear", "slope": 1}), "bad fields for the linear"),
        (lambda: schedule_config(CallableBeta(math.exp)), "can be written to a file"),
    ],
)
def test_refusals(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_refused_types() -> None:
    with pytest.raises(TypeError, match="beta must be a number, a schedule or a callable"):
        as_schedule("fast", 1.0)
    with pytest.raises(TypeError, match="beta must be a number, a schedule or a callable"):
        as_schedule(True, 1.0)
