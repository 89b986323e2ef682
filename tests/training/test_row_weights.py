"""Losses by tables and kernels against formulas and autograd."""

from __future__ import annotations

import math

import pytest
import torch
from core_calls import some_times
from forms import SEE_THE_STATE, SEE_Y

from cldfast import (
    CLD,
    PSLD,
    CallableBeta,
    CosineBeta,
    ExponentialBeta,
    LinearBeta,
    dsm_loss,
    hsm_loss,
    kernels,
    perturb,
)
from cldfast.kernels.time_tables import ROUNDING
from cldfast.planner.parameterization import FULL_MAPS, PARAMETERIZATIONS, data_form
from cldfast.training import row_weights
from cldfast.training.row_weights import (
    WEIGHTINGS,
    isotropic_weights,
    loss_tables,
    perturbation_table,
    perturbation_weights,
    residual_weights,
    row_loss,
    split_weights,
)

F64 = torch.float64
SDE = CLD(x_noise=0.3, beta=LinearBeta(0.5, 7.0))


SDES = {
    "constant": CLD(),
    "linear, x_noise": CLD(x_noise=0.5, beta=LinearBeta(0.5, 7.0)),
    "linear from 0": CLD(beta=LinearBeta(0.0, 8.0)),
    "exponential": CLD(beta=ExponentialBeta(0.1, 1.0, 3.0)),
    "cosine": CLD(beta=CosineBeta(2.0)),
    "long": CLD(T=3.7, beta=9.0),
    "PSLD": PSLD(beta=LinearBeta(0.1, 20.0)),
    "underdamped": CLD(damping=0.3, x_noise=0.2),
    "overdamped": CLD(damping=3.0),
    "no initial velocity": CLD(v0_var=0.0),
}
# All weightings for these.
FULLY = ("linear, x_noise", "PSLD")


def assert_table(table, function, end, t, terms=None):
    """Errors relative to an entry's size around t, or to units in the last place of its row.

    terms: sizes of what cancels in an entry, which count as its size.
    """
    assert table is not None
    # Entries that cancel leave the smallest times to the formula.
    assert bool(table.covers(t[t > 1e-3 * end]).all())
    t = t[table.covers(t)]
    size = torch.stack([function((t * c).clamp(max=end)).abs() for c in (0.75, 1.0, 1.3)]).amax(0)
    rows = size.amax(2, keepdim=True)
    if terms is not None:
        size = torch.maximum(size, terms(t))
    wanted, made = function(t), kernels.matrices(table.at(t))
    # `ROUNDING` bounds the error at the table's own test points; random ones may see thrice that.
    bound = 3 * ROUNDING * size + 16 * 2.0**-52 * rows
    assert made.shape == wanted.shape and bool(((made - wanted).abs() <= bound).all())


@pytest.mark.parametrize("name", SDES)
@pytest.mark.parametrize("objective", ["hsm", "dsm"])
def test_tables_are_the_formulas(name, objective):
    sde = SDES[name]
    t = some_times(sde.T)
    kernel = perturbation_table(sde, objective)
    assert kernel is perturbation_table(sde, objective)
    assert_table(kernel, lambda t: perturbation_weights(sde.marginal(t, objective)), sde.T, t)
    for weighting in WEIGHTINGS if name in FULLY else WEIGHTINGS[:1]:
        for parameterization in SEE_THE_STATE:
            tables = loss_tables(sde, objective, weighting, parameterization)
            assert tables == loss_tables(sde, objective, weighting, parameterization)
            for half, table in enumerate(tables):
                if table is None:
                    # Products that cancel, the more the smaller t: of a rotation, or of both parts
                    # of a data score and a velocity's noise. Such losses go by the formula.
                    rotated = parameterization == "full_noise_r" and objective == "hsm"
                    assert rotated or (data_form(parameterization) and objective == "dsm")
                    continue

                def whole(t, weighting=weighting, parameterization=parameterization):
                    kernel = sde.marginal(t, objective)
                    weights = residual_weights(sde, t, kernel, weighting, parameterization)
                    return perturbation_weights(kernel), weights

                def function(t, half=half, whole=whole):
                    return split_weights(*whole(t))[half]

                def terms(t, half=half, whole=whole):
                    return split_weights(*[weights.abs() for weights in whole(t)])[half]

                assert_table(table, function, sde.T, t, terms)


@pytest.mark.parametrize("name", SDES)
def test_tables_of_isotropic_losses(name):
    """Two coordinates by a matrix each, and the network's argument."""
    sde = SDES[name]
    t = some_times(sde.T)
    for weighting in WEIGHTINGS if name in FULLY else WEIGHTINGS[:1]:
        for parameterization in SEE_Y:
            tables = loss_tables(sde, "hsm", weighting, parameterization)
            assert tables == loss_tables(sde, "hsm", weighting, parameterization)
            for part, shape in enumerate(((4, 4), (2, 4), (1, 1))):

                def function(t, part=part, shape=shape, names=(weighting, parameterization)):
                    weights = isotropic_weights(sde, t, names[0], data_form(names[1]))
                    return weights[part].reshape(len(t), *shape)

                if tables[part] is None:
                    # sigma_y has no row beside it to be small against: this schedule's integral
                    # has lost relative precision at small t, and the loss goes by the formula.
                    assert name == "cosine"
                    continue
                assert_table(tables[part], function, sde.T, t)


