"""`compat.psld` beside its published formulas, written again from drift and noise matrices."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from psld_cases import CASES, classifier, network, rows_of
from scipy.linalg import expm

from cldfast import make_plan, run
from cldfast.compat import psld
from cldfast.compat.psld.process import factor, noise_to_score, process_of

F64 = torch.float64
BETA_0, BETA_1, KAPPA, JITTER = 2.0, 9.0, 0.04, 1e-5
END = 1e-2


def ns(**fields):
    return SimpleNamespace(**fields)


def sde_object(gamma, nu, decomposition, jitter=JITTER):
    """What the samplers read of the codebase's SDE."""
    return ns(
        gamma=gamma, nu=nu, kappa=KAPPA, beta_0=BETA_0, beta_1=BETA_1, T=1.0, eps=jitter,
        mm_0=KAPPA * 4 / (gamma - nu) ** 2, decomp_mode=decomposition,
    )  # fmt: skip


def config(training="hsm", mean=True):
    return ns(
        training=ns(mode=training, loss=ns(weighting="fid", l_type="l2", reduce_mean=mean)),
        evaluation=ns(n_discrete_steps=20, sampler=ns(rtol=1e-6, atol=1e-6, solver="RK45")),
        clf=ns(evaluation=ns(label_to_sample=1, clf_temp=1.7)),
    )


def rate(t):
    return BETA_0 + (BETA_1 - BETA_0) * t


def integral(t):
    return BETA_0 * t + 0.5 * (BETA_1 - BETA_0) * t * t


def matrices(case):
    gamma, nu, _ = case
    mass_inv = (gamma - nu) ** 2 / 4
    A = 0.5 * np.array([[-gamma, mass_inv], [-1.0, -nu]])
    return A, np.diag([gamma, nu / mass_inv]), 1 / mass_inv


def moved(A, D, tau, start):
    """Propagator, and covariance from `start`, by a matrix exponential (Van Loan 1978)."""
    blocks = expm(np.block([[-A, D], [np.zeros((2, 2)), A.T]]) * tau)
    phi = blocks[2:, 2:].T
    return phi, phi @ blocks[:2, 2:] + phi @ start @ phi.T


def root(cov, decomposition):
    if decomposition == "lower":
        return np.linalg.cholesky(cov)
    flip = np.eye(2)[::-1]
    return flip @ np.linalg.cholesky(flip @ cov @ flip) @ flip


def published_score(case, t):
    """`-C^-T`, jitter in the covariance, rounded to single precision: columns of the outputs."""
    A, D, mass = matrices(case)
    _, cov = moved(A, D, integral(t), np.diag([0.0, KAPPA * mass]))
    inverse = np.linalg.inv(root(cov + JITTER * np.eye(2), case[2])).T
    chosen = rows_of(*case)
    result = -inverse.astype(np.float32).astype(float)[:, chosen]
    if len(chosen) == 1:
        result[1 - chosen[0]] = 0.0
    return result


def apply(matrix, u):
    """A (2, r) matrix on the planes of u."""
    planes = torch.stack(u.double().chunk(matrix.shape[1], 1))
    return torch.cat(list(torch.tensordot(torch.from_numpy(matrix), planes, 1)), 1)


def ask(score_fn, u, t):
    return score_fn(u.float(), torch.full((len(u),), t, dtype=torch.float32))


def euler(case, score_fn, u, t, h, z, more=0.0):
    """A step of the reverse SDE from t with the rate at t; `more` is added to the score."""
    A, D, _ = matrices(case)
    w = h * rate(t)
    score = apply(published_score(case, t), ask(score_fn, u, t)) + more
    u = u - w * apply(A, u) + w * apply(D, score)
    return u if z is None else u + apply(np.sqrt(w * D), z)


def denoised(case, score_fn, u, eps=END, more=None):
    """Both the time and the length of the last step are of single precision."""
    t, h = 1.0 - float(np.float32(1.0 - eps)), float(np.float32(eps))
    return euler(case, score_fn, u, t, h, None, 0.0 if more is None else more(u, t))


