"""Sampling as graphs: fixed memory, the ring of history rows and the step on the device.

What a GPU would capture is run again instead; all else is the code that runs there.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch

import cldfast
from cldfast import CLD, GraphWarning, LinearBeta, NoiseAddress, kernels, make_plan, run, sample
from cldfast.planner.solvers import SOLVERS
from cldfast.sampling.graphs import CaptureError, Recording

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
        index = int(step)
        columns = torch.any(weights[index] != 0, dim=0)
        assert used == sum(1 << j for j in range(len(columns)) if columns[j])
        made = super().stage(
            u, outputs, history, weights[index : index + 1], noise.at_stage(index),
            seen_planes=seen_planes, seen_dtype=seen_dtype,
        )  # fmt: skip
        assert (made.history is None) == (row_out is None)
        if row_out is not None:
            row_out.copy_(made.history)
        return kernels.StageResult(out.copy_(made.state), row_out, made.seen)

    def advance(self, step: torch.Tensor, times: torch.Tensor, time: torch.Tensor) -> None:
        step += 1
        if int(step) < len(times):
            time.copy_(times[int(step)])


def recorded(
    monkeypatch: pytest.MonkeyPatch,
    record: Callable[[Callable[[], None]], Callable[[], None]],
    plan: cldfast.Plan,
    net: Any,
    u: torch.Tensor,
    **arguments: Any,
) -> torch.Tensor:
    """`run(..., graph=True)` as on a GPU, with `record` for the capture."""
    monkeypatch.setattr(kernels, "resolve_backend", lambda name, device: Stepping())
    monkeypatch.setattr(cldfast.sampling.graphs, "CudaGraphs", lambda device: record)
    monkeypatch.setattr(cldfast.sampling.graphs, "obstacle", lambda *arguments: "")
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
    made = Recording(
        plan,
        lambda stage, u, t, seen, argument: (Network()(seen, argument),),
        u,
        NoiseAddress(),
        Stepping(),
        lambda body: body,
    ).run(plan.stages)
    assert made.data_ptr() != u.data_ptr()
