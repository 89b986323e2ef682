"""A default device that a user sets is for the user's own tensors: the library's name theirs."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path

import pytest
import torch

import cldfast
from cldfast import NoiseAddress, kernels
from cldfast.lab.data import DATASETS, make_data
from cldfast.lab.models import MLPScore
from cldfast.planner.solvers import SOLVERS
from cldfast.training import TrainConfig, Trainer
from cldfast.training.row_weights import WEIGHTINGS
from cldfast.training.times import TIME_SAMPLING, _density_table

PACKAGE = Path(cldfast.__file__).parent
SDE = cldfast.CLD(beta=cldfast.LinearBeta(1.0, 6.0), x_noise=0.2)
CPU = torch.device("cpu")
# PyTorch knows the second one by its name alone, so whatever is left to it raises.
DEVICES = ("meta", "privateuseone:0")
# Functions of PyTorch that make a tensor on the default device unless they are told another.
FACTORIES = {
    "arange", "as_tensor", "empty", "empty_strided", "eye", "full", "linspace", "logspace", "normal",
    "ones", "rand", "randint", "randn", "randperm", "scalar_tensor", "tensor", "zeros",
}  # fmt: skip
Case = Callable[[], object]


@pytest.fixture
def net() -> MLPScore:
    torch.manual_seed(1)
    made = MLPScore(3, width=16, depth=1, time_width=8)
    torch.nn.init.normal_(made.last.weight, std=0.2)
    return made


@contextmanager
def default(device: str) -> Iterator[None]:
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


def check(device: str, case: Case) -> None:
    """The case gives the same numbers, on the CPU, whatever the default device."""
    wanted = case()
    with default(device):
        made = case()
    torch.testing.assert_close(made, wanted, rtol=0.0, atol=0.0)


def rows(count: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(count, 3, generator=generator, device=CPU)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("times", ["drawn", "given"])
@pytest.mark.parametrize("loss_of", [cldfast.hsm_loss, cldfast.dsm_loss])
@pytest.mark.parametrize("name", ["cpu", "reference", "auto"])
def test_losses(net: MLPScore, name: str, loss_of: Case, times: str, device: str) -> None:
    more = {} if times == "drawn" else {"t": torch.full((5,), 0.3)}

    def case() -> list[torch.Tensor]:
        net.zero_grad()
        loss = loss_of(net, SDE, rows(), seed=1, backend=name, **more)  # type: ignore[call-arg]
        loss.backward()  # type: ignore[attr-defined]
        return [loss, *(p.grad for p in net.parameters())]  # type: ignore[list-item]

    check(device, case)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("times", TIME_SAMPLING)
def test_losses_made_anew(net: MLPScore, times: str, weighting: str, device: str) -> None:
    """A process that has no tables and no densities of times yet."""

    def case() -> torch.Tensor:
        _density_table.cache_clear()
        process = cldfast.CLD(beta=cldfast.LinearBeta(1.0, 5.0))
        return cldfast.hsm_loss(net, process, rows(), weighting, seed=1, times=times, t_min=1e-2)

    check(device, case)


@pytest.mark.parametrize("device", DEVICES)
def test_perturbation_and_noise(device: str) -> None:
    address, t = NoiseAddress(2**63 + 1, 5), torch.full((5,), 0.3)
    check(device, lambda: cldfast.perturb(SDE, rows(), t, seed=1)[0])
    check(device, lambda: kernels.pair_words(address, 7))
    check(device, lambda: kernels.normals((5, 3), address, device=CPU))
    check(device, lambda: kernels.get_backend("reference", "cpu").words(address, 7, CPU))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("solver", SOLVERS)
def test_sampling(net: MLPScore, solver: str, device: str) -> None:
    for name in ("cpu", "reference"):
        check(
            device,
            lambda name=name: cldfast.sample(
                net, SDE, (5, 3), solver=solver, steps=4, seed=1, backend=name, batch_size=2
            ),
        )


@pytest.mark.parametrize("device", DEVICES)
def test_the_flow(net: MLPScore, device: str) -> None:
    pytest.importorskip("torchdiffeq")
    more = {"rtol": 1e-2, "atol": 1e-2, "seed": 1}
    check(device, lambda: cldfast.pflow(net, SDE, (5, 3), **more)[0])
    check(device, lambda: cldfast.likelihood(net, SDE, rows(), **more).nll)


@pytest.mark.parametrize("device", DEVICES)
def test_plans_and_runs(net: MLPScore, device: str) -> None:
    def case() -> list[object]:
        plan = cldfast.make_plan(SDE, "multistep", 5, denoise=True)
        law = plan.gaussian_law(data_mean=0.0, data_var=1.0)
        u = torch.ones(5, 6, device=CPU)
        return [plan.matrices()[0], law.cov, cldfast.run(plan, net, u, seed=1)]

    check(device, case)


@pytest.mark.parametrize("device", DEVICES)
def test_seeds_are_drawn_where_generators_are(net: MLPScore, device: str) -> None:
    def case() -> list[torch.Tensor]:
        torch.manual_seed(5)
        return [
            cldfast.sample(net, SDE, (5, 3), steps=2, seed=0),
            cldfast.hsm_loss(net, SDE, rows()),
        ]

    check(device, case)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("clip", [None, 0.5])
def test_training(net: MLPScore, clip: float | None, device: str) -> None:
    config = TrainConfig(batch_size=4, lr=1e-3, clip=clip, ema_decay=0.9)

    def case() -> list[object]:
        trainer = Trainer(deepcopy(net), SDE, rows(20), config, validation=rows(6))
        losses = [trainer.train_step() for _ in range(3)]
        return [losses, *(p.detach() for p in trainer.ema.model.parameters())]

    check(device, case)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", DATASETS)
def test_data(name: str, device: str) -> None:
    if name == "digits":
        pytest.importorskip("sklearn")
    check(device, lambda: make_data(name).sample(5, seed=1))


def factory_calls(source: str) -> list[str]:
    """Calls that leave the device of a new tensor to the default device."""
    return [
        f"line {node.lineno}: {ast.unparse(node.func)}"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and ast.unparse(node.func.value) == "torch"
        and node.func.attr in FACTORIES
        and not any(keyword.arg in ("device", None) for keyword in node.keywords)
    ]


def test_every_new_tensor_names_its_device() -> None:
    found = {}
    for path in PACKAGE.rglob("*.py"):
        part = path.relative_to(PACKAGE)
        # A network's parameters and buffers are the user's: they go where PyTorch's own go.
        if part not in (Path("compat", "diffusers.py"), Path("lab", "models", "embedding.py")):
            found[str(part)] = factory_calls(path.read_text(encoding="utf-8"))
    assert {name: lines for name, lines in found.items() if lines} == {}


def test_a_planted_call_is_found() -> None:
    source = (
        "torch.zeros(3)\ntorch.zeros(3, device=u.device)\ntorch.empty(2, **like)\nu.new_empty(2)"
    )
    assert factory_calls(source) == ["line 1: torch.zeros"]
