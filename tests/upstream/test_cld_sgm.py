"""`compat.cld_sgm` beside a real checkout of nv-tlabs/CLD-SGM.

In published mode both draw from PyTorch's generator in the same order, so that the same seed must
give the same numbers: to rounding in float64, to the rounding of 20 steps in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import checkouts
import pytest
import torch
import upstream_cld_sgm as upstream

from cldfast.compat import cld_sgm

REASON = checkouts.missing(upstream.NAME)
pytestmark = pytest.mark.skipif(bool(REASON), reason=REASON)

PROCESSES: list[dict[str, Any]] = [
    {},
    {"beta0": 1.0, "beta1": 5.0, "mixed_score": True},
    {"cld_objective": "dsm", "beta0": 1.0, "beta1": 5.0, "numerical_eps": 1e-9},
    {"m_inv": 1.0, "gamma": 0.1, "numerical_eps": 0.0, "mixed_score": True},
    {"sde": "vpsde"},
    {"sde": "vpsde", "beta0": 0.1, "beta1": 19.9, "mixed_score": True},
]
GRIDS: list[dict[str, Any]] = [
    {},
    {"striding": "quadratic", "denoising": True, "sscs_num_stab": 1e-9},
]
ROWS = 65


@pytest.fixture(scope="module")
def theirs() -> Iterator[SimpleNamespace]:
    with upstream.opened("run_lib_toy") as modules:
        yield modules


def normals(config: SimpleNamespace, dtype: torch.dtype) -> list[torch.Tensor]:
    """More draws than any run here spends."""
    width = 4 if config.sde == "cld" else 2
    return [torch.randn(ROWS, width, dtype=dtype) for _ in range(2 * config.n_discrete_steps)]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("changes", PROCESSES, ids=str)
@pytest.mark.parametrize("solver", ["em", "sscs"])
def test_the_same_seed_gives_the_same_samples(
    theirs: SimpleNamespace, solver: str, changes: dict[str, Any], grid: dict[str, Any]
) -> None:
    config = upstream.options(sampling_method=solver, **changes, **grid)
    if config.sde == "vpsde" and solver == "sscs":
        pytest.skip("SSCS is for CLD only")
    sde, net = upstream.process(theirs, config), upstream.network(theirs, config)
    runs = []
    for make in (theirs.sampling.get_sampling_fn, cld_sgm.get_sampling_fn):
        torch.manual_seed(7)
        options = {"mode": "published"} if make is cld_sgm.get_sampling_fn else {}
        x, v, nfe = make(config, sde, (ROWS, 2), 1e-3, **options)(net)
        runs.append((x, v, nfe, torch.rand(1)))
    (x, v, nfe, after), (x_here, v_here, nfe_here, after_here) = runs
    # 20 steps of a handful of roundings; an untrained network lets states grow, hence relative.
    bound = 1e-11 if solver == "em" else 1e-5
    torch.testing.assert_close(x_here, x, rtol=bound, atol=bound)
    if v is None:
        assert v_here is None
    else:
        torch.testing.assert_close(v_here, v, rtol=bound, atol=bound)
    assert nfe_here == nfe == 20
    assert torch.equal(after, after_here), "the generator must be left in the same state"


@pytest.mark.parametrize("changes", PROCESSES[:4], ids=str)
def test_their_own_draws_in_float64(
    theirs: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    config = upstream.options(striding="quadratic", denoising=True, **changes)
    config.sscs_num_stab = 1e-9
    sde, net = upstream.process(theirs, config), upstream.network(theirs, config)
    start = torch.randn(ROWS, 4, dtype=torch.float64)
    draws = normals(config, torch.float64)
    given = iter(draws)
    monkeypatch.setattr(torch, "randn_like", lambda u, **_: next(given))
    x, v, _ = theirs.sampling.get_sampling_fn(config, sde, (ROWS, 2), 1e-3)(net, start)
    monkeypatch.undo()
    sampler = cld_sgm.get_sampling_fn(config, sde, (ROWS, 2), 1e-3, mode="published")
    x_here, v_here, _ = sampler(net, start, noise=draws[: 2 * (config.n_discrete_steps - 1)])
    torch.testing.assert_close(x_here, x, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(v_here, v, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("changes", PROCESSES, ids=str)
def test_ode_sampler_and_likelihood(theirs: SimpleNamespace, changes: dict[str, Any]) -> None:
    config = upstream.options(sampling_method="ode", denoising=True, **changes)
    config.mixed_score = True  # keeps the states of an untrained network bounded
    sde, net = upstream.process(theirs, config), upstream.network(theirs, config)
    width = 4 if config.sde == "cld" else 2
    start = torch.randn(ROWS, width)
    x, _, _ = theirs.sampling.get_sampling_fn(config, sde, (ROWS, 2), 1e-3)(net, start)
    x_here, _, _ = cld_sgm.get_sampling_fn(config, sde, (ROWS, 2), 1e-3)(net, start)
    # Each run meets the solver's tolerance of 1e-5 a step, in some hundreds of float32 steps.
    torch.testing.assert_close(x_here, x.float(), rtol=1e-3, atol=1e-3)
    for method in ("gaussian", "rademacher"):
        config.likelihood_hutchinson_type = method
        found = []
        for make, options in (
            (theirs.likelihood.get_likelihood_fn, {}),
            (cld_sgm.get_likelihood_fn, {"mode": "published"}),
        ):
            torch.manual_seed(7)
            found.append(make(config, sde, **options)(net, 0.1 * start))
        torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(found[1][1], found[0][1], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("weighting", ["reweightedv1", "reweightedv2", "likelihood"])
@pytest.mark.parametrize("changes", PROCESSES, ids=str)
def test_the_same_seed_gives_the_same_loss(
    theirs: SimpleNamespace, changes: dict[str, Any], weighting: str
) -> None:
    config = upstream.options(weighting=weighting, **{"loss_eps": 1e-3, **changes})
    sde, net = upstream.process(theirs, config), upstream.network(theirs, config)
    x = torch.randn(ROWS, 2)
    values, gradients = [], []
    for make, options in (
        (theirs.losses.get_loss_fn, {}),
        (cld_sgm.get_loss_fn, {"mode": "published"}),
    ):
        torch.manual_seed(7)
        values.append(make(sde, True, config, **options)(net, x))
        gradients.append(torch.autograd.grad(values[-1].mean(), list(net.parameters())))
    # They divide a float32 score by its float32 scale and subtract: some roundings of each.
    torch.testing.assert_close(values[1], values[0], rtol=1e-4, atol=1e-5)
    for here, there in zip(gradients[1], gradients[0], strict=True):
        torch.testing.assert_close(here, there, rtol=1e-3, atol=1e-4 * float(there.abs().max()))


@pytest.mark.parametrize("changes", PROCESSES, ids=str)
def test_the_processes_answer_alike(theirs: SimpleNamespace, changes: dict[str, Any]) -> None:
    config = upstream.options(**changes)
    there = upstream.process(theirs, config)
    kind = cld_sgm.CLD if config.sde == "cld" else cld_sgm.VPSDE
    here = kind(config, there.beta_fn, there.beta_int_fn, "published")
    assert (here.type, here.is_augmented) == (there.type, there.is_augmented)
    width = 4 if config.sde == "cld" else 2
    u = torch.randn(ROWS, width)
    t = torch.rand(ROWS, dtype=torch.float64) * 0.9 + 0.1

    def score(u: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return torch.sin(u[:, -2:]) * t[:, None].float()

    def answers(sde: Any) -> list[Any]:
        torch.manual_seed(7)
        ones = 0.3 * torch.ones(ROWS, 1)
        return [
            *sde.sde(u, t),
            *sde.get_reverse_sde(score)(u, t),
            *sde.get_reverse_sde(score, probability_flow=True)(u, t),
            *sde.prior_sampling((5, 2)),
            *sde.prior_logp(u),
            sde.mean(u, t),
            *sde.var(t),
            *sde.var(t, ones),
            sde.noise_multiplier(t),
            sde.loss_multiplier(t),
            *sde.perturb_data(u, t),
            *sde.get_discrete_step_fn("reverse", score)(u, 0.3, 0.01),
            *sde.get_discrete_step_fn("forward")(u, 0.3, 0.01),
        ]

    for mine, wanted in zip(answers(here), answers(there), strict=True):
        if wanted is None:
            assert mine is None
        else:
            torch.testing.assert_close(mine, wanted, rtol=1e-6, atol=1e-7)


def test_installing_under_the_checkout(theirs: SimpleNamespace) -> None:
    before = theirs.sampling.get_sampling_fn
    with cld_sgm.installed() as names:
        assert {
            "losses.get_loss_fn", "likelihood.get_likelihood_fn", "sampling.get_sampling_fn",
            "sde_lib.CLD", "sde_lib.VPSDE", "util.checkpoint.restore_checkpoint",
            "run_lib_toy.restore_checkpoint",
        } <= set(names)  # fmt: skip
        config = upstream.options(n_discrete_steps=3)
        sde = upstream.process(theirs, config)
        assert isinstance(sde, cld_sgm.CLD) and sde.mode == "exact"
        sampler = theirs.sampling.get_sampling_fn(config, sde, (ROWS, 2), 1e-3)
        x, v, nfe = sampler(upstream.network(theirs, config))
        assert x.shape == v.shape == (ROWS, 2) and nfe == 3
    assert theirs.sampling.get_sampling_fn is before


def test_their_toy_training_runs_unmodified(theirs: SimpleNamespace, tmp_path: Path) -> None:
    """The loss curve within noise, a checkpoint of theirs read here, their network sampled."""
    iterations, tail = 400, 200
    kept = upstream.train_toy(theirs, tmp_path / "theirs", iterations)
    curves = {"published": kept}
    for mode in ("published", "exact"):
        with cld_sgm.installed(mode):
            curves[f"installed {mode}"] = upstream.train_toy(theirs, tmp_path / mode, iterations)
    # Same seed, same draws: what differs is rounding, which training amplifies slowly.
    early = torch.tensor(curves["published"][:50])
    torch.testing.assert_close(
        torch.tensor(curves["installed published"][:50]), early, rtol=1e-3, atol=1e-3
    )
    ends = {name: torch.tensor(curve[-tail:]) for name, curve in curves.items()}
    for name, end in ends.items():
        error = (end.var() / tail + ends["published"].var() / tail).sqrt()
        assert abs(end.mean() - ends["published"].mean()) < 5.0 * error, name

    config = upstream.options()
    net = upstream.network(theirs, config, seed=1)
    state = {
        "model": torch.nn.DataParallel(net),
        "optimizer": torch.optim.Adam(net.parameters()),
        "ema": theirs.models_ema.ExponentialMovingAverage(net.parameters(), 0.999),
    }
    path = tmp_path / "exact" / "checkpoints" / "final_checkpoint.pth"
    cld_sgm.restore_checkpoint(str(path), state, "cpu")
    assert state["step"] == iterations
    state["ema"].copy_to(net.parameters())
    x, _, _ = cld_sgm.get_sampling_fn(config, upstream.process(theirs, config), (ROWS, 2), 1e-3)(
        net
    )
    assert torch.isfinite(x).all()
