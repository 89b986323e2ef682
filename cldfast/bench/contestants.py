"""Everything that is timed: stages as calls without arguments on shared inputs, and whole runs."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from cldfast import kernels
from cldfast.bench import cases
from cldfast.bench.baselines import MergedEager, PublishedSteps, published_sample
from cldfast.kernels import NoiseAddress, native
from cldfast.planner.make_plan import make_plan
from cldfast.process.sde import CLD
from cldfast.sampling import run as sampling

# Names in the results; "cldfast <level>" is the compiled kernel, in place as a sampler runs it.
FUSED, FUSED_OUT = "cldfast", "cldfast to other memory"
PUBLIC_OP, PUBLIC_OP_INPLACE = "cldfast.stage", "cldfast.stage in place"
REFERENCE, PUBLISHED, COMPILED = "reference", "published", "published, torch.compile"
ADDRESS = NoiseAddress()
MERGED, RANDN_LIKE, COPY_CALL = "merged eager", "torch.randn_like", "copy_"


@dataclass(frozen=True, slots=True)
class Contestant:
    """A timed call: `name` and `operation` as in the results; `level` is its SIMD level or ""."""

    name: str
    operation: str
    call: Callable[[], object]
    level: str = ""


def levels() -> tuple[str, ...]:
    """SIMD levels of the compiled core on this machine, lowest first; () where it is missing."""
    return () if native.core is None else tuple(native.core.levels())


def best_level() -> str:
    """The SIMD level that the core takes by itself, or "" where it is missing."""
    return "" if native.core is None else str(native.core.info()["level"])


def contestants(inputs: cases.Inputs, compiled: bool = True) -> list[Contestant]:
    """All contestants on these inputs.

    compiled: also the published steps under `torch.compile`, which takes seconds each.
    """
    found = [*_fused(inputs), *_eager(inputs), *_published(inputs, compiled)]
    found.append(Contestant(RANDN_LIKE, cases.RANDN, lambda: torch.randn_like(inputs.u)))
    found.append(Contestant(COPY_CALL, cases.COPY, lambda: inputs.out.copy_(inputs.u)))
    return found


def _fused(inputs: cases.Inputs) -> list[Contestant]:
    u, outputs, best = inputs.u, (inputs.output,), best_level()

    def fused(operation: str, out: torch.Tensor, level: str = "") -> Callable[[], object]:
        cpu: Any = copy(kernels.get_backend("cpu", "cpu"))
        cpu.level = level
        return partial(cpu.stage, u, outputs, (), cases.stage_weights(operation), ADDRESS, out=out)

    found = [
        Contestant(FUSED, operation, fused(operation, u, level), level)
        for level in levels()
        for operation in cases.OPERATIONS
    ]
    if best:
        found += [
            Contestant(FUSED_OUT, operation, fused(operation, inputs.out), best)
            for operation in (cases.SSCS, cases.NOISE_FREE)
        ]
    public = partial(kernels.stage, u, outputs, weights=cases.stage_weights(cases.SSCS))
    found.append(Contestant(PUBLIC_OP, cases.SSCS, public, best))
    found.append(Contestant(PUBLIC_OP_INPLACE, cases.SSCS, partial(public, out=u), best))
    return found


def _eager(inputs: cases.Inputs) -> list[Contestant]:
    found, reference = [], kernels.get_backend("reference", "cpu")
    for operation in cases.OPERATIONS:
        weights = cases.stage_weights(operation)
        call = partial(reference.stage, inputs.u, (inputs.output,), (), weights, ADDRESS)
        found.append(Contestant(REFERENCE, operation, call))
        merged = MergedEager(weights, inputs.u)
        found.append(Contestant(MERGED, operation, partial(merged, inputs.u, inputs.output)))
    return found


def _published(inputs: cases.Inputs, compiled: bool) -> list[Contestant]:
    t, dt = (torch.tensor(value, dtype=torch.float64, device="cpu") for value in cases.stage_time())
    arguments = (inputs.u, inputs.output, t, dt)
    steps = PublishedSteps(CLD())
    found = [
        Contestant(PUBLISHED, cases.SSCS, partial(steps.sscs, *arguments)),
        Contestant(PUBLISHED, cases.EM, partial(steps.em, *arguments)),
    ]
    if compiled:
        # PyTorch keeps compiled code by code object, and all cases compile the same steps: the code
        # of earlier cases would count against the limit of recompilations.
        torch.compiler.reset()
        traced = PublishedSteps(CLD(), check=False)
        for operation, step in ((cases.SSCS, traced.sscs), (cases.EM, traced.em)):
            fast = torch.compile(step, fullgraph=True, dynamic=False)
            found.append(Contestant(COMPILED, operation, partial(fast, *arguments)))
    return found


def loops(shape: tuple[int, ...], steps: int) -> dict[str, Callable[[cases.Network], object]]:
    """The sampling loops by contestant: each takes a velocity score and returns samples."""
    sde = CLD()
    grid = make_plan(sde, cases.SSCS, steps=steps).grid.tolist()
    ours = partial(
        sampling.sample, sde=sde, shape=shape, solver=cases.SSCS, steps=steps, device="cpu"
    )  # fmt: skip
    found: dict[str, Callable[[cases.Network], object]] = {}
    if not kernels.missing_backend("cpu"):
        found[FUSED] = partial(ours, backend="cpu")
    found[REFERENCE] = partial(ours, backend="reference")
    found[PUBLISHED] = partial(published_sample, PublishedSteps(sde), shape=shape, grid=grid)
    return found
