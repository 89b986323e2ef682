"""Guidance, inpainting and recording: what surrounds a plan at run time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cldfast import CLD, Inpainting, LinearPhaseSDE, Trajectory, make_plan, run, sample

D = 3
SDE = CLD(x_noise=0.3)


def conditional(u, t):
    return -(u[:, D:] + 0.5 * u[:, :D]) * 2.0


def unconditional(u, t):
    return -u[:, D:] * 3.0


@pytest.mark.parametrize("solver", ["em", "sscs", "multistep", "sscs2", "heun"])
@pytest.mark.parametrize("parameterization", ["score", "noise", "mixed", "x0"])
def test_classifier_free_guidance_combines_the_outputs(backend, solver, parameterization):
    common = {
        "solver": solver, "steps": 10, "parameterization": parameterization, "backend": backend,
        "dtype": torch.float64, "t_min": 0.05, "seed": 0,
    }  # fmt: skip
    fused = sample(
        lambda u, t: (conditional(u, t), unconditional(u, t)),
        SDE,
        (8, D),
        guidance_scale=1.7,
        **common,
    )
    by_hand = sample(
        lambda u, t: 1.7 * conditional(u, t) - 0.7 * unconditional(u, t), SDE, (8, D), **common
    )
    # float64: the coefficients grow to about 1e3 near t_min, and 10 steps add roundings.
    assert torch.allclose(fused, by_hand, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("solver", ["sscs", "multistep"])
@pytest.mark.parametrize("parameterization", ["score", "noise", "x0", "full_score", "full_noise"])
def test_a_guidance_term_is_added_to_the_score(parameterization, solver):
    """Against a plan in the score parameterisation whose network adds the term itself."""
    from cldfast.planner.parameterization import score_map

    full = parameterization.startswith("full")

    def term(u, t):
        g = torch.tanh(u[:, :D])
        return torch.cat([0.3 * g, g], 1) if full else g

    def score(u, t):
        s = -u * 2.0
        return s if full else s[:, D:]

    def as_output(u, t):
        """What the parameterisation's network would return for this score."""
        to_score = score_map(SDE, t[:1].double().numpy(), parameterization)
        out, state = to_score.from_output[0], to_score.from_state[0]
        s = score(u, t)
        if full:
            rest = torch.stack(s.chunk(2, 1), 1) - torch.einsum(
                "ij,bjd->bid", torch.from_numpy(state), torch.stack(u.chunk(2, 1), 1)
            )
            return torch.einsum("ij,bjd->bid", torch.from_numpy(np.linalg.inv(out)), rest).flatten(
                1
            )
        return (s - state[1, 0] * u[:, :D] - state[1, 1] * u[:, D:]) / out[1, 0]

    common = {"solver": solver, "steps": 8, "dtype": torch.float64, "t_min": 0.05, "seed": 0}
    guided = sample(
        as_output, SDE, (8, D), parameterization=parameterization, guidance=term, **common
    )
    by_hand = sample(
        lambda u, t: score(u, t) + term(u, t), SDE, (8, D),
        parameterization="full_score" if full else "score", **common,
    )  # fmt: skip
    assert torch.allclose(guided, by_hand, rtol=1e-8, atol=1e-8)


def test_both_kinds_of_guidance_at_once():
    """The term counts once, whatever the scale, and is the last output."""

    def term(u, t):
        return torch.tanh(u[:, :D])

    common = {
        "solver": "multistep", "steps": 8, "dtype": torch.float64, "t_min": 0.05,
        "parameterization": "score", "seed": 0,
    }  # fmt: skip
    fused = sample(
        lambda u, t: (conditional(u, t), unconditional(u, t)), SDE, (8, D),
        guidance_scale=1.7, guidance=term, **common,
    )  # fmt: skip
    by_hand = sample(
        lambda u, t: 1.7 * conditional(u, t) - 0.7 * unconditional(u, t) + term(u, t),
        SDE, (8, D), **common,
    )  # fmt: skip
    assert torch.allclose(fused, by_hand, rtol=1e-10, atol=1e-10)


def test_a_term_that_would_move_nothing_is_refused():
    """A decoupled process: its velocity score says nothing of x0, which the network returns."""
    sde = LinearPhaseSDE([[-0.5, 0.0], [0.0, -1.0]], [1.0, 2.0], 0.3)
    for parameterization in ("x0", "denoiser"):
        with pytest.raises(ValueError, match="moves no output of .* 'full_...'"):
            make_plan(sde, "em", 3, parameterization=parameterization, guidance_term=True)
    assert make_plan(sde, "em", 3, parameterization="full_score", guidance_term=True).guidance_term


