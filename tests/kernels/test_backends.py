"""The registry of backends: one from outside the package, names, what is missing, what "auto" takes."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

import cldfast
from cldfast import NoiseAddress, kernels
from cldfast.kernels.backends.reference import ReferenceBackend
from cldfast.lab.models import MLPScore
from cldfast.training import TrainConfig, Trainer

SDE = cldfast.CLD(beta=cldfast.LinearBeta(1.0, 6.0), x_noise=0.2)

# What a user writes: all of the contract, here by the reference, and the registration.
SOURCE = '''
"""A backend that counts its calls."""

from collections import Counter

import torch

from cldfast.kernels import Backend, get_backend, register_backend


class Counting(Backend):
    def __init__(self):
        super().__init__("mine", fuses_gradients=FUSES_GRADIENTS)
        self.plain = get_backend("reference", "cpu")
        self.calls = Counter()

    def stage(self, *tensors, **options):
        self.calls["stage"] += 1
        return self.plain.stage(*tensors, **options)

    def residual(self, output, offset, weights, *, gradient=True, **options):
        self.calls["residual"] += 1
        options.pop("overwrite", None)
        if not self.fuses_gradients:
            return self.plain.residual(output, offset, weights, **options)
        with torch.enable_grad():
            leaf = output.detach().requires_grad_()
            loss, _ = self.plain.residual(leaf, offset, weights, **options)
            made = torch.autograd.grad(loss.sum(), leaf)[0] if gradient else None
        return loss.detach(), made

    def covers(self, weights):
        return self.plain.covers(weights)

    def matrices(self, weights):
        self.calls["matrices"] += 1
        return self.plain.matrices(weights)

    def words(self, address, count, device):
        return self.plain.words(address, count, device)


register_backend("mine", Counting, ("cpu",))
'''


def imported(file: Path, source: str) -> ModuleType:
    """A module of the user's, from a file outside the package."""
    file.write_text(source)
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(params=[False, True], ids=["plain", "fused"])
def mine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[kernels.Backend]:
    """The registered backend; whether it makes gradients itself."""
    imported(tmp_path / "mine.py", f"FUSES_GRADIENTS = {request.param}\n{SOURCE}")
    yield kernels.get_backend("mine", "cpu")
    kernels.unregister_backend("mine")


def calls(backend: kernels.Backend, name: str) -> int:
    """How often an operation has run since this was asked last."""
    return int(backend.calls.pop(name, 0))  # type: ignore[attr-defined]


@pytest.fixture
def net() -> MLPScore:
    made = MLPScore(3, width=16, depth=1, time_width=8)
    torch.nn.init.normal_(made.last.weight, std=0.2)
    return made


def test_a_backend_from_outside_samples(mine: kernels.Backend, net: MLPScore) -> None:
    wanted = cldfast.sample(net, SDE, (5, 3), steps=6, seed=1, backend="reference")
    assert torch.equal(cldfast.sample(net, SDE, (5, 3), steps=6, seed=1, backend="mine"), wanted)
    # The initial state, and a stage a step at least.
    assert calls(mine, "stage") > 6


@pytest.mark.parametrize(("loss_of", "stages"), [(cldfast.hsm_loss, 1), (cldfast.dsm_loss, 2)])
def test_a_backend_from_outside_trains(
    mine: kernels.Backend, net: MLPScore, loss_of: Callable[..., torch.Tensor], stages: int
) -> None:
    x0, made = torch.randn(20, 3), []
    for name in ("reference", "mine"):
        net.zero_grad()
        loss = loss_of(net, SDE, x0, seed=1, backend=name)
        loss.backward()
        made.append([loss.detach(), *(p.grad for p in net.parameters())])
    torch.testing.assert_close(made[1], made[0], rtol=1e-5, atol=1e-6)
    # The perturbation, and before it the velocities where they are drawn.
    assert calls(mine, "stage") == stages and calls(mine, "residual") == 1
    assert calls(mine, "matrices") == 2  # a loss's two tables

    trainer = Trainer(net, SDE, x0, TrainConfig(batch_size=4, lr=1e-3), backend="mine")
    for _ in range(3):
        trainer.train_step()
    assert calls(mine, "stage") == 3 and calls(mine, "residual") == 3


def test_gradients_of_a_stage_find_it_by_its_name(mine: kernels.Backend) -> None:
    u = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(1, 3, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda u: cldfast.stage(u, weights=weights, backend="mine")[:2], (u,)
    )
    assert calls(mine, "stage") > 1


def test_a_plain_backend_is_traced_itself() -> None:
    class Twice(ReferenceBackend):
        def residual(self, *tensors, **options):  # type: ignore[no-untyped-def]
            loss, gradient = super().residual(*tensors, **options)
            return 2.0 * loss, gradient

    output, offset = torch.randn(4, 3), torch.randn(4, 3)
    weights = torch.randn(4, 1, 2, dtype=torch.float64)

    def loss(name: str) -> torch.Tensor:
        return kernels.residual(output, offset, weights, backend=name)

    kernels.register_backend("twice", lambda: Twice("twice"))
    try:
        compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled("twice"), 2.0 * loss("reference"))
    finally:
        kernels.unregister_backend("twice")


def test_what_auto_takes_stays(mine: kernels.Backend) -> None:
    """The first that is registered for a device."""
    assert kernels.get_backend("auto", "cpu").name == "cpu"
    assert kernels.backend_names()[-1] == "mine" and cldfast.info()["backends"]["mine"]