def test_smooth_callables_have_tables_and_kinked_ones_have_none():
    smooth = CLD(beta=CallableBeta(lambda t: 1.0 + math.sin(3.0 * t) ** 2))
    t = some_times(1.0, 40)
    assert_table(
        perturbation_table(smooth, "hsm"),
        lambda t: perturbation_weights(smooth.marginal(t)), 1.0, t,
    )  # fmt: skip
    kinked = CLD(beta=CallableBeta(lambda t: 1.0 + max(0.0, t - 0.3)))
    assert perturbation_table(kinked, "hsm") is None


@pytest.mark.parametrize("parameterization", SEE_THE_STATE)
@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("objective", ["hsm", "dsm"])
def test_gradients_are_those_of_autograd(parameterization, weighting, objective):
    """In float32, to 1e-6 of their norm, against autograd through the reference in float64.

    Both as one residual of output, state and noise, and in the two halves that the losses use.
    """
    t = torch.rand(50, dtype=F64) * 0.99 + 0.01
    kernel = SDE.marginal(t, objective)
    weights = residual_weights(SDE, t, kernel, weighting, parameterization)
    first, second, _ = row_loss(SDE, t, objective, weighting, parameterization)
    planes = 2 if parameterization in FULL_MAPS else 1
    output, noise = torch.randn(50, 3 * planes), torch.randn(50, 6)
    data = tuple(torch.randn(50, 3) for _ in range(1 if objective == "hsm" else 2))
    wide = tuple(x.to(F64) for x in data)
    state, _ = kernels.perturb(wide, perturbation_weights(kernel), noise=noise.to(F64))

    def at_once(o, u, backend):
        planes = torch.cat([u, noise.to(u.dtype)], 1)
        return kernels.residual(o, planes, weights, reduction="mean", backend=backend)

    def by_halves(o):
        _, offset = kernels.perturb(data, first, noise=noise)
        return kernels.residual(o, offset, second, reduction="mean", overwrite=True)

    # A state of its own: what cancels between a state and its noise is lost at once, not by halves.
    other = torch.randn(50, 6)
    for run, reference in (
        (lambda o: at_once(o, other, "auto"), lambda o: at_once(o, other.to(F64), "reference")),
        (by_halves, lambda o: at_once(o, state, "reference")),
    ):
        seen = []
        for function, dtype in ((run, torch.float32), (reference, F64)):
            leaf = output.detach().clone().to(dtype).requires_grad_()
            loss = function(leaf)
            loss.backward()
            seen.append((loss.detach().to(F64), leaf.grad.to(F64)))
        assert abs(seen[0][0] - seen[1][0]) <= 1e-6 * seen[1][0]
        # Row by row: the sizes of rows span many orders.
        error = (seen[0][1] - seen[1][1]).norm(dim=1)
        assert bool((error <= 1e-6 * seen[1][1].norm(dim=1)).all())


@pytest.mark.parametrize(
    ("loss", "parameterization"),
    [*((hsm_loss, name) for name in PARAMETERIZATIONS), *((dsm_loss, n) for n in SEE_THE_STATE)],
)
def test_tables_change_no_loss(loss, parameterization, monkeypatch):
    x0 = torch.randn(60, 3, dtype=F64)
    planes = 6 if parameterization in FULL_MAPS else 3

    def rows(weighting):
        return loss(
            lambda u, t: u[:, :planes] * t[:, None], SDE, x0, weighting, parameterization, seed=3,
            t_min=0.01, reduction="none",
        )  # fmt: skip

    weightings = [*WEIGHTINGS, lambda t: 1.0 + t]
    fast = [rows(weighting) for weighting in weightings]
    monkeypatch.setattr(row_weights, "_looked_up", lambda t, bounds, tables: None)
    for made, weighting in zip(fast, weightings, strict=True):
        # Weights agree to 1e-12 or better; near t = 0.01 residuals cancel by some 1e2.
        assert torch.allclose(made, rows(weighting), rtol=1e-9, atol=1e-10)


def test_times_without_a_table_take_the_formula():
    kinked = CLD(beta=CallableBeta(lambda t: 1.0 + max(0.0, t - 0.3)))
    t = torch.tensor([1e-12, 0.3, 1.0], dtype=F64)
    for sde in (kinked, SDE):
        u, kernel = perturb(sde, torch.ones(3, 2, dtype=F64), t, noise=torch.zeros(3, 4, dtype=F64))
        assert torch.allclose(u[:, ::2], sde.marginal(t).mean, rtol=1e-14)
        assert isinstance(kernel.ell, torch.Tensor) and kernel.tau.shape == (3,)
        assert torch.equal(kernel.factor, sde.marginal(t).factor)


def test_gradients_of_times_are_not_lost():
    """Times with gradients go through the formula, and the operator's gradient of its weights."""
    t = torch.tensor([0.3, 0.5], dtype=F64, requires_grad=True)
    noise = torch.randn(2, 4, dtype=F64)

    def total(times):
        u, _ = perturb(SDE, torch.ones(2, 2, dtype=F64), times, noise=noise)
        return (u * torch.arange(1.0, 5.0, dtype=F64)).sum(1)

    (slope,) = torch.autograd.grad(total(t).sum(), t)
    h = 1e-5
    with torch.no_grad():
        wanted = (total(t + h) - total(t - h)) / (2.0 * h)
    # Central differences err by h^2 times a third derivative, and by roundings over h.
    assert torch.allclose(slope, wanted, rtol=1e-7, atol=1e-9)
