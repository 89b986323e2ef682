"""Sampling as graphs: fixed memory, the ring of history rows and the step on the device.

What a GPU would capture is run again instead; all else is the code that runs there.
"""

from __future__ import annotations

import gc
import sys
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch

import cldfast
from cldfast import CLD, GraphWarning, LinearBeta, NoiseAddress, kernels, make_plan, run, sample
from cldfast.planner.solvers import SOLVERS
from cldfast.sampling import recorders
from cldfast.sampling.graphs import Recording
from cldfast.sampling.kept_graphs import KeptRecordings
from cldfast.sampling.recorders import CaptureError, Recorder

D = 3


class Network(torch.nn.Module):
    def forward(self, u: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        x, v = u.chunk(2, 1)
        return -(v + 0.3 * torch.tanh(x)) * (1.0 + t[:, None])


class Stepping(type(kernels.automatic_backend("cpu"))):  # type: ignore[misc]
    """The CPU's backend with the step in memory, as a GPU's has it."""

    def __init__(self) -> None:
        self.__dict__.update(kernels.automatic_backend("cpu").__dict__)
        self.counts_steps = True

    def stage(  # type: ignore[no-untyped-def, override]
        self,
        u,
        outputs,
        history,
        weights,
        noise,
        *,
        step,
        used,
        row_out,
        out,
        seen_planes,
        seen_dtype,
    ):
        index, seed, before = step.tolist()
        columns = torch.any(weights[index] != 0, dim=0)
        assert used == sum(1 << j for j in range(len(columns)) if columns[j])
        made = super().stage(
            u, outputs, history, weights[index : index + 1],
            NoiseAddress(seed % 2**64, noise.first_index + before, index, noise.stream),
            seen_planes=seen_planes, seen_dtype=seen_dtype,
        )  # fmt: skip
        assert (made.history is None) == (row_out is None)
        if row_out is not None:
            row_out.copy_(made.history)
        return kernels.StageResult(out.copy_(made.state), row_out, made.seen)

    def advance(self, step: torch.Tensor, times: torch.Tensor, time: torch.Tensor) -> None:
        step[0] += 1
        if int(step[0]) < len(times):
            time.copy_(times[int(step[0])])


def recorded(
    monkeypatch: pytest.MonkeyPatch,
    record: Callable[[Callable[[], None]], Callable[[], None]],
    plan: cldfast.Plan,
    net: Any,
    u: torch.Tensor,
    kept: KeptRecordings | None = None,
    **arguments: Any,
) -> torch.Tensor:
    """`run(..., graph=True)` as on a GPU, with `record` for the capture; nothing is kept, or `kept`."""
    monkeypatch.setattr(kernels, "resolve_backend", lambda name, device: Stepping())

    class Fake(Recorder):
        bytes = 1000

        def __call__(self, body: Callable[[], None]) -> Callable[[], None]:
            return record(body)

    monkeypatch.setattr(recorders, "CudaGraphs", lambda device: Fake())
    monkeypatch.setattr(cldfast.sampling.graphs, "obstacle", lambda *arguments: "")
    kept = KeptRecordings(bytes=0) if kept is None else kept
    monkeypatch.setattr(sys.modules["cldfast.sampling.run"], "recordings", kept)
    try:
        return run(plan, net, u, graph=True, **arguments)
    finally:
        monkeypatch.undo()


@pytest.mark.parametrize("denoise", [False, True])
@pytest.mark.parametrize("solver", SOLVERS)
def test_the_same_samples_bit_for_bit(
    solver: str, denoise: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(CLD(beta=LinearBeta(1.0, 6.0)), solver, 12, denoise=denoise)
    u = torch.randn(7, 2 * D)
    before = u.clone()
    replays = []

    def record(body: Callable[[], None]) -> Callable[[], None]:
        def replay() -> None:
            replays.append(1)
            body()

        return replay

    made = recorded(monkeypatch, record, plan, Network(), u, seed=5, first_index=3)
    assert torch.equal(u, before)
    assert torch.equal(made, run(plan, Network(), u, seed=5, first_index=3))
    # All but a step or two of each kind are replays.
    assert len(replays) >= len(plan.stages) // 2


@pytest.mark.parametrize("form", ["denoiser", "edm"])
@pytest.mark.parametrize("solver", ["em", "sscs", "multistep", "heun"])
def test_networks_that_see_y(solver: str, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What they see and their argument are those of each step; a guidance term gets the time."""
    sde = CLD(x_noise=0.2, beta=LinearBeta(1.0, 6.0))
    u, times = torch.randn(7, 2 * D), []

    class Half(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = torch.nn.Parameter(torch.ones((), dtype=torch.bfloat16))

        def forward(self, y: torch.Tensor, argument: torch.Tensor) -> torch.Tensor:
            assert y.dtype == torch.bfloat16 and y.shape == (7, D)
            return 0.8 * torch.tanh(y) + 0.1 * torch.tanh(argument)[:, None].to(y.dtype)

    def term(u: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        times.append(float(t[0]))
        return 0.1 * torch.tanh(u[:, D:]) * t[:, None]

    for guided in (False, True):
        plan = make_plan(sde, solver, 12, parameterization=form, guidance_term=guided)
        options = {"guidance": term} if guided else {}
        made = recorded(monkeypatch, lambda body: body, plan, Half(), u, seed=5, **options)
        assert torch.equal(made, run(plan, Half(), u, seed=5, **options))
    asked = [stage.t for stage in plan.stages if stage.evaluates]
    assert times == pytest.approx([*asked, *asked], rel=1e-6)


def test_one_step_is_captured_for_a_loop_of_like_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_plan(CLD(), "em", 20)
    captured, called = [], []

    def record(body: Callable[[], None]) -> Callable[[], None]:
        captured.append(1)
        return body

    def net(u: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        called.append(float(t[0]))
        return Network()(u, t)

    recorded(monkeypatch, record, plan, net, torch.randn(4, 2 * D))
    assert len(captured) == 1
    assert called == pytest.approx([stage.t for stage in plan.stages], rel=1e-6)


@pytest.mark.parametrize("shape", [(5, 2 * D), (3, 4, 5, 6)])
def test_views_of_the_state_as_outputs(
    shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, u = make_plan(CLD(), "em", 8), torch.randn(shape)
    half = shape[1] // 2

    def view(u: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return u[:, 1 : half + 1]

    made = recorded(monkeypatch, lambda body: body, plan, view, u, seed=0)
    assert torch.equal(made, run(plan, view, u, seed=0))


def test_guidance_and_two_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    plan, u = make_plan(CLD(), "sscs", 8, guidance_scale=2.0), torch.randn(5, 2 * D)

    def both(u: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return Network()(u, t), -u[:, D:]

    made = recorded(monkeypatch, lambda body: body, plan, both, u, seed=2)
    assert torch.equal(made, run(plan, both, u, seed=2))


def test_a_network_that_cannot_be_captured_runs_step_by_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan, u = make_plan(CLD(), "em", 8), torch.randn(4, 2 * D)

    def record(body: Callable[[], None]) -> Callable[[], None]:
        raise CaptureError("operation not permitted when stream is capturing")

    with pytest.warns(
        GraphWarning, match="step by step.*cannot be captured.*not permitted"
    ) as caught:
        made = recorded(monkeypatch, record, plan, Network(), u, seed=1)
    assert len(caught) == 1
    assert torch.equal(made, run(plan, Network(), u, seed=1))


def test_on_the_cpu_the_reason_is_said() -> None:
    with pytest.warns(GraphWarning, match="need a CUDA device and the state is on cpu"):
        made = sample(Network(), CLD(), (4, D), steps=3, graph=True, seed=0)
    assert torch.equal(made, sample(Network(), CLD(), (4, D), steps=3, seed=0))


@pytest.mark.parametrize(
    ("backend", "refused", "words"),
    [
        ("reference", {}, "backend 'reference' keeps no step counter"),
        (
            "cuda",
            {"callbacks": True, "given noise": False},
            "callbacks need the host between steps",
        ),
        ("cuda", {"callbacks": True, "inpainting": True}, "callbacks and inpainting need the host"),
        ("cuda", {"callbacks": False}, ""),
    ],
)
def test_obstacles(backend: str, refused: dict[str, bool], words: str) -> None:
    found = Stepping() if backend == "cuda" else kernels.get_backend(backend, "cpu")

    class OnDevice:
        device = torch.device("cuda")

    reason = cldfast.sampling.graphs.obstacle(make_plan(CLD(), "em", 3), OnDevice(), found, refused)  # type: ignore[arg-type]
    assert words in reason and bool(words) == bool(reason)


def test_history_rows_of_different_sizes_are_no_ring() -> None:
    class OnDevice:
        device = torch.device("cuda")

    class Mixed:
        stages = [type("Stage", (), {"history_planes": planes, "seen": None}) for planes in (1, 2)]

    reason = cldfast.sampling.graphs.obstacle(Mixed(), OnDevice(), Stepping(), {})  # type: ignore[arg-type]
    assert "history rows of [1, 2] planes" in reason


def test_loop_body_compiles_without_graph_breaks() -> None:
    plan = make_plan(CLD(), "multistep", 3, parameterization="x0", order=2)
    tables = [torch.from_numpy(matrix)[None] for matrix in plan.matrices()]
    net = Network()

    def loop(u: torch.Tensor) -> torch.Tensor:
        history: list[torch.Tensor] = []
        for index, (stage, table) in enumerate(zip(plan.stages, tables, strict=True)):
            t = torch.full((), 0.0 if stage.t is None else stage.t).expand(u.shape[0])
            outputs = (net(u, t),) if stage.evaluates else ()
            rows = history[: len(stage.H)]
            u, row, _ = kernels.stage(u, outputs, rows, table, noise=NoiseAddress(3, 0, index))
            if row is not None:
                history.insert(0, row)
        return u

    u = torch.randn(4, 2 * D)
    compiled = torch.compile(loop, fullgraph=True, backend="aot_eager")
    with warnings.catch_warnings():
        warnings.simplefilter("error", GraphWarning)
        assert torch.allclose(compiled(u), run(plan, net, u, seed=3), atol=1e-6)


def test_a_recording_runs_from_its_own_copy() -> None:
    plan, u = make_plan(CLD(), "em", 2), torch.randn(2, 2 * D)
    recording = Recording(plan, u, NoiseAddress(), Stepping(), Recorder())

    def evaluate(stage: Any, u: Any, t: Any, seen: Any, argument: Any) -> tuple[torch.Tensor, ...]:
        return (Network()(seen, argument),)

    made = recording.run(plan.stages, evaluate, u, NoiseAddress())
    assert made.data_ptr() not in (u.data_ptr(), recording.u.data_ptr())


class Trained(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.full((), 0.5))

    def forward(self, u: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.scale * Network()(u, t)


def test_one_capture_serves_batches_and_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of plans that are alike, whatever the seed, the samples and the values of the parameters."""
    captured, kept, nets = [], KeptRecordings(bytes=10**9), [Trained()]

    def record(body: Callable[[], None]) -> Callable[[], None]:
        captured.append(1)
        return body

    def captures(solver: str = "multistep", rows: int = 5, **address: int) -> int:
        """How many a run makes, whose samples are those of a run step by step."""
        before, u, plan = len(captured), torch.randn(rows, 2 * D), make_plan(CLD(), solver, 12)
        made = recorded(monkeypatch, record, plan, nets[0], u, kept, **address)
        assert torch.equal(made, run(plan, nets[0], u, **address))
        return len(captured) - before

    assert captures(seed=1) > 0
    captures(seed=2**64 - 1, first_index=8)  # also of kinds that come once in a run
    assert captures(seed=3, first_index=2**40) == 0
    with torch.no_grad():
        nets[0].scale.mul_(2.0)  # in place
    assert captures(seed=3) == 0
    # Another remainder of the first sample, another shape, another solver: recordings of their own.
    assert captures(seed=1, first_index=3) > 0
    assert captures(seed=1, rows=6) > 0
    assert captures("em", seed=1) == 1
    # Where parameters or modes are others, what is kept does not serve.
    nets[0].scale = torch.nn.Parameter(torch.full((), 0.25))
    assert captures("em", seed=1) == 1
    nets[0].eval()
    assert captures("em", seed=1) == 1
    assert captures("em", seed=2) == 0
    assert len(kept) == 6
    nets.clear()
    gc.collect()
    assert len(kept) == 0


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    plan, net = make_plan(CLD(), "em", 6), Trained()
    sizes = []

    def fill(kept: KeptRecordings, rows: int) -> None:
        recorded(monkeypatch, lambda body: body, plan, net, torch.randn(rows, 2 * D), kept, seed=1)
        sizes.append([recording.u.shape[0] for recording in kept._kept.values()])

    by_number = KeptRecordings(most=2, bytes=10**9)
    for rows in (1, 2, 1, 3):
        fill(by_number, rows)
    assert sizes[-1] == [1, 3]  # that of 2 rows was used least lately
    one = next(iter(by_number._kept.values())).bytes
    by_memory = KeptRecordings(bytes=2 * one + 100)
    for rows in (1, 1, 2, 3):
        fill(by_memory, rows)
    assert sizes[-1] == [2, 3] or sizes[-1] == [3]
    fill(by_memory, 10_000)  # alone too large
    assert sizes[-1] == []


def test_a_function_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    kept, u = KeptRecordings(bytes=10**9), torch.randn(4, 2 * D)
    net = Network()
    recorded(
        monkeypatch, lambda body: body, make_plan(CLD(), "em", 6), lambda u, t: net(u, t), u, kept
    )
    assert len(kept) == 0
