"""Running plans: law, agreement of backends, addressing, errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cldfast import CLD, LinearBeta, StopSampling, initial_state, kernels, make_plan, run, sample
from cldfast.lab.models import MLPScore

D = 3


class RowNetwork(torch.nn.Module):
    """A small network that treats rows one by one in the same order of operations.

    Elementwise maps are row-wise deterministic, unlike a matrix product whose blocking depends on
    the batch.
    """

    def forward(self, u, t):
        x, v = u.chunk(2, 1)
        return -(v + 0.3 * torch.tanh(x)) * (1.0 + t[:, None])


def gaussian_network(sde, data_mean, data_var):
    """The exact velocity score for data N(data_mean, data_var), by direct linear algebra."""

    def net(u, t):
        kernel = sde.marginal(float(t[0]))
        cov = kernel.cov + data_var * np.outer(kernel.mean, kernel.mean)
        precision = np.linalg.inv(cov)
        x, v = u.chunk(2, 1)
        m = kernel.mean * data_mean
        return -(precision[1, 0] * (x - m[0]) + precision[1, 1] * (v - m[1]))

    return net


@pytest.mark.parametrize("solver", ["em", "sscs"])
def test_samples_follow_the_exact_law_of_the_plan(solver):
    sde = CLD(beta=LinearBeta(1.0, 6.0))
    n = 40000
    law = make_plan(sde, solver, 30).gaussian_law(data_mean=0.5, data_var=0.09)
    net = gaussian_network(sde, 0.5, 0.09)
    x, v = sample(net, sde, (n, 1), solver=solver, steps=30, seed=2, return_velocity=True)
    u = torch.cat([x, v], 1).double().numpy()
    # Five standard errors: of a mean sqrt(var/n), of a covariance entry sqrt((c_ii c_jj + c_ij^2)/n).
    spread = np.sqrt(np.diag(law.cov) / n)
    assert np.all(np.abs(u.mean(0) - law.mean) < 5 * spread)
    d = np.diag(law.cov)
    assert np.all(np.abs(np.cov(u.T) - law.cov) < 5 * np.sqrt((np.outer(d, d) + law.cov**2) / n))


@pytest.mark.parametrize("solver", ["em", "sscs"])
@pytest.mark.parametrize("denoise", [False, True])
def test_fused_and_reference_runs_agree(solver, denoise):
    if kernels.missing_backend("cpu"):
        pytest.skip(f"compiled core missing: {kernels.missing_backend('cpu')}")
    arguments = {"solver": solver, "steps": 50, "seed": 7, "denoise": denoise}
    sde = CLD()
    fused = sample(RowNetwork(), sde, (257, D), backend="cpu", **arguments)
    plain = sample(RowNetwork(), sde, (257, D), backend="reference", **arguments)
    assert float((fused - plain).norm() / plain.norm()) < 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_samples_do_not_depend_on_batches_threads_or_shards(backend, dtype):
    sde, net = CLD(x_noise=0.2), RowNetwork()
    arguments = {"steps": 12, "seed": 5, "dtype": dtype, "backend": backend}
    whole = sample(net, sde, (101, D), **arguments)
    for batch_size in (1, 7, 100):
        assert torch.equal(whole, sample(net, sde, (101, D), batch_size=batch_size, **arguments))
    shards = [
        sample(net, sde, (size, D), first_index=first, **arguments)
        for first, size in ((0, 33), (33, 67), (100, 1))
    ]
    assert torch.equal(whole, torch.cat(shards))
    threads = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            assert torch.equal(whole, sample(net, sde, (101, D), **arguments))
    finally:
        torch.set_num_threads(threads)


def test_images_and_channels_last(backend):
    sde = CLD()

    def net(u, t):
        return -u[:, 2:] * 3.0

    x = sample(net, sde, (5, 2, 4, 3), steps=5, seed=1, backend=backend)
    assert x.shape == (5, 2, 4, 3)
    init = initial_state(sde, (5, 2, 4, 3), seed=1, backend=backend)
    last = init.to(memory_format=torch.channels_last)
    again = sample(net, sde, (5, 2, 4, 3), steps=5, seed=1, init=last, backend=backend)
    assert torch.allclose(x, again, atol=1e-6)
    flat = sample(lambda u, t: -u[:, 24:] * 3.0, sde, (5, 24), steps=5, seed=1, backend=backend)
    assert torch.allclose(x.flatten(1), flat, atol=1e-6)


def test_initial_state_has_the_stationary_law(backend):
    sde = CLD(x_noise=0.8)
    u = initial_state(sde, (50000, 1), seed=3, dtype=torch.float64, backend=backend).cpu().numpy()
    cov, d = sde.prior().cov, np.diag(sde.prior().cov)
    error = np.sqrt((np.outer(d, d) + cov**2) / 50000)
    assert np.all(np.abs(np.cov(u.T) - cov) < 5 * error)


def test_given_noise_replaces_the_addressed_one(backend):
    sde = CLD()
    plan = make_plan(sde, "em", 3)
    u = torch.randn(4, 2 * D)
    noise = torch.randn(3, 4, 2 * D)
    result = run(plan, RowNetwork(), u, noise=noise, backend=backend, seed=0)
    state = u
    for stage, z in zip(plan.stages, noise, strict=True):
        o = RowNetwork()(state, torch.full((4,), stage.t))
        (x, v), (z_x, z_v) = state.chunk(2, 1), z.chunk(2, 1)
        P, E, L = stage.P, stage.E[0], stage.L
        state = torch.cat(
            [
                P[i, 0] * x + P[i, 1] * v + E[i, 0] * o + L[i, 0] * z_x + L[i, 1] * z_v
                for i in range(2)
            ],
            1,
        )
    assert torch.allclose(result, state, atol=1e-5)


def test_initial_states_are_not_changed_and_views_as_outputs_are_safe(backend):
    u = torch.randn(64, 2 * D)
    before = u.clone()
    plan = make_plan(CLD(), "em", 6)

    def view(u, t):
        return u[:, 1 : D + 1]  # a view across both halves of the state

    def copied(u, t):
        return u[:, 1 : D + 1].clone()

    assert torch.equal(
        run(plan, view, u, backend=backend, seed=0), run(plan, copied, u, backend=backend, seed=0)
    )
    assert torch.equal(u, before)


def test_callback_sees_replaces_and_stops(backend):
    seen = []

    def callback(step, t, u):
        seen.append((step, t, u))
        if step == 2:
            return torch.zeros_like(u)
        if step == 4:
            raise StopSampling
        return None

    plan = make_plan(CLD(), "em", 8, "linear")
    u = torch.randn(4, 2 * D)
    result = run(plan, RowNetwork(), u, callback=callback, backend=backend, seed=0)
    assert [step for step, _, _ in seen] == [0, 1, 2, 3, 4]
    assert [t for _, t, _ in seen] == pytest.approx(plan.grid[1:6])
    assert torch.equal(result, seen[-1][2])
    # What the callback was shown stays as it was, though the run goes on.
    assert not torch.equal(seen[0][2], seen[1][2])

    zeroed = run(plan, RowNetwork(), u, backend=backend, callback=lambda k, t, u: u * 0)
    assert torch.equal(zeroed, torch.zeros_like(zeroed))


def test_differentiable_run_matches_finite_differences():
    plan = make_plan(CLD(), "sscs", 4)
    u = torch.randn(2, 2 * D, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda u: run(plan, RowNetwork(), u, differentiable=True, seed=0), (u,)
    )


def test_default_seed_follows_torch():
    draws = []
    for _ in range(2):
        torch.manual_seed(42)
        draws.append(sample(RowNetwork(), CLD(), (3, D), steps=2, seed=None))
    assert torch.equal(*draws)
    assert not torch.equal(draws[0], sample(RowNetwork(), CLD(), (3, D), steps=2, seed=None))


def test_time_is_a_broadcast_view_of_one_number():
    def net(u, t):
        assert t.shape == (4,) and t.stride(0) == 0
        return -u[:, D:]

    sample(net, CLD(), (4, D), steps=2)


def test_network_in_another_dtype(backend):
    def net(u, t):
        return (-u[:, D:] * 4.0).to(torch.bfloat16)

    x = sample(net, CLD(), (4, D), steps=3, backend=backend, seed=0)
    assert x.dtype == torch.float32


SDE = CLD()


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"shape": (0, 3)}, ValueError, "shape must be (n, d)"),
        ({"shape": (4,)}, ValueError, "shape must be (n, d)"),
        ({"steps": 0}, ValueError, "steps must be at least 1, got 0"),
        ({"steps": 2.5}, TypeError, "steps must be an integer, got float"),
        ({"solver": "magic"}, ValueError, "unknown solver 'magic'; expected one of auto, em, sscs"),
        ({"grid": "cubic"}, ValueError, "unknown grid 'cubic'; expected linear, quadratic, power"),
        ({"grid": [0.1, 0.5, 1.0]}, ValueError, "descend strictly"),
        ({"grid": [1.0, float("nan")]}, ValueError, "a grid must be finite"),
        ({"grid": [1.0, 0.5], "steps": 7}, ValueError, "1 intervals"),
        ({"t_min": 1.5}, ValueError, "t_min must lie in [0, T)"),
        ({"parameterization": "odd"}, ValueError, "unknown parameterization 'odd'"),
        ({"batch_size": 0}, ValueError, "batch_size must be an integer >= 1"),
        ({"dtype": torch.float16}, TypeError, "float32 or torch.float64"),
        ({"init": torch.zeros(4, 3)}, ValueError, "x half then v half"),
        ({"init": torch.zeros(4, 8)}, ValueError, "init must be (4, 6)"),
        ({"seed": "a"}, TypeError, "seed must be an integer"),
        ({"solver": "sscs", "colour": 1}, TypeError, "takes no option 'colour'; it takes merge: bool"),
        ({"sde": "cld"}, TypeError, "sde must be a LinearPhaseSDE"),
        ({"net": 3}, TypeError, "net must be callable"),
        ({"noise": [None]}, ValueError, "one entry per stage"),
        ({"net": lambda u, t: u}, ValueError, "needs the network's output to have 3 along dimension 1, got 6"),
        ({"net": lambda u, t: u[:2, :3]}, ValueError, "the network's output must be (4, r * 3)"),
        ({"net": lambda u, t: u[:, :2]}, ValueError, "got (4, 2)"),
        ({"net": lambda u, t: None}, TypeError, ""),
        ({"net": lambda u, t: [u[:, :3], u[:, :3]]}, ValueError, "must return 1 tensor(s)"),
        ({"callback": lambda k, t, u: u[:1]}, ValueError, "callback must return a state like"),
    ],
)  # fmt: skip
def test_bad_arguments_are_refused(arguments, error, words):
    call = {"net": RowNetwork(), "sde": SDE, "shape": (4, D), **arguments}
    with pytest.raises(error) as caught:
        sample(call.pop("net"), call.pop("sde"), call.pop("shape"), **call)
    assert words in str(caught.value)


@pytest.mark.parametrize("output", [{"sample": None}, [None]])
def test_a_network_that_returns_no_tensor_is_named(output):
    with pytest.raises(TypeError, match="the network's output must be a tensor, got"):
        sample(lambda u, t: output, CLD(), (2, 3), steps=2)


@pytest.mark.parametrize("solver", ["sscs", "heun", "multistep"])
def test_a_network_is_prepared_for_the_times_of_a_run(solver):
    """A class with `at_times` is asked for all times once; the samples are those of its calls."""
    net = MLPScore(2, width=16).double()
    torch.nn.init.normal_(net.last.weight)
    calls = []
    net.time.register_forward_hook(lambda _, inputs, __: calls.append(len(inputs[0])))
    plan = make_plan(CLD(), solver, 6, denoise=True)
    u = initial_state(plan.sde, (5, 2), dtype=torch.float64, seed=0)
    prepared = run(plan, net, u, seed=0)
    assert calls == [len(plan.stages)]
    calls.clear()
    torch.testing.assert_close(run(plan, lambda u, t: net(u, t), u, seed=0), prepared)
    assert calls == [1] * plan.evaluations


def test_calls_that_a_hook_must_see_are_made():
    net, seen = MLPScore(2, width=16), []
    net.register_forward_hook(lambda _, inputs, __: seen.append(inputs[1]))
    plan = make_plan(CLD(), "em", 3)
    run(plan, net, initial_state(plan.sde, (5, 2), seed=0), seed=0)
    assert len(seen) == 3 and all(t.shape == (5,) and t.stride() == (0,) for t in seen)


def test_a_forward_of_ones_own_is_called():
    class Halved(MLPScore):
        def forward(self, u, t, labels=None):
            return 0.5 * super().forward(u, t, labels)

    net, plain = Halved(2, width=16), MLPScore(2, width=16)
    torch.nn.init.normal_(net.last.weight)
    plain.load_state_dict(net.state_dict())
    plan = make_plan(CLD(), "em", 3)
    u = initial_state(plan.sde, (5, 2), seed=0)
    wanted = run(plan, lambda u, t: 0.5 * plain(u, t), u, seed=0)
    torch.testing.assert_close(run(plan, net, u, seed=0), wanted)
    plain.forward = net.forward
    torch.testing.assert_close(run(plan, plain, u, seed=0), wanted)


def test_a_differentiable_run_calls_the_network_itself():
    net = MLPScore(2, width=16)
    torch.nn.init.normal_(net.last.weight)
    plan = make_plan(CLD(), "em", 3)
    run(
        plan, net, initial_state(plan.sde, (5, 2), seed=0), differentiable=True, seed=0
    ).sum().backward()
    assert all(p.grad is not None for p in net.parameters())


def test_a_plan_run_in_inference_mode_serves_gradients_later():
    plan, u = make_plan(CLD(), "multistep", 4), torch.randn(3, 4)
    with torch.inference_mode():
        first = run(plan, lambda u, t: -u[:, 2:], u, seed=1)
    leaf = u.clone().requires_grad_()
    made = run(plan, lambda u, t: -u[:, 2:], leaf, seed=1, differentiable=True)
    made.sum().backward()
    assert torch.equal(made.detach(), first) and leaf.grad.abs().min() > 0.0
