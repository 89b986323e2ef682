"""The loss of networks that see y: against plain PyTorch, against the state's, and its minimum."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from forms import SEE_Y

from cldfast import CLD, PSLD, LinearBeta, LinearPhaseSDE, Preconditioned, dsm_loss, hsm_loss
from cldfast.lab.mixture import GaussianMixture
from cldfast.planner.data_forms import DataForm
from cldfast.planner.parameterization import data_form
from cldfast.training.losses import WEIGHTINGS
from cldfast.training.times import TIME_SAMPLING

F64 = torch.float64
SDES = {
    "CLD": CLD(beta=LinearBeta(0.5, 7.0)),
    "x_noise": CLD(a=1.0, x_noise=0.5, beta=LinearBeta(0.5, 7.0)),
    "PSLD": PSLD(),
}
FORMS = [*SEE_Y, Preconditioned(0.5)]


def the_form(name: str | DataForm) -> DataForm:
    form = data_form(name)
    assert form is not None
    return form


def size_of(
    sde: LinearPhaseSDE, t: torch.Tensor, weighting: str, sigma_data: float
) -> torch.Tensor:
    """The weight (B,) of `|nu^ - nu|^2`, by inverse covariances."""
    rows = []
    for time in t.tolist():
        kernel, half = sde.marginal(time), 0.5 * float(sde.beta(time))
        pull = np.linalg.solve(kernel.cov, kernel.mean)  # of an error of x0, both rows' errors
        snr = kernel.mean @ pull
        rows.append({
            "reweighted": 1.0, "reweighted_g2": half * sde.D[1],
            "likelihood": half * (sde.D @ pull**2) / snr,
            "det": np.linalg.det(kernel.cov) * (pull @ pull) / snr,
            "edm": 1.0 + 1.0 / (snr * sigma_data**2),
        }[weighting])  # fmt: skip
    return torch.tensor(rows, dtype=F64)


def plain_edm_loss(net, x0, sigma, noise, sigma_data):
    """Karras et al. (2022), eq. 8 and table 1, per row: no part of the library in it."""
    shape = (-1, *[1] * (x0.dim() - 1))
    level, data = sigma.reshape(shape), sigma_data
    y = x0 + level * noise
    c_skip = data**2 / (level**2 + data**2)
    c_out = level * data / (level**2 + data**2).sqrt()
    c_in = 1.0 / (level**2 + data**2).sqrt()
    denoised = c_skip * y + c_out * net(c_in * y, sigma.log() / 4)
    weight = (sigma**2 + data**2) / (sigma * data) ** 2
    return weight * (denoised - x0).square().flatten(1).sum(1)


class Small(torch.nn.Module):
    """A function of what it sees and of its argument, coordinate by coordinate."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([0.7, -0.4, 0.3], dtype=F64))

    def forward(self, seen, argument):
        a = torch.tanh(argument).reshape(-1, *[1] * (seen.dim() - 1))
        return self.weight[0] * seen + self.weight[1] * torch.tanh(seen + a) + self.weight[2] * a


