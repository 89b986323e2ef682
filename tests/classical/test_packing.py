"""Samples of paths through `cldfast.sample`: shapes, batches, shards, hooks, backends."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import cldfast
from cldfast import CLD, make_plan, run, sample
from cldfast.classical import EDM, VE, VP, FlowMatching
from cldfast.sampling.packing import Packing

F64 = torch.float64


def net(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Row by row, and without reductions: the same bits for any batch."""
    return -torch.tanh(x) - x * t.reshape(-1, *[1] * (x.dim() - 1))


@pytest.mark.parametrize("shape", [(7, 1), (7, 2), (7, 5), (7, 3, 2, 4), (7, 1, 3, 3)])
def test_samples_are_those_of_flat_pairs(shape: tuple[int, ...]) -> None:
    """Packed by hand: the flat row's halves are x and v, with a zero where odd in number."""
    size = torch.Size(shape[1:]).numel()
    pairs = (size + 1) // 2

    def flat_net(u: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        assert u.shape == (7, 2 * pairs)
        out = torch.zeros_like(u)
        out[:, :size] = net(u[:, :size], t)
        return out

    plan = make_plan(VP(), "stochastic_multistep", 6, "logistic")
    u = run(plan, flat_net, cldfast.initial_state(VP(), (7, pairs), seed=4), seed=4)
    x = sample(net, VP(), shape, "stochastic_multistep", 6, "logistic", seed=4)
    assert x.shape == shape
    assert torch.equal(x.flatten(1), u[:, :size])


def test_packing_an_even_number_copies_nothing() -> None:
    packing = Packing((5, 3, 2, 2))
    x = torch.randn(5, 3, 2, 2)
    u = packing.pack("x", x)
    assert u.data_ptr() == x.data_ptr() and packing.unpack(u).data_ptr() == x.data_ptr()
    assert torch.equal(packing.unpack(u), x)


@pytest.mark.parametrize("solver", ["em", "sscs", "multistep", "heun", "pc"])
def test_batches_and_shards_make_the_same_bits(solver: str) -> None:
    whole = sample(net, VE(0.01, 5.0), (10, 3), solver, 5, seed=2)
    options: dict[str, Any] = {"seed": 2}
    assert torch.equal(
        sample(net, VE(0.01, 5.0), (10, 3), solver, 5, batch_size=3, **options), whole
    )
    shard = sample(net, VE(0.01, 5.0), (4, 3), solver, 5, first_index=6, **options)
    assert torch.equal(shard, whole[6:])


def test_backends_agree(backend: str) -> None:
    expected = sample(
        net, VP(), (6, 5), "ancestral", 8, dtype=F64, backend="cpu", device="cpu", seed=0
    )
    got = sample(net, VP(), (6, 5), "ancestral", 8, dtype=F64, backend=backend, seed=0)
    torch.testing.assert_close(got.cpu(), expected, rtol=1e-9, atol=1e-9)


def test_default_solver_runs_on_all_but_a_flow_without_signal() -> None:
    for path in (VP(), VE(0.01, 5.0), EDM(5.0), FlowMatching(0.9)):
        assert sample(net, path, (3, 2), seed=0).shape == (3, 2)
    with pytest.raises(ValueError, match="does not give 'score'|no finite rates|non-finite"):
        sample(net, FlowMatching(), (3, 2), "em", 4, seed=0)


def test_a_callback_sees_and_replaces_samples() -> None:
    seen: list[torch.Tensor] = []

    def callback(step: int, t: float, x: torch.Tensor) -> torch.Tensor | None:
        seen.append(x.clone())
        return torch.zeros_like(x) if step == 3 else None

    trajectory = cldfast.Trajectory()
    sample(net, VP(), (4, 3), "ddim", 4, callback=trajectory, seed=0)
    assert trajectory.states.shape == (4, 4, 3)
    x = sample(net, VP(), (4, 3), "ddim", 4, callback=callback, seed=0)
    assert torch.equal(torch.stack(seen), torch.as_tensor(trajectory.states))
    assert torch.equal(x, torch.zeros(4, 3))


def test_guidance() -> None:
    """A term that is added to the score, and classifier-free guidance, as one network's would be."""

    def term(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        assert x.shape == (6, 3)
        return 0.5 - x

    options: dict[str, Any] = {"dtype": F64, "seed": 1}
    guided = sample(net, VP(), (6, 3), "em", 9, guidance=term, **options)
    expected = sample(lambda x, t: net(x, t) + term(x, t), VP(), (6, 3), "em", 9, **options)
    torch.testing.assert_close(guided, expected, rtol=1e-10, atol=1e-10)
    two = sample(lambda x, t: (net(x, t), -x), VP(), (6, 3), "em", 9, guidance_scale=3.0, **options)
    one = sample(lambda x, t: 3.0 * net(x, t) + 2.0 * x, VP(), (6, 3), "em", 9, **options)
    torch.testing.assert_close(two, one, rtol=1e-9, atol=1e-9)


def test_networks_of_the_data_are_asked_about_y() -> None:
    """One network `D(y, sigma)` samples VP and EDM: the states at equal noise levels are y."""

    def denoiser(y: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        assert y.shape == (5, 3)
        return torch.tanh(y) / (1.0 + sigma[:, None])

    start = torch.randn(5, 3, dtype=F64)
    path, times = VP(), [0.9, 0.5, 0.2]
    alpha, sigma = path.alpha(times), path.sigma(times)
    options: dict[str, Any] = {"parameterization": "denoiser", "dtype": F64}
    x = sample(denoiser, path, (5, 3), "ddim", None, times, init=alpha[0] * start, **options)
    y = sample(denoiser, EDM(), (5, 3), "ddim", None, sigma / alpha, init=start, **options)
    torch.testing.assert_close(x / alpha[-1], y, rtol=1e-9, atol=1e-9)


def test_a_module_in_half_precision_sees_its_own_dtype() -> None:
    module = torch.nn.Linear(3, 3).to(torch.bfloat16)
    dtypes = []

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def forward(self, y: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
            dtypes.append(y.dtype)
            return self.inner(y)

    sample(Net(), VP(), (4, 3), "ddim", 3, parameterization="denoiser")
    # The first look is made of the state that the run begins with, the others by the stages.
    assert dtypes == [torch.bfloat16] * 3


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"the network's output must be \(B, 3\), got \(4, 2\)"):
        sample(lambda x, t: x[:, :2], VP(), (4, 3), "em", 3)
    with pytest.raises(TypeError, match="the network's output must be a tensor"):
        sample(lambda x, t: [None], VP(), (4, 3), "em", 3)
    with pytest.raises(ValueError, match=r"init must be \(B, 3\), got \(4, 6\)"):
        sample(net, VP(), (4, 3), "em", 3, init=torch.zeros(4, 6))
    with pytest.raises(ValueError, match="have no velocity"):
        sample(net, VP(), (4, 3), "em", 3, return_velocity=True)
    known = cldfast.Inpainting(torch.zeros(4, 2), torch.ones(4, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match="inpainting is for processes in phase space"):
        sample(net, VP(), (4, 4), "em", 3, inpaint=known)
    assert sample(lambda u, t: -u[:, 2:], CLD(), (4, 2), "em", 3, return_velocity=True)[1].shape