def test_a_plan_knows_of_its_guidance_term():
    plan = make_plan(SDE, steps=4, guidance_term=True)
    for question in (plan.gaussian_law, plan.error_budget):
        with pytest.raises(ValueError, match="make the plan with guidance_term=False"):
            question()
    with pytest.raises(ValueError, match="needs a plan made with guidance_term=True"):
        run(make_plan(SDE, steps=4), unconditional, torch.zeros(2, 2 * D), guidance=unconditional)
    # Both outputs of classifier-free guidance are the network of the data: the law is the plain one.
    plain, free = (make_plan(SDE, steps=4, guidance_scale=scale) for scale in (None, 2.5))
    assert np.allclose(plain.gaussian_law().cov, free.gaussian_law().cov, rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("solver", ["sscs", "multistep", "sscs2", "heun"])
def test_inpainting_keeps_the_known_and_follows_the_joint_law(backend, solver, one_thread):
    """Two correlated coordinates, exact score: the unknown one gets close to its conditional law."""
    known = torch.tensor([[0.8, 0.0]]).repeat(1000, 1)
    mask = torch.tensor([True, False])
    rho = 0.8
    data_cov = np.array([[1.0, rho], [rho, 1.0]]) * 0.25
    values, vectors = np.linalg.eigh(data_cov)
    rotation = torch.from_numpy(vectors).float().to(known.device)

    def net(u, t):
        kernel = SDE.marginal(float(t[0]))
        x, v = u[:, :2] @ rotation, u[:, 2:] @ rotation
        rows = []
        for i, value in enumerate(values):
            cov = kernel.cov + value * np.outer(kernel.mean, kernel.mean)
            p = np.linalg.inv(cov)
            rows.append(-(p[1, 0] * x[:, i] + p[1, 1] * v[:, i]))
        return torch.stack(rows, 1) @ rotation.T

    arguments = {
        "solver": solver, "steps": 100, "seed": 3, "backend": backend, "parameterization": "score",
    }  # fmt: skip
    x = sample(net, SDE, (1000, 2), inpaint=Inpainting(known, mask), **arguments)
    assert torch.equal(x[:, 0], known[:, 0])
    # Replacement is not exact conditioning (it lags behind), but it must pull well towards it: the
    # conditional mean is 0.8 rho = 0.64, without coupling it would be 0 +- 0.016.
    assert 0.3 < float(x[:, 1].mean()) < 0.75
    split = sample(
        net, SDE, (1000, 2), inpaint=Inpainting(known, mask), batch_size=345, **arguments
    )
    assert torch.allclose(x, split, atol=1e-5)


def test_inpainting_of_everything_returns_the_data(backend):
    known = torch.randn(4, 2, 3, 3)
    every = Inpainting(known, torch.ones(1, 1, 1, 1, dtype=torch.bool))
    x = sample(
        lambda u, t: -u[:, 2:], SDE, (4, 2, 3, 3), steps=3, inpaint=every, backend=backend, seed=0
    )
    assert torch.equal(x, known)


@pytest.mark.parametrize(
    ("known", "mask", "error", "words"),
    [
        (torch.zeros(4, D), torch.zeros(D), TypeError, "mask must be a bool tensor"),
        (torch.zeros(4, D, dtype=torch.int64), torch.ones(D, dtype=torch.bool), TypeError, "known"),
        (torch.zeros(4, D), torch.ones(2, dtype=torch.bool), ValueError, "cannot be broadcast"),
        (torch.zeros(0, D), torch.ones(D, dtype=torch.bool), ValueError, "non-empty"),
    ],
)
def test_bad_inpainting_is_refused(known, mask, error, words):
    with pytest.raises(error, match=words):
        Inpainting(known, mask)


def test_inpainting_of_another_shape_is_refused():
    inpaint = Inpainting(torch.zeros(5, D), torch.ones(D, dtype=torch.bool))
    with pytest.raises(ValueError, match="one row per sample, 4, got 5"):
        sample(unconditional, SDE, (4, D), steps=2, inpaint=inpaint)
    with pytest.raises(ValueError, match="known data must be"):
        run(make_plan(SDE, steps=2), unconditional, torch.zeros(4, 2 * D), inpaint=inpaint)


def test_missing_outputs_are_named():
    with pytest.raises(ValueError, match=r"must return 2 tensor\(s\)"):
        sample(unconditional, SDE, (4, D), steps=2, guidance_scale=2.0)
    with pytest.raises(ValueError, match="guidance_scale must be a finite number"):
        make_plan(SDE, guidance_scale=float("nan"))


@pytest.mark.parametrize("every", [1, 4])
def test_trajectory_in_memory_and_in_a_file(tmp_path, every, backend):
    plan = make_plan(SDE, "em", 10)
    u = torch.randn(5, 2 * D)
    seen = []
    run(
        plan,
        unconditional,
        u,
        callback=lambda k, t, u: seen.append(u.clone()),
        backend=backend,
        seed=0,
    )
    memory = Trajectory(every)
    run(plan, unconditional, u, callback=memory, backend=backend, seed=0)
    assert torch.equal(memory.states, torch.stack(seen[::every]).cpu())
    assert memory.times == pytest.approx(plan.grid[1:][::every])
    mapped = Trajectory(every, tmp_path / "states.npy", len(plan.stages))
    run(plan, unconditional, u, callback=mapped, backend=backend, seed=0)
    assert isinstance(mapped.states, np.memmap)
    assert np.array_equal(
        np.load(tmp_path / "states.npy"), torch.stack(seen[::every]).cpu().numpy()
    )


def test_bad_trajectories_are_refused(tmp_path):
    with pytest.raises(ValueError, match="every must be an integer >= 1, got 0"):
        Trajectory(0)
    with pytest.raises(ValueError, match="needs the number of stages"):
        Trajectory(path=tmp_path / "x.npy")
    with pytest.raises(ValueError, match="nothing was recorded"):
        _ = Trajectory().states
    with pytest.raises(ValueError, match="records one batch"):
        sample(unconditional, SDE, (4, D), steps=2, batch_size=2, callback=Trajectory())