def published_sscs(case, score_fn, u, ts, draws):
    """Half a free step, Euler's kick from the step's start, the same half step again."""
    A, D, mass = matrices(case)
    stationary = np.diag([1.0, 1 / mass])
    back = -A - D @ stationary
    for s, e in zip(ts[:-1], ts[1:], strict=True):
        t, h = 1.0 - s, e - s
        way = integral(t) - integral(1.0 - (s + h / 2))
        phi, cov = moved(back, D, way, np.zeros((2, 2)))
        C = root(cov + JITTER * np.eye(2), case[2])
        u = apply(phi, u) + apply(C, next(draws))
        score = apply(published_score(case, t), ask(score_fn, u, t))
        u = u + h * rate(t) * apply(D, score + apply(stationary, u))
        u = apply(phi, u) + apply(C, next(draws))
    return u


def sampler_times(steps=20):
    """Strides that grow, so that no step is like another."""
    s = torch.linspace(0, 1, steps + 1, dtype=F64)
    return (1.0 - END) * (2 * s - s**2)


def close(got, expected, room=1e-11):
    assert got.dtype == F64
    size = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(got, expected, rtol=0.0, atol=room * size)


# --- published ---------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("name", ["em_sde", "sscs_sde"])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("denoise", [True, False])
def test_published_samplers_follow_the_formulas(case, name, dtype, denoise):
    """dtype: of the states and the network; the codebase goes on in double precision."""
    score_fn, ts = network(case, dtype), sampler_times()
    batch = torch.randn(4, 6, dtype=dtype)
    draws = [torch.randn(4, 6, dtype=dtype) for _ in range(40)]
    sampler = psld.REGISTERED["samplers"][name](
        config(), sde_object(*case), score_fn, mode="published"
    )
    got = sampler.sample(batch, ts, 20, denoise, END, noise=draws)
    assert sampler.nfe == 20 == sampler.n_steps
    u, times = batch.double(), ts.tolist()
    if name == "em_sde":
        for s, e, z in zip(times[:-1], times[1:], draws, strict=False):
            u = euler(case, score_fn, u, 1.0 - s, e - s, z)
    else:
        u = published_sscs(case, score_fn, u, times, iter(draws))
    if denoise:
        u = denoised(case, score_fn, u)
    # A network of single precision has its scores summed in it there, one by one here.
    close(got, u, 1e-11 if dtype == F64 else 1e-5)


def class_gradient(u, t):
    leaf = u.detach().clone().requires_grad_()
    logits = classifier(leaf.float(), torch.full((len(u),), t, dtype=torch.float32))
    (grad,) = torch.autograd.grad(torch.log_softmax(logits, 1)[:, 1].sum(), leaf)
    return 1.7 * grad


@pytest.mark.parametrize("case", CASES[:3], ids=str)
def test_published_class_conditional_sampler_asks_the_classifier_at_the_wrong_time(case):
    score_fn, ts = network(case), sampler_times()
    batch = torch.randn(4, 6, dtype=F64)
    draws = [torch.randn(4, 6, dtype=F64) for _ in range(21)]
    sampler = psld.ClassCondEulerMaruyamaSampler(
        config(), sde_object(*case), score_fn, classifier, mode="published"
    )
    got = sampler.sample(batch, ts, 20, True, END, noise=draws)
    u, times = batch, ts.tolist()
    for s, e, z in zip(times[:-1], times[1:], draws, strict=False):
        u = euler(case, score_fn, u, 1.0 - s, e - s, z, class_gradient(u, s))
    u = denoised(case, score_fn, u, more=lambda u, t: class_gradient(u, 1.0 - t))
    # The classifier is of single precision.
    close(got, u, 1e-5)