@pytest.mark.parametrize("sigma_data", [0.5, 1.0])
@pytest.mark.parametrize("shape", [(6, 4), (6, 5), (1, 1), (5, 3, 3, 5), (4, 2, 3, 4)], ids=str)
@pytest.mark.parametrize("name", SDES)
def test_the_loss_of_edm(name: str, shape: tuple[int, ...], sigma_data: float) -> None:
    """Loss and gradients are those of twenty lines of plain PyTorch with the same noise."""
    sde = SDES[name]
    t = torch.linspace(0.01, 1.0, shape[0], dtype=F64)
    x0, noise = sigma_data * torch.randn(shape, dtype=F64), torch.randn(shape, dtype=F64)
    results = []
    for run in (
        lambda net: hsm_loss(
            net, sde, x0, "edm", Preconditioned(sigma_data), t=t, noise=noise, reduction="none"
        ),
        lambda net: plain_edm_loss(net, x0, sde.marginal(t).sigma_y, noise, sigma_data),
    ):
        net = Small()
        rows = run(net)
        rows.mean().backward()
        results.append((rows.detach(), net.weight.grad))
    # Terms of size x0/sigma, up to 1e3, cancel to about 1 in both.
    torch.testing.assert_close(*[rows for rows, _ in results], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(*[grad for _, grad in results], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("name", SDES)
def test_weightings_by_their_definition(name: str, weighting: str, form: str | DataForm) -> None:
    """`w |nu^ - nu|^2` with nu^ from the output of any network."""
    sde, made = SDES[name], the_form(form)
    t = torch.tensor([0.01, 0.05, 0.3, 0.9], dtype=F64)
    x0, noise = torch.randn(4, 3, dtype=F64), torch.randn(4, 3, dtype=F64)
    net = Small()
    got = hsm_loss(net, sde, x0, weighting, form, t=t, noise=noise, reduction="none")
    sigma = sde.marginal(t).sigma_y
    parts = made.coefficients(sigma[:, None])
    y = x0 + sigma[:, None] * noise
    output = net(parts.scale * y, made.coefficients(sigma).argument)
    nu = (y - parts.keep * y - parts.gain * output) / sigma[:, None]
    weight = size_of(sde, t, weighting, getattr(made, "sigma_data", 1.0))
    torch.testing.assert_close(got, weight * (nu - noise).square().sum(1), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("weighting", ["likelihood", "det"])
def test_one_plane_counts_both_rows(weighting: str) -> None:
    """An error of the velocity row is one of x0: with position noise both rows have their part."""
    sde = CLD(a=1.0, sigma=2.0**0.5, x_noise=0.25, v0_var=0.01)
    t = torch.full((3,), 0.01, dtype=F64)
    x0, noise = torch.randn(3, 2, dtype=F64), torch.randn(3, 4, dtype=F64)
    kernel = sde.marginal(0.01)
    pull = np.linalg.solve(kernel.cov, kernel.mean)
    D = sde.D if weighting == "likelihood" else np.ones(2)
    ratio = (D @ pull**2) / (D[1] * pull[1] ** 2)
    if weighting == "likelihood":
        assert ratio == pytest.approx(61.0, rel=0.02)
    # The score of both rows is that of x0^ = 0 and of x0^ = x0: the difference, weighed by hand.
    sizes = 0.5 * sde.beta(0.01) * sde.D if weighting == "likelihood" else kernel.det * np.ones(2)
    want = (sizes @ pull**2) * x0.square().sum(1)
    for form in ("x0", "data_noise"):
        y = kernel.statistic

        def nothing(u, t, form=form, y=y):
            plane = y[0] * u[:, :2] + y[1] * u[:, 2:]
            return 0.0 * plane if form == "x0" else plane / float(kernel.sigma_y)

        got = hsm_loss(nothing, sde, x0, weighting, form, t=t, noise=noise, reduction="none")
        torch.testing.assert_close(got, want, rtol=1e-8, atol=0.0)


@pytest.mark.parametrize("weighting", ["reweighted", "likelihood"])
@pytest.mark.parametrize("name", SDES)
def test_the_isotropic_loss_has_the_expectation_of_the_states(name: str, weighting: str) -> None:
    """At every network: 4 standard errors of 40,000 rows; here of one that returns 0.3 y."""
    sde, n = SDES[name], 40_000
    t = torch.full((n,), 0.2, dtype=F64)
    kernel = sde.marginal(0.2)
    x0 = 0.5 * torch.randn(n, 1, dtype=F64)
    on_x, on_v = kernel.statistic

    def of_state(u, t):
        return 0.3 * (on_x * u[:, :1] + on_v * u[:, 1:])

    state = hsm_loss(of_state, sde, x0, weighting, "x0", seed=1, t=t, reduction="none")
    plane = hsm_loss(
        lambda y, s: 0.3 * y, sde, x0, weighting, "denoiser", seed=2, t=t, reduction="none"
    )
    error = float(state.std() + plane.std()) / n**0.5
    assert abs(float(state.mean() - plane.mean())) < 4.0 * error
    # E |0.3 y - x0|^2 = 0.49 var + 0.09 sigma^2, times the weight over sigma^2.
    level = float(kernel.sigma_y) ** 2
    weight = float(size_of(sde, t[:1], weighting, 1.0)[0]) / level
    assert float(plane.mean()) == pytest.approx(
        weight * (0.49 * 0.25 + 0.09 * level), abs=4 * error
    )


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_the_minimum_is_the_perfect_network(form: str | DataForm) -> None:
    """Its gradient vanishes there: of a scale and a shift of the output, on a mixture."""
    sde, n = SDES["x_noise"], 20_000
    mixture = GaussianMixture(
        np.array([0.3, 0.7]), np.array([[-1.0], [0.5]]), np.full((2, 1), 0.04)
    )
    x0 = mixture.sample(n, seed=3).double()
    perfect = mixture.network(sde, form)
    for time in (0.05, 0.6):
        change = torch.zeros(2, dtype=F64, requires_grad=True)
        kept = []

        def net(y, s, change=change, kept=kept):
            output = perfect(y, s[:1].expand(len(s)))
            kept.append(output)
            return output * (1.0 + change[0]) + change[1]

        rows = hsm_loss(
            net, sde, x0, parameterization=form, seed=5, t=torch.full((n,), time, dtype=F64),
            reduction="none",
        )  # fmt: skip
        (grad,) = torch.autograd.grad(rows.mean(), change)
        # d/dchange of r^2 is 2 r times -gain/sigma (o, 1), whose mean must be 0.
        made = the_form(form).coefficients(sde.marginal(time).sigma_y)
        slope = float(made.gain / sde.marginal(time).sigma_y)
        residual = 2.0 * rows.detach().sqrt() * abs(slope)
        bound = torch.stack([(residual * kept[0][:, 0]).square().mean(), residual.square().mean()])
        assert bool((grad.abs() < 4.5 * (bound / n).sqrt()).all())


@pytest.mark.parametrize("form", ["denoiser", "edm"])
@pytest.mark.parametrize("shape", [(12, 5), (12, 3, 2, 3)], ids=str)
def test_rows_are_addressed(backend: str, form: str, shape: tuple[int, ...]) -> None:
    x0, net = torch.randn(shape), Small().float().to(torch.get_default_device())
    options = {"parameterization": form, "seed": 4, "backend": backend, "reduction": "none"}
    whole = hsm_loss(net, SDES["x_noise"], x0, **options)
    for first, end in ((0, 5), (5, 6), (6, 12)):
        part = hsm_loss(net, SDES["x_noise"], x0[first:end], first_index=first, **options)
        assert torch.equal(part, whole[first:end])
    for reduction in ("mean", "sum"):
        made = hsm_loss(net, SDES["x_noise"], x0, **{**options, "reduction": reduction})
        torch.testing.assert_close(made, getattr(whole, reduction)(), rtol=1e-6, atol=0.0)


def test_noise_is_standard_normal_and_new_for_each_coordinate() -> None:
    """A denoiser that returns y leaves the noise itself, -nu, as the residual."""
    kept = []

    def net(y, sigma):
        kept.append((y / sigma[:, None]).clone())
        return y

    n = 4000
    t = torch.full((n,), 0.3, dtype=F64)
    rows = hsm_loss(net, SDES["CLD"], torch.zeros(n, 5, dtype=F64), "reweighted", "denoiser", 3, t,
                    reduction="none")  # fmt: skip
    nu = kept[0]
    torch.testing.assert_close(rows, nu.square().sum(1), rtol=1e-12, atol=0.0)
    assert bool((nu.mean(0).abs() < 5 / n**0.5).all())
    # Variances of a variance 2/n, of a covariance 1/n.
    error = (torch.cov(nu.T) - torch.eye(5)).abs()
    assert float(error.max()) < 5 * (2 / n) ** 0.5


@pytest.mark.parametrize("method", TIME_SAMPLING)
@pytest.mark.parametrize("form", ["data_noise", "denoiser"])
def test_the_likelihood_weighting_is_an_integral(method: str, form: str) -> None:
    """Its mean is that of [t_min, T], however times are drawn: 5 standard errors, by quadrature."""
    sde, n, t_min = SDES["x_noise"], 20_000, 0.02
    x0 = torch.zeros(n, 1, dtype=F64)
    # Of data 0 and x0^ = y/2 the error of nu is nu/2 (or so by nu^ = nu/2).
    kernel_free = {
        "denoiser": lambda y, s: 0.5 * y,
        "data_noise": lambda u, t: 0.5 * plane(u, t),
    }[form]

    def plane(u, t):
        kernel = sde.marginal(t)
        a = kernel.statistic / kernel.sigma_y[:, None]
        return a[:, :1] * u[:, :1] + a[:, 1:] * u[:, 1:]

    rows = hsm_loss(
        kernel_free, sde, x0, "likelihood", form, 3, t_min=t_min, times=method, reduction="none"
    )
    nodes, weights = np.polynomial.legendre.leggauss(200)
    half = 0.5 * np.log(1.0 / t_min)
    t = np.exp(half * nodes) * t_min**0.5  # log t is integrated over: the weight goes as 1/t
    values = size_of(sde, torch.from_numpy(t), "likelihood", 1.0).numpy() * 0.25 * t
    wanted = half * float(weights @ values)
    error = float(rows.std()) / n**0.5
    assert abs(float(rows.mean()) - wanted) < 5.0 * error
    assert error < 0.1 * wanted


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_autocast(half: torch.dtype) -> None:
    """The network in half precision, what it sees and the loss in their own."""
    x0 = torch.randn(64, 4)
    layer = torch.nn.Linear(4, 4)
    seen = []

    def net(y, s):
        seen.append(y.dtype)
        return layer(y)

    plain = hsm_loss(net, SDES["CLD"], x0, parameterization="edm", seed=2)
    with torch.autocast("cpu", half):
        mixed = hsm_loss(net, SDES["CLD"], x0, parameterization="edm", seed=2)
    mixed.backward()
    assert seen == [torch.float32] * 2 and mixed.dtype == plain.dtype
    assert mixed.item() == pytest.approx(plain.item(), rel=20 * torch.finfo(half).eps)
    assert bool(layer.weight.grad.isfinite().all())


def test_refusals() -> None:
    x0, net = torch.randn(4, 3), Small()
    with pytest.raises(ValueError, match="'edm' sees nothing of the velocity, .* use 'hsm'"):
        dsm_loss(net, SDES["CLD"], x0, parameterization="edm")
    with pytest.raises(ValueError, match=r"'edm' must be one plane, \(4, 3\), got \(4, 6\)"):
        hsm_loss(net, SDES["CLD"], x0, parameterization="edm", noise=torch.randn(4, 6))
    with pytest.raises(ValueError, match="needs the network's output to have 3"):
        hsm_loss(lambda y, s: y.repeat(1, 2), SDES["CLD"], x0, parameterization="edm")
