"""Noise from one Brownian path: law, consistency between grids, bits, memory."""

from __future__ import annotations

import gc
import math
import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch

from cldfast import CLD, LinearBeta, NoiseAddress, Trajectory, initial_state, make_plan, run, sample
from cldfast.classical import VE, VP, Brownian, Langevin
from cldfast.sampling.brownian import BrownianNoise, BrownianPath

F64 = torch.float64


def velocity_score(u: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    x, v = u.chunk(2, 1)
    return -4.0 * v - 0.5 * torch.tanh(x)


def score(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return -x - 0.5 * torch.tanh(x)


def paths(n: int, T: float = 1.0, first_index: int = 0, seed: int = 3) -> BrownianPath:
    return BrownianPath(torch.empty(n, 4), T, NoiseAddress(seed, first_index))


def test_the_law_of_a_path() -> None:
    """Variance and covariance min(s, t), at dyadic times and others."""
    n, T = 50_000, 2.0
    W = paths(n, T)
    times = [0.3, 0.75, 1.0, 1.234567, 2.0]
    values = torch.stack([W(t)[:, 0] for t in times])
    got = values @ values.T / n
    expected = torch.minimum(torch.tensor(times)[:, None], torch.tensor(times)[None, :]).double()
    # Var(W_s W_t) = s t + min(s, t)^2 for normals.
    spread = (torch.outer(torch.tensor(times), torch.tensor(times)) + expected**2).sqrt()
    assert float(((got - expected) / spread).abs().max()) < 5.0 / n**0.5
    # The planes and coordinates are independent.
    cross = (W(1.234567).T @ W(1.234567) / n / 1.234567 - torch.eye(4)).fill_diagonal_(0.0)
    assert float(cross.abs().max()) < 5.0 / n**0.5
    assert torch.equal(W(0.0), torch.zeros(n, 4, dtype=F64))
    with pytest.raises(ValueError, match="asked in"):
        W(2.5)


def test_bits_do_not_depend_on_order_or_batch() -> None:
    times = np.random.default_rng(0).uniform(0.0, 1.0, 12).tolist()
    whole = {t: paths(10)(t) for t in times}
    W = paths(10)
    for t in reversed(times):
        assert torch.equal(W(t), whole[t])
    for start in (0, 3, 7):
        part = paths(3, first_index=start)
        assert all(torch.equal(part(t), whole[t][start : start + 3]) for t in times)


def test_normals_of_a_plan_are_increments() -> None:
    plan = make_plan(VP(), "em", 4, [1.0, 0.7, 0.5, 0.3, 0.1])
    noise = BrownianNoise(plan, torch.empty(6, 4, dtype=F64), NoiseAddress(5))
    W = BrownianPath(torch.empty(6, 4), 1.0, NoiseAddress(5))
    assert len(noise) == 4
    for i in (2, 0, 3, 1):
        t, s = plan.grid[i], plan.grid[i + 1]
        expected = (W(t) - W(s)) / math.sqrt(t - s)
        torch.testing.assert_close(noise[i], expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(noise[-1], noise[3]) and len(noise[1:3]) == 2
    quiet = BrownianNoise(make_plan(VP(), "ddim", 3), torch.empty(6, 4), NoiseAddress(5))
    assert list(quiet) == [None] * 3


def test_normals_of_a_plan_are_standard_and_independent() -> None:
    n = 20_000
    for plan in (make_plan(CLD(), "sscs", 7), make_plan(VE(), "ancestral", 7, "logistic")):
        noise = BrownianNoise(plan, torch.empty(n, 2, dtype=F64), NoiseAddress(5))
        z = torch.cat([part for part in noise if part is not None], 1)
        gram = z.T @ z / n - torch.eye(z.shape[1])
        assert float(gram.abs().max()) < 5.5 * (2.0 / n) ** 0.5


STRONG: dict[str, tuple[Any, Any, str]] = {
    "VP em": (VP(LinearBeta(1.0, 5.0)), score, "em"),
    "VP sscs": (VP(LinearBeta(1.0, 5.0)), score, "sscs"),
    "Brownian em": (Brownian(2.0), score, "em"),
    "CLD em": (CLD(beta=LinearBeta(2.0, 6.0)), velocity_score, "em"),
    "CLD sscs": (CLD(beta=LinearBeta(2.0, 6.0)), velocity_score, "sscs"),
    "ULA": (Langevin(1.0), score, "ula"),
}


@pytest.mark.parametrize("name", STRONG)
def test_strong_order_one_on_one_path(name: str) -> None:
    """Additive noise: halving the step halves the distance of paths, within 0.15 of order 1."""
    process, net, solver = STRONG[name]
    start = initial_state(process, (400, 2), dtype=F64, seed=1)
    if not isinstance(process, CLD):
        start = start[:, :2]
    ends = []
    for steps in (128, 256, 512):
        options: dict[str, Any] = {"noise": "brownian", "seed": 9, "dtype": F64, "t_min": 0.01}
        x = sample(net, process, (400, 2), solver, steps, "linear", init=start, **options)
        ends.append(x)
    gaps = [float((a - b).square().mean().sqrt()) for a, b in zip(ends, ends[1:], strict=False)]
    assert abs(math.log2(gaps[0] / gaps[1]) - 1.0) < 0.15


def test_batches_shards_and_backends_make_the_same_bits() -> None:
    options: dict[str, Any] = {"noise": "brownian", "seed": 4}
    whole = sample(score, VP(), (9, 3), "em", 6, **options)
    assert torch.equal(sample(score, VP(), (9, 3), "em", 6, batch_size=2, **options), whole)
    assert torch.equal(sample(score, VP(), (3, 3), "em", 6, first_index=6, **options), whole[6:])
    plan = make_plan(VP(), "em", 6)
    u = torch.zeros(9, 4, dtype=F64)
    ends = [
        run(plan, lambda u, t: 0.0 * u, u, noise="brownian", backend=backend, seed=0)
        for backend in ("cpu", "reference")
    ]
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-14, atol=1e-14)


def test_memory_does_not_grow_with_the_steps() -> None:
    """Tensors that the noise holds, and the peak of Python's memory, with 8 and with 200 steps."""
    u, peaks = torch.zeros(500, 4), []
    for steps in (8, 200):
        plan = make_plan(VP(), "em", steps, "linear")
        noise = BrownianNoise(plan, u, NoiseAddress(1))
        gc.collect()
        tracemalloc.start()
        live = 0
        for z in noise:
            assert z is not None
            live = max(live, sum(t.nbytes for t in _tensors(noise)))
        peaks.append((live, tracemalloc.get_traced_memory()[1]))
        tracemalloc.stop()
    assert peaks[1][0] == peaks[0][0] == u.numel() * 8  # the last value, float64
    assert peaks[1][1] < peaks[0][1] + 50_000


def _tensors(noise: BrownianNoise) -> list[torch.Tensor]:
    """All tensors that the object holds, in whatever attribute."""
    found: list[torch.Tensor] = []
    stack: list[Any] = [vars(noise), vars(noise.path)]
    while stack:
        for value in stack.pop().values():
            if isinstance(value, torch.Tensor):
                found.append(value)
            elif isinstance(value, tuple | list):
                found += [part for part in value if isinstance(part, torch.Tensor)]
    return found


def test_what_has_no_part_in_a_path_is_refused() -> None:
    with pytest.raises(ValueError, match="adds noise while no time passes"):
        sample(score, VP(), (3, 2), "pc", 4, noise="brownian")
    with pytest.raises(ValueError, match="noise must be 'brownian', normals or None, got 'white'"):
        sample(score, VP(), (3, 2), "em", 4, noise="white")
    trajectory = Trajectory()
    sample(score, VP(), (3, 2), "em", 4, noise="brownian", callback=trajectory)
    assert trajectory.states.shape == (4, 3, 2)
