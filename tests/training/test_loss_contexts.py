"""The losses where PyTorch changes the rules: autocast, graph capture, layouts, processes, transforms."""

from __future__ import annotations

import copy
import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.func import functional_call
from torch.nn.parallel import DistributedDataParallel

from cldfast import CLD, LinearBeta, dsm_loss, hsm_loss, kernels
from cldfast.lab.models import MLPScore, UNetScore
from cldfast.training.losses import prepared_loss, row_coefficients

SDE = CLD(x_noise=0.3, beta=LinearBeta(0.5, 7.0))


def _mlp(dim: int = 3, planes: int = 1) -> MLPScore:
    torch.manual_seed(0)
    net = MLPScore(dim, planes * dim, width=16, depth=1, time_width=8)
    nn.init.normal_(net.last.weight, std=0.25)
    return net


def _gradient(net: nn.Module) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])


# --- mixed precision -----------------------------------------------------------------------------


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("loss_of", [hsm_loss, dsm_loss])
def test_autocast(backend, loss_of, half):
    """Outputs in half precision, state and loss in float32, gradients those of float32 but rounded."""
    x0, net = torch.randn(256, 3), _mlp()
    loss_of(net, SDE, x0, parameterization="mixed", seed=1, backend=backend).backward()
    expected = _gradient(net)
    net.zero_grad()
    seen = []

    def watched(u, t):
        out = net(u, t)
        seen.append((u.dtype, t.dtype, out.dtype))
        return out

    with torch.autocast("cpu", half):
        loss = loss_of(watched, SDE, x0, parameterization="mixed", seed=1, backend=backend)
    loss.backward()
    assert loss.dtype == torch.float32
    assert seen == [(torch.float32, torch.float32, half)]
    # Each of about ten layers forth and back rounds to 2^-8 or 2^-11.
    size = 10 * torch.finfo(half).eps
    assert float((_gradient(net) - expected).norm()) < size * float(expected.norm())


def test_loss_scaling_keeps_small_gradients_in_float16():
    """A loss scaled by 2^16 and gradients divided by it: as `torch.amp.GradScaler` trains."""
    x0, net = torch.randn(4096, 3), _mlp()
    hsm_loss(net, SDE, x0, seed=1).backward()
    expected = _gradient(net)
    net.zero_grad()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    with torch.autocast("cpu", torch.float16):
        loss = hsm_loss(net, SDE, x0, seed=1)
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    error = float((_gradient(net) - expected).norm() / expected.norm())
    assert error < 10 * torch.finfo(torch.float16).eps


# --- torch.compile -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameterization", "weighting", "times"),
    [
        ("mixed", "reweighted", "uniform"), ("x0", "likelihood", "stratified"),
        ("renormalised", "reweighted_g2", "uniform"), ("full_noise", "det", "stratified"),
        ("full_renormalised", "reweighted", "uniform"),
    ],
)  # fmt: skip
def test_whole_graph(parameterization, weighting, times):
    """Loss and gradient in one graph; another address does not need another graph."""
    planes = 2 if parameterization.startswith("full") else 1
    net, x0 = _mlp(planes=planes), torch.randn(16, 3)

    def loss(x0, first_index):
        return hsm_loss(
            net, SDE, x0, weighting, parameterization, seed=2, times=times, first_index=first_index
        )

    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for first_index in (0, 16, 48):
        net.zero_grad()
        expected = loss(x0, first_index)
        expected.backward()
        gradient = _gradient(net)
        net.zero_grad()
        got = compiled(x0, first_index)
        got.backward()
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=0.0)
        torch.testing.assert_close(_gradient(net), gradient, rtol=1e-5, atol=1e-6)


# --- parts of a batch ----------------------------------------------------------------------------


@pytest.mark.parametrize("backend_of_rows", ["auto", "reference"])
def test_whole_graph_with_coefficients_made_outside(backend_of_rows):
    net, x0, t = _mlp(), torch.randn(20, 3), torch.rand(20, dtype=torch.float64) * 0.9 + 0.05
    rows = row_coefficients(SDE, t, lambda t: 1.0 + t, "score")
    assert isinstance(rows.perturbation, kernels.AtTimes)

    def loss(x0):
        return prepared_loss(net, x0, rows, "score", seed=4, backend=backend_of_rows)

    loss(x0).backward()
    wanted = _gradient(net)
    net.zero_grad()
    made = torch.compile(loss, fullgraph=True, backend="aot_eager")(x0)
    made.backward()
    assert torch.allclose(made, loss(x0)) and torch.allclose(_gradient(net), wanted, rtol=1e-4)