@pytest.mark.parametrize("training", ["hsm", "dsm"])
@pytest.mark.parametrize("case", CASES[:3], ids=str)
@pytest.mark.parametrize("denoise", [True, False])
def test_published_inpainting_takes_the_known_part_from_the_start_of_a_step(
    case, training, denoise
):
    score_fn, ts = network(case), sampler_times(6)
    A, D, mass = matrices(case)
    data, mask = torch.randn(3, 4, dtype=F64), torch.tensor([1.0, 0.0, 0.5, 1.0])
    # Prior x and v; then per step normals of the state, momenta, normals of the kernel.
    draws = [torch.randn(3, 4) for _ in range(2)] + [torch.randn(3, 4, dtype=F64)]
    draws.append(torch.randn(3, 8, dtype=F64))
    for _ in range(7):
        draws += [torch.randn(3, n, dtype=F64) for n in (8, 4, 8)]
    sampler = psld.ES3EulerMaruyamaInpainter(
        config(training), sde_object(*case), score_fn, mode="published"
    )
    got = sampler.sample((data, mask), ts, 6, denoise, END, noise=draws)
    left, both = iter(draws), torch.cat([mask, mask])

    def known(t, mean_only=False):
        momentum = next(left) * (KAPPA * mass) ** 0.5
        start = np.diag([0.0, KAPPA * mass if training == "hsm" else 0.0])
        phi, cov = moved(A, D, integral(t), start)
        z = next(left)
        pair = torch.cat([data, 0 * momentum if training == "hsm" else momentum], 1)
        u = apply(phi, pair)
        return u if mean_only else u + apply(root(cov + JITTER * np.eye(2), case[2]), z)

    u = torch.cat([next(left), next(left) * mass**0.5], 1).double()
    u = u * (1 - both) + known(1.0) * both
    times = ts.tolist()
    for s, e in zip(times[:-1], times[1:], strict=True):
        u = euler(case, score_fn, u, 1.0 - s, e - s, next(left))
        u = u * (1 - both) + known(1.0 - s) * both
    if denoise:
        next(left)
        t = 1.0 - float(np.float32(1.0 - END))
        u = denoised(case, score_fn, u) * (1 - both) + known(t, True) * both
    # The prior of v is rounded once, in single precision.
    close(got, u, 1e-6)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("training", ["hsm", "dsm"])
@pytest.mark.parametrize("mean", [True, False])
@pytest.mark.parametrize("mode", ["exact", "published"])
@pytest.mark.parametrize("shape", [(8, 3), (4, 3, 2, 2)])
def test_loss_is_the_squared_error_of_the_noise(case, training, mean, mode, shape):
    """Exact: the same without jitter."""
    A, D, mass = matrices(case)
    x_0, momentum = (torch.randn(shape, dtype=F64) for _ in range(2))
    z = torch.randn(shape[0], 2 * shape[1], *shape[2:], dtype=F64)
    t = torch.linspace(0.05, 1.0, shape[0], dtype=F64)
    loss = psld.PSLDScoreLoss(config(training, mean), sde_object(*case), mode=mode)
    got = loss(x_0, t, network(case), z, momentum=momentum)
    start = np.diag([0.0, KAPPA * mass if training == "hsm" else 0.0])
    v = 0 * momentum if training == "hsm" else momentum * (KAPPA * mass) ** 0.5
    rows = []
    for i, s in enumerate(t.tolist()):
        phi, cov = moved(A, D, integral(s), start)
        C = root(cov + (JITTER if mode == "published" else 0.0) * np.eye(2), case[2])
        rows.append(apply(phi, torch.cat([x_0, v], 1)[i : i + 1]) + apply(C, z[i : i + 1]))
    u = torch.cat(rows)
    targets = z.chunk(2, 1)
    target = torch.cat([targets[r] for r in rows_of(*case)], 1)
    error = (network(case)(u.float(), t.float()) - target) ** 2
    # The network sees single precision.
    assert float(got) == pytest.approx(float(error.mean() if mean else error.sum()), rel=1e-6)


def test_published_loss_draws_momenta_first():
    """As the codebase does, in either mode of training."""
    case, x_0, t = CASES[0], torch.randn(8, 3), torch.rand(8, dtype=F64) * 0.9 + 0.1
    loss = psld.PSLDScoreLoss(config(), sde_object(*case), mode="published")
    torch.manual_seed(1)
    got = loss(x_0, t, network(case))
    torch.manual_seed(1)
    torch.randn(8, 3)
    assert torch.equal(got, loss(x_0, t, network(case), torch.randn(8, 6)))


