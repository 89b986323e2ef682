"""Forms of the data: their definitions, E[x0 | u] from each, and the law of their samplers."""

from __future__ import annotations

import mpmath as mp
import numpy as np
import pytest
import torch
from exact_mixture import MEANS, VARIANCES, WEIGHTS, mixture_in_one_dimension
from forms import question

from cldfast import CLD, PSLD, LinearPhaseSDE, Preconditioned, make_plan
from cldfast.lab.mixture import GaussianMixture
from cldfast.planner.data_forms import DATA_FORMS, DataForm
from cldfast.planner.law import exact_network, marginal_law
from cldfast.planner.parameterization import input_map, velocity_share, x0_map
from cldfast.planner.solvers import SOLVERS

SDES = {
    "CLD": CLD(),
    "x_noise 0.1": CLD(a=1.0, x_noise=0.1),
    "x_noise 1": CLD(a=1.0, x_noise=1.0),
    "at rest": CLD(v0_var=0.0),
    "PSLD": PSLD(),
    "overdamped": CLD(damping=3.0),
    "underdamped": CLD(damping=0.3, x_noise=0.1),
}
FORMS: dict[str, DataForm] = {**DATA_FORMS, "edm(0.5)": Preconditioned(0.5)}
# Arrays, for numbers in lists are rounded to float32.
MIXTURE = GaussianMixture(np.array(WEIGHTS), np.array(MEANS)[:, None], np.array(VARIANCES)[:, None])
SIGMAS = np.array([1e-12, 1e-6, 1e-3, 0.1, 1.0, 30.0, 1e6])


@pytest.mark.parametrize("name", FORMS)
def test_each_form_by_its_definition(name: str) -> None:
    """The output of a network that knows x0 = 1.3 and nu = -0.6, and x0 from it, in 40 digits."""
    made = FORMS[name].coefficients(SIGMAS)
    with mp.workdps(40):
        x0, nu = mp.mpf("1.3"), mp.mpf("-0.6")
        for k, number in enumerate(SIGMAS):
            sigma, data = mp.mpf(float(number)), mp.mpf("0.5") if "0.5" in name else mp.mpf(1)
            y, alpha, level = x0 + sigma * nu, 1 / mp.hypot(1, sigma), mp.hypot(data, sigma)
            output, scale, argument = {
                "x0": (x0, None, None),
                "data_noise": (nu, None, None),
                "denoiser": (x0, 1, sigma),
                "epsilon": (nu, alpha, sigma),
                "v_prediction": (alpha * nu - sigma * alpha * x0, alpha, sigma),
                # c_skip, c_out, c_in and c_noise of Karras et al. (2022), table 1.
                "edm": (
                    (x0 - data**2 / level**2 * y) / (sigma * data / level),
                    1 / level, mp.log(sigma) / 4,
                ),
            }[name.removesuffix("(0.5)")]  # fmt: skip
            keep, drop, gain = (
                mp.mpf(float(part[k])) for part in (made.keep, made.drop, made.gain)
            )
            # A few roundings of numbers of order 1, and of sigma nu.
            assert abs(keep * y + gain * output - x0) < 1e-15 * (2 + sigma)
            assert abs(keep + drop - 1) < 1e-15
            for got, want in ((made.scale, scale), (made.argument, argument)):
                assert (got is None) == (want is None)
                if want is not None:
                    assert abs(mp.mpf(float(got[k])) - want) <= 4e-16 * abs(want)


@pytest.mark.parametrize("sigma_data", [0.5, 1.0, 3.0])
def test_preconditioning_keeps_variances(sigma_data: float) -> None:
    """Input and target of the network have variance 1: Karras et al. (2022), appendix B.6."""
    made = Preconditioned(sigma_data).coefficients(SIGMAS)
    assert np.allclose(made.scale**2 * (sigma_data**2 + SIGMAS**2), 1.0, rtol=1e-14)
    target = (made.drop * sigma_data) ** 2 + (made.keep * SIGMAS) ** 2
    assert np.allclose(target / made.gain**2, 1.0, rtol=1e-14)