@pytest.mark.parametrize("loss_of", [hsm_loss, dsm_loss])
def test_parts_of_a_batch_add_up(backend, loss_of):
    x0, net = torch.randn(12, 3), _mlp()
    loss_of(net, SDE, x0, seed=4, first_index=100, backend=backend).backward()
    whole = _gradient(net)
    net.zero_grad()
    for start, end in ((0, 5), (5, 6), (6, 12)):
        part = loss_of(
            net, SDE, x0[start:end], seed=4, first_index=100 + start, reduction="sum",
            backend=backend,
        )  # fmt: skip
        (part / 12).backward()
    # Sums of 12 rows in another order.
    torch.testing.assert_close(_gradient(net), whole, rtol=1e-5, atol=1e-6)


def _rank(rank: int, folder: str, rows: int) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    try:
        net = DistributedDataParallel(_mlp())
        x0 = torch.randn(rows, 3, generator=torch.Generator().manual_seed(7))
        half = rows // 2
        own = slice(rank * half, (rank + 1) * half)
        # Rows are numbered over all processes, so their noise and times are those of one process.
        hsm_loss(net, SDE, x0[own], seed=4, first_index=rank * half).backward()
        torch.save(_gradient(net), f"{folder}/gradient{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_available(), reason="needs torch.distributed")
def test_two_processes_make_the_gradient_of_one(tmp_path: Path):
    rows = 32
    torch.multiprocessing.spawn(_rank, (str(tmp_path), rows), nprocs=2)
    net = _mlp()
    x0 = torch.randn(rows, 3, generator=torch.Generator().manual_seed(7))
    hsm_loss(net, SDE, x0, seed=4).backward()
    for rank in range(2):
        got = torch.load(tmp_path / f"gradient{rank}.pt", weights_only=True)
        torch.testing.assert_close(got, _gradient(net), rtol=1e-5, atol=1e-6)


# --- layouts -------------------------------------------------------------------------------------


def test_channels_last(backend):
    """The same loss and gradient from any layout, and the layout is handed to the network."""
    torch.manual_seed(0)
    net = UNetScore(3, width=8, multipliers=(1, 1), time_width=8)
    nn.init.normal_(net.last.weight, std=0.1)
    x0 = torch.randn(4, 3, 8, 8)
    expected = hsm_loss(net, SDE, x0, seed=1, backend=backend)
    expected.backward()
    gradient = _gradient(net)
    last = copy.deepcopy(net).to(memory_format=torch.channels_last)
    last.zero_grad()
    layouts = []

    def watched(u, t):
        layouts.append(u.is_contiguous(memory_format=torch.channels_last))
        return last(u, t)

    x0 = x0.to(memory_format=torch.channels_last)
    got = hsm_loss(watched, SDE, x0, seed=1, backend=backend)
    got.backward()
    # Convolutions of another layout sum in another order.
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=0.0)
    torch.testing.assert_close(_gradient(last), gradient, rtol=1e-3, atol=1e-4)
    if backend != "reference":
        assert layouts == [True]


# --- torch.func ----------------------------------------------------------------------------------


def _functional(net: nn.Module, x0: torch.Tensor, backend: str):
    def loss(parameters):
        return hsm_loss(
            lambda u, t: functional_call(net, parameters, (u, t)), SDE, x0, seed=1, backend=backend
        )

    return loss


def test_transforms_of_functions(backend):
    """The reference can; a kernel says that it cannot."""
    net, x0 = _mlp(), torch.randn(8, 3)
    parameters = dict(net.named_parameters())
    if backend != "reference":
        with pytest.raises(NotImplementedError, match=r"torch\.func"):
            torch.func.grad(_functional(net, x0, backend))(parameters)
        with pytest.raises(NotImplementedError, match=r"torch\.func"):
            torch.func.vmap(lambda x: hsm_loss(net, SDE, x, seed=1, backend=backend))(x0[:, None])
        return
    got = torch.func.grad(_functional(net, x0, backend))(parameters)
    hsm_loss(net, SDE, x0, seed=1, backend=backend).backward()
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(got[name], parameter.grad)


def test_denoising_score_matching_compiles_and_transforms() -> None:
    """The initial velocities are drawn inside a graph, and inside a transform."""
    sde, x0 = CLD(), torch.randn(4, 3)

    def loss(scale: torch.Tensor, backend: str = "auto") -> torch.Tensor:
        return dsm_loss(lambda u, t: scale * u[:, :3], sde, x0, seed=3, backend=backend)

    scale = torch.tensor(0.5)
    eager = loss(scale)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(scale), eager, rtol=1e-5)
    transformed = torch.func.grad(lambda s: loss(s, "reference"))(scale)
    leaf = scale.clone().requires_grad_()
    loss(leaf, "reference").backward()
    assert torch.allclose(transformed, leaf.grad, rtol=1e-5)