def test_a_backend_may_be_handed_on_as_it_is(mine: kernels.Backend) -> None:
    cpu = torch.device("cpu")
    assert kernels.resolve_backend(mine, cpu) is mine is kernels.resolve_backend("mine", cpu)
    cldfast.stage(
        torch.zeros(2, 4), weights=torch.zeros(1, 2, 4, dtype=torch.float64), backend=mine
    )
    assert calls(mine, "stage") == 1


def test_what_is_not_said_to_count_steps_does_not(mine: kernels.Backend) -> None:
    step, times = torch.zeros((), dtype=torch.int64), torch.zeros(2)
    with pytest.raises(NotImplementedError, match="'mine' keeps no step on the device"):
        mine.advance(step, times, times[0])


def test_a_forgotten_backend_is_unknown(tmp_path: Path, net: MLPScore) -> None:
    imported(tmp_path / "mine.py", f"FUSES_GRADIENTS = False\n{SOURCE}")
    names = kernels.backend_names()
    kernels.unregister_backend("mine")
    assert kernels.backend_names() == names[:-1]
    for call in (
        lambda: kernels.get_backend("mine", "cpu"),
        lambda: cldfast.sample(net, SDE, (5, 3), steps=2, backend="mine", seed=0),
        lambda: cldfast.hsm_loss(net, SDE, torch.zeros(5, 3), backend="mine"),
    ):
        with pytest.raises(ValueError, match="unknown backend 'mine'; expected one of auto, cpu, "):
            call()
    with pytest.raises(KeyError, match="mine"):
        kernels.unregister_backend("mine")


@pytest.mark.parametrize("name", ["auto", "cpu", "reference", "triton"])
def test_a_taken_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"a backend '{name}' is registered already"):
        kernels.register_backend(name, ReferenceBackend)


def test_another_name_than_the_registered_one_is_refused() -> None:
    kernels.register_backend("mine", ReferenceBackend)
    try:
        with pytest.raises(ValueError, match="registered as 'mine' is named 'reference'"):
            kernels.get_backend("mine", "cpu")
    finally:
        kernels.unregister_backend("mine")


def test_an_unfinished_backend_cannot_be_made() -> None:
    class Half(kernels.Backend):
        def covers(self, weights: kernels.AtTimes) -> bool:
            return True

    with pytest.raises(TypeError, match="abstract"):
        Half("half")  # type: ignore[abstract]


# --- backends that cannot run here ---------------------------------------------------------------


def absent() -> kernels.Backend:
    raise ImportError("no such chip")


@pytest.fixture
def missing() -> Iterator[None]:
    """A fast backend for a device of PyTorch's that has no other, which cannot run."""
    kernels.register_backend("chip", absent, ("meta",), "Buy one.")
    yield
    kernels.unregister_backend("chip")


def test_a_missing_backend_says_why(missing: None) -> None:
    assert kernels.missing_backend("chip") == "no such chip"
    assert cldfast.info()["backends"]["chip"] == "not available: no such chip"
    with pytest.raises(ValueError, match="backend 'chip' is not available: no such chip"):
        kernels.get_backend("chip", "meta")
    with pytest.raises(ValueError, match="needs tensors on a device of type meta, got device cpu"):
        kernels.get_backend("chip", "cpu")


def test_auto_warns_once_where_a_faster_one_is_missing(missing: None) -> None:
    u, weights = torch.zeros(2, 4, device="meta"), torch.zeros(1, 2, 4, dtype=torch.float64)
    with pytest.warns(cldfast.BackendWarning) as caught:
        for _ in range(2):
            cldfast.stage(u, weights=weights)
    assert len(caught) == 1 and caught[0].filename == __file__
    told = str(caught[0].message)
    assert "kernels for meta are missing (no such chip)" in told
    assert "backend 'reference' runs instead. Buy one." in told


def test_auto_takes_the_first_that_runs(missing: None) -> None:
    kernels.register_backend("second", lambda: ReferenceBackend("second"), ("meta", "cpu"))
    try:
        assert kernels.get_backend("auto", "meta").name == "second"  # without a warning
        assert kernels.get_backend("auto", "cpu").name == "cpu"
    finally:
        kernels.unregister_backend("second")


def test_a_reason_without_words_is_one_too() -> None:
    def load() -> kernels.Backend:
        raise ImportError

    kernels.register_backend("mine", load)
    try:
        assert kernels.missing_backend("mine") == "ImportError()"
    finally:
        kernels.unregister_backend("mine")


def test_words_come_from_the_fastest(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Words(ReferenceBackend):
        def words(self, address, count, device):  # type: ignore[no-untyped-def]
            asked.append(address)
            return super().words(address, count, torch.device("cpu"))

    kernels.register_backend("mine", lambda: Words("mine"), ("meta",))
    try:
        kernels.pair_words(NoiseAddress(5, 2), 3, "meta")
    finally:
        kernels.unregister_backend("mine")
    assert asked == [NoiseAddress(5, 2)]


def test_only_the_registered_backend_is_taken_as_an_object() -> None:
    x0, weights = torch.zeros(2, 3), torch.zeros(2, 2, 3, dtype=torch.float64)
    with pytest.raises(ValueError, match="not the one registered as 'reference'"):
        kernels.perturb((x0,), weights, backend=ReferenceBackend())
    if not kernels.missing_backend("cpu"):
        with pytest.raises(ValueError, match="needs tensors on a device of type cpu"):
            u = torch.zeros(2, 4, device="meta")
            cldfast.stage(
                u,
                weights=torch.zeros(1, 2, 4, dtype=torch.float64),
                backend=kernels.get_backend("cpu", "cpu"),
            )
    with pytest.raises(ValueError, match="unknown backend 'nope'; expected one of cpu"):
        kernels.missing_backend("nope")