def test_published_covariance_that_rounding_breaks_is_refused():
    sde = sde_object(0.0, 4.0, "lower", jitter=0.0)
    loss = psld.PSLDScoreLoss(config(), sde, mode="published")
    with pytest.raises(ValueError, match="published covariance is not positive definite"):
        loss(torch.randn(1, 3), torch.tensor([1e-9]), network(CASES[2]))


# --- exact -------------------------------------------------------------------------------------


@pytest.mark.parametrize("decomposition", ["lower", "upper"])
def test_factors_and_scores(decomposition):
    process = process_of(sde_object(0.3, 3.0, "lower"))
    for objective in ("hsm", "dsm"):
        cov = process.marginal(np.array([0.01, 0.3, 1.0]), objective).covariance
        C = factor(cov, decomposition)
        assert np.allclose(C @ C.swapaxes(1, 2), cov.matrix, rtol=1e-12, atol=1e-15)
        off = C[:, 0, 1] if decomposition == "lower" else C[:, 1, 0]
        assert np.all(off == 0.0)
        expected = -np.linalg.inv(C).swapaxes(1, 2)
        assert np.allclose(noise_to_score(cov, decomposition, (0, 1)), expected, rtol=1e-9)
        for row in (0, 1):
            part = noise_to_score(cov, decomposition, (row,))
            assert np.allclose(part, expected[:, :, row : row + 1], rtol=1e-9)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("training", ["hsm", "dsm"])
@pytest.mark.parametrize(("name", "solver"), [("em_sde", "em"), ("sscs_sde", "sscs")])
def test_exact_samplers_are_plans(case, training, name, solver):
    """The plan of the full score, with the score made of the network's noise outside."""
    sde, score_fn, ts = sde_object(*case), network(case), sampler_times(7)
    process = process_of(sde)
    plan = make_plan(process, solver, grid=1.0 - ts.numpy(), parameterization="full_score")
    init = torch.randn(4, 6, dtype=F64)
    noise = [torch.randn(4, 6, dtype=F64) for _ in plan.stages]
    chosen = rows_of(*case)

    def score(u, t):
        cov = process.marginal(float(t[0]), training).cov
        matrix = -np.linalg.inv(root(cov, case[2])).T[:, chosen]
        return apply(matrix, score_fn(u.float(), t.float()))

    sampler = psld.REGISTERED["samplers"][name](config(training), sde, score_fn)
    got = sampler.sample(init, ts, 7, False, END, noise=noise)
    # numpy's inverse of a covariance at t = 0.01 has lost some digits.
    close(got, run(plan, score, init, noise=noise), 1e-8)
    assert sampler.sample(init.float(), ts, 7, True, END).dtype == torch.float32


def test_exact_last_step_is_eulers_without_noise():
    case = CASES[0]
    sde, score_fn, ts = sde_object(*case), network(case), sampler_times(3)
    sampler = psld.EulerMaruyamaSampler(config(), sde, score_fn)
    init = torch.randn(4, 6, dtype=F64)
    noise = [torch.randn(4, 6, dtype=F64) for _ in range(3)]
    before = sampler.sample(init, ts, 3, False, END, noise=noise)
    got = sampler.sample(init, ts, 3, True, END, noise=[*noise, None])
    A, D, mass = matrices(case)
    _, cov = moved(A, D, integral(END), np.diag([0.0, KAPPA * mass]))
    score = apply(-np.linalg.inv(root(cov, "lower")).T, ask(score_fn, before, END))
    w = END * rate(END)
    close(got, before - w * apply(A, before) + w * apply(D, score), 1e-9)


def test_exact_class_conditional_sampler_asks_the_classifier_at_the_forward_time():
    case, asked = CASES[1], []
    sde, ts = sde_object(*case), sampler_times(5)
    A, D, _ = matrices(case)

    def watched(u, t):
        asked.append(float(t[0]))
        return classifier(u, t)

    init = torch.randn(4, 6, dtype=F64)
    noise = [torch.randn(4, 6, dtype=F64) for _ in range(5)]
    sampler = psld.ClassCondEulerMaruyamaSampler(config(), sde, network(case), watched)
    got = sampler.sample(init, ts, 5, False, END, noise=noise)
    assert np.allclose(asked, 1.0 - ts[:-1], atol=1e-7)
    # Step by step: a plain step, and the gradient's share.
    u = init
    for k in range(5):
        t, s = 1.0 - float(ts[k]), 1.0 - float(ts[k + 1])
        plain = psld.EulerMaruyamaSampler(config(), sde, network(case))
        step = plain.sample(u, ts[k : k + 2], 1, False, END, noise=noise[k : k + 1])
        u = step + (t - s) * rate(t) * apply(D, class_gradient(u, t))
    close(got, u, 1e-6)