@pytest.mark.parametrize("t", [1e-8, 1e-6, 1e-3, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("name", SDES)
def test_expected_data_from_every_form(name: str, t: float) -> None:
    """E[x0 | u] to 1e-12, and to 1e-12 of y's noise from all forms but those of x0.

    At t = 1e-8 the noise of y is 1e-12 or less, and a float64 that holds x0 ends there: of E[x0 | u]
    itself y is all that can be seen. E[nu | u] = (y - E[x0 | u]) / sigma is of order 1 at all times,
    and forms whose gain goes as sigma keep it.
    """
    sde = SDES[name]
    rng, kernel = np.random.default_rng(0), sde.marginal(t)
    x0 = np.where(rng.random(6) < 0.3, -1.0, 1.5) + 0.4 * rng.standard_normal(6)
    states = x0[:, None] * kernel.mean + rng.standard_normal((6, 2)) @ kernel.factor.T
    _, data, noise = mixture_in_one_dimension(sde, t, states)
    # A slope Var[x0 | y] / sigma^2 < 20 between the modes carries the roundings of y, a sum of two.
    y, u, sigma = states @ kernel.statistic, torch.from_numpy(states), float(kernel.sigma_y)
    size = 1.0 + np.abs(states) @ np.abs(kernel.statistic)
    for form in FORMS.values():
        output = MIXTURE.network(sde, form)(*question(sde, t, form, u)).numpy()[:, 0]
        to_data = x0_map(sde, np.array([t]), form)
        got = output * to_data.from_output[0, 0, 0] + states @ to_data.from_state[0, 0]
        assert np.all(np.abs(got - data) < 1e-12 * size), form
        made = form.coefficients(kernel.sigma_y)
        left = (made.drop * y - made.gain * output) / sigma
        lost = 1e-12 * size / sigma if form.name in ("x0", "denoiser") else 1e-12 * size
        assert np.all(np.abs(left - noise) < lost + 1e-12), form


@pytest.mark.parametrize("name", SDES)
def test_a_perfect_network_of_gaussian_data(name: str) -> None:
    """`exact_network` is what the mixture of one component returns."""
    sde, t = SDES[name], np.array([1e-6, 0.03, 0.7])
    gaussian = GaussianMixture(np.ones(1), np.array([[0.4]]), np.array([[0.3]]))
    u = torch.randn(9, 2, dtype=torch.float64)
    for form in FORMS.values():
        gain, shift = exact_network(sde, t, form, 0.4, 0.3)
        for k, time in enumerate(t):
            want = gaussian.network(sde, form)(*question(sde, float(time), form, u))
            got = u.numpy() @ gain[k].T + shift[k]
            assert np.allclose(got, want.numpy(), rtol=1e-12, atol=1e-12 * np.abs(gain[k]).max())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("solver", SOLVERS)
def test_the_law_is_that_of_the_full_score(solver: str, form: str) -> None:
    """Exact networks make one sampler, whatever they return, and whatever they see."""
    for sde in (SDES["x_noise 0.1"], SDES["PSLD"]):
        laws = [
            make_plan(sde, solver, 6, t_min=0.01, parameterization=p, denoise=True).gaussian_law(
                data_mean=0.4, data_var=0.3
            )
            for p in ("full_score", FORMS[form])
        ]
        # Coefficients grow to about snr(0.01) < 1e5 where both rows of the score are multiplied out.
        assert np.allclose(laws[0].mean, laws[1].mean, rtol=1e-9, atol=1e-9)
        assert np.allclose(
            laws[0].cov, laws[1].cov, rtol=1e-9, atol=1e-9 * np.abs(laws[0].cov).max()
        )


def test_the_share_of_the_velocity_row() -> None:
    """0.07 %, 1.7 % and 33 %: what the velocity score says, with a = 1, sigma^2 = 2."""
    sde = CLD(a=1.0, sigma=2.0**0.5, x_noise=0.25, v0_var=0.01)
    t = np.array([1e-3, 1e-2, 1e-1])
    share = velocity_share(sde, t)
    assert share == pytest.approx([0.0007, 0.017, 0.33], rel=0.05)
    kernel = sde.marginal(t)
    for k in range(3):
        # snr of x0 in the velocity row `ell eps_v` of the score of a point, over that in u.
        pull = np.linalg.solve(kernel.cov[k], kernel.mean[k])
        want = pull[1] ** 2 / np.linalg.inv(kernel.cov[k])[1, 1] / (kernel.mean[k] @ pull)
        assert share[k] == pytest.approx(want, rel=1e-9)
    full = velocity_share(CLD(a=1.0, sigma=2.0**0.5, v0_var=0.01), t)
    assert np.all(full > 0.6) and np.all(full <= 1.0)


def test_plans_say_what_the_network_sees() -> None:
    sde = SDES["x_noise 0.1"]
    plan = make_plan(sde, "multistep", 4, parameterization="edm")
    for stage in plan.stages:
        assert stage.seen is not None and stage.seen.shape == (1, 2)
        level = float(sde.marginal(stage.t).sigma_y)
        assert stage.argument == pytest.approx(np.log(level) / 4, rel=1e-14)
    assert plan.output_planes == (1,)
    assert all(len(m) == 2 + s.history_planes + 1 for m, s in
               zip(plan.matrices()[:-1], plan.stages[:-1], strict=True))  # fmt: skip
    assert input_map(sde, np.array([0.3]), "data_noise") is None
    # Position noise alone decides the default.
    assert make_plan(sde, steps=3).parameterization == "data_noise"
    assert make_plan(CLD(), steps=3).parameterization == "score"


@pytest.mark.parametrize(
    ("value", "error", "words"),
    [
        (0.0, ValueError, "sigma_data must be finite and > 0, got 0.0"),
        (float("inf"), ValueError, "got inf"),
        (float("nan"), ValueError, "got nan"),
        (True, TypeError, "sigma_data must be a number, got bool"),
        ("1", TypeError, "got str"),
    ],
)
def test_refusals(value: object, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        Preconditioned(value)  # type: ignore[arg-type]


def test_a_parameterisation_is_a_name_or_a_form() -> None:
    with pytest.raises(TypeError, match="must be a name or a form such as cldfast.Preconditioned"):
        make_plan(CLD(), steps=2, parameterization=3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"score at t = 0.0 does not exist"):
        input_map(CLD(), np.array([0.0]), "denoiser")


def test_any_process_serves() -> None:
    """Also a decoupled one, of which the velocity says nothing."""
    sde = LinearPhaseSDE([[-0.5, 0.0], [0.0, -1.0]], [1.0, 2.0], 0.3)
    plan = make_plan(sde, "multistep", 30, "log_snr", parameterization="edm", denoise=True)
    start = marginal_law(sde, sde.T, 0.4, 0.3)
    law = plan.gaussian_law(start.mean, start.cov, data_mean=0.4, data_var=0.3)
    # Order 2 in 30 steps; and denoised data lack what y's noise at t_min leaves open, 0.1 %.
    assert law.mean[0] == pytest.approx(0.4, abs=0.01)
    assert law.cov[0, 0] == pytest.approx(0.3, abs=0.02)