def test_exact_inpainting_follows_the_forward_law_and_ends_on_the_data():
    case = CASES[0]
    sde, n = sde_object(*case), 20_000
    process = process_of(sde)
    data, mask = torch.tensor([[0.8, 0.0]]).expand(n, 2), torch.tensor([1.0, 0.0])
    seen = []

    def score_fn(u, t):
        seen.append((float(t[0]), u[:, [0, 2]].double().numpy()))
        return torch.zeros_like(u)

    sampler = psld.ES3EulerMaruyamaInpainter(config(), sde, score_fn)
    out = sampler.sample((data, mask), sampler_times(4), 4, True, END)
    assert torch.equal(out[:, 0], data[:, 0]) and not torch.equal(out[:, 1], data[:, 1])
    for t, known in seen:
        kernel = process.marginal(t)
        spread = np.sqrt(np.diag(kernel.cov))
        assert np.all(np.abs(known.mean(0) - 0.8 * kernel.mean) < 5 * spread / n**0.5)
        assert np.all(np.abs(known.std(0) / spread - 1) < 5 / (2 * n) ** 0.5)
    last = sampler.sample((data, mask), sampler_times(4), 4, False, END)
    kernel = process.marginal(END)
    assert abs(float(last[:, 0].std()) / kernel.cov[0, 0] ** 0.5 - 1) < 5 / (2 * n) ** 0.5
    with pytest.raises(ValueError, match="mask must hold zeros and ones"):
        sampler.sample((data, 0.5 * mask), sampler_times(4), 4)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("mode", ["exact", "published"])
def test_flow_carries_the_prior_to_the_data(case, mode):
    """Gaussian data: the flow is linear, so a sample's path is known up to a rotation of the law."""
    pytest.importorskip("torchdiffeq")
    sde = sde_object(*case, jitter=1e-9)
    process, chosen, data_var = process_of(sde), rows_of(*case), 0.49

    def law(t):
        kernel = process.marginal(t)
        return kernel.cov + data_var * np.outer(kernel.mean, kernel.mean)

    def score_fn(u, t):
        kernel = process.marginal(float(t[0]))
        gain = (factor(kernel.covariance, case[2]).T @ np.linalg.inv(law(float(t[0]))))[chosen]
        return apply(gain, u)

    start = root(law(1.0), "lower")
    # The columns of a root of the covariance at T: the flow carries them to a root of that at END.
    batch = torch.from_numpy(start.T.copy())
    sampler = psld.BBODESampler(config(), sde, score_fn, mode=mode)
    with pytest.raises(ValueError, match="mean_nfe needs a call of sample"):
        _ = sampler.mean_nfe
    end = sampler.sample(batch, sampler_times(), 20, False, END).numpy()
    # Tolerance of the solver, and a network that sees single precision.
    assert np.allclose(end.T @ end, law(END), atol=2e-4)
    assert sampler.mean_nfe == sampler.nfe == sampler.n_steps > 10
    closer = sampler.sample(batch, sampler_times(), 20, True, END).numpy()
    assert np.allclose(closer.T @ closer, law(1e-6), atol=5e-3)


@pytest.mark.parametrize("name", ["em_sde", "sscs_sde"])
@pytest.mark.parametrize("mode", ["exact", "published"])
def test_correctors_act_after_each_step(name, mode):
    case, ts, calls = CASES[0], sampler_times(4), []

    def corrector(u, t, dt):
        calls.append((float(t), float(dt)))
        return 0.5 * u, u

    cls = psld.REGISTERED["samplers"][name]
    init = torch.randn(4, 6, dtype=F64)
    noise = [torch.randn(4, 6, dtype=F64) for _ in range(12)]
    sampler = cls(config(), sde_object(*case), network(case), corrector, mode=mode)
    options = {} if mode == "published" else {"merge": False} if name == "sscs_sde" else {}
    count = (3 if options else 1 if name == "em_sde" else 2) * 4
    got = sampler.sample(init, ts, 4, False, END, noise=noise[:count])
    assert np.allclose(calls, [(float(a), float(b - a)) for a, b in zip(ts, ts[1:], strict=False)])
    # The same by single steps.
    u, per = init, count // 4
    for k in range(4):
        part = cls(config(), sde_object(*case), network(case), lambda u, t, dt: (u, u), mode=mode)
        u = 0.5 * part.sample(u, ts[k : k + 2], 1, False, END, noise=noise[per * k : per * (k + 1)])
    close(got, u)


def test_bad_input_is_refused():
    sde, score_fn = sde_object(*CASES[0]), network(CASES[0])
    with pytest.raises(TypeError, match="sde must be a PSLD object with gamma"):
        psld.EulerMaruyamaSampler(config(), object(), score_fn)
    with pytest.raises(ValueError, match="decomp_mode must be one of lower, upper, got 'diagonal'"):
        psld.EulerMaruyamaSampler(config(), sde_object(0.3, 3.0, "diagonal"), score_fn)
    with pytest.raises(ValueError, match="mode must be one of exact, published"):
        psld.EulerMaruyamaSampler(config(), sde, score_fn, mode="fast")
    with pytest.raises(ValueError, match="n_discrete_steps \\+ 1 = 21 times"):
        psld.EulerMaruyamaSampler(config(), sde, score_fn).sample(
            torch.randn(2, 2), sampler_times(5), 20
        )
    with pytest.raises(ValueError, match="training.mode must be one of hsm, dsm, got 'ism'"):
        psld.PSLDScoreLoss(config("ism"), sde)
    with pytest.raises(ValueError, match="the flow|the probability flow takes no noise"):
        psld.BBODESampler(config(), sde, score_fn).sample(
            torch.randn(2, 2), sampler_times(), 20, noise=[]
        )
    loss = psld.PSLDScoreLoss(config(), sde)
    with pytest.raises(ValueError, match="must predict 2 noise"):
        loss(torch.randn(4, 3), torch.rand(4) + 0.1, lambda u, t: u[:, :3])


def test_checkpoints_are_read_without_unpickling_objects(tmp_path):
    network, averaged = torch.nn.Linear(2, 3), torch.nn.Linear(2, 3)
    state = {
        **{f"score_fn.{k}": v for k, v in network.state_dict().items()},
        **{f"ema_score_fn.{k}": v for k, v in averaged.state_dict().items()},
    }
    path = tmp_path / "last.ckpt"
    torch.save({"state_dict": state, "epoch": 3}, path)
    for choice, expected in (("target", averaged), ("source", network)):
        got = psld.load_checkpoint(path, torch.nn.Linear(2, 3), choice)
        assert torch.equal(got.weight, expected.weight)
    with pytest.raises(ValueError, match="sample_from must be one of target, source, got 'both'"):
        psld.load_checkpoint(path, network, "both")
    torch.save({"state_dict": {}}, path)
    with pytest.raises(ValueError, match="holds no weights under state_dict"):
        psld.load_checkpoint(path, network)
    torch.save({"state_dict": state, "hyper": SimpleNamespace()}, path)
    with pytest.raises(Exception, match="[Ww]eights.only"):
        psld.load_checkpoint(path, network)


def test_install_replaces_registered_classes(monkeypatch):
    old = {c: {n: type(n, (), {}) for n in names} for c, names in psld.REGISTERED.items()}
    util = ModuleType("util")
    util._MODULES = {category: dict(names) for category, names in old.items()}
    for module in (util, ModuleType("samplers"), ModuleType("losses")):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    psld.install(mode="published")
    try:
        with pytest.raises(RuntimeError, match="already installed"):
            psld.install()
        for category, names in psld.REGISTERED.items():
            for name, cls in names.items():
                assert issubclass(util._MODULES[category][name], cls)
                assert util._MODULES[category][name].mode == "published"
    finally:
        psld.uninstall()
    assert old == util._MODULES
