"""What is measured: sizes, operations, and the random inputs that all contestants share."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from cldfast.lab.models import MLPScore, UNetScore
from cldfast.planner.make_plan import make_plan
from cldfast.process.sde import CLD

Network = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Case:
    """One size of state: data shape (n, d) or (n, C, H, W), and that in a quick run."""

    name: str
    shape: tuple[int, ...]
    quick: tuple[int, ...]


IMAGE, TOY, SMALL_IMAGES, LARGE, WIDE, POINTS = (
    "1x3x256x256", "64x2", "256x3x32x32", "4096x3x32x32", "50000x100", "1000000x2",
)  # fmt: skip

# The cost of a call decides at TOY; SMALL_IMAGES fit the last-level cache, LARGE is far beyond it,
# and a quick LARGE is well above the second-level caches.
CASES: dict[str, Case] = {
    case.name: case
    for case in (
        Case(IMAGE, (1, 3, 256, 256), (1, 3, 64, 64)),
        Case(TOY, (64, 2), (64, 2)),
        Case(SMALL_IMAGES, (256, 3, 32, 32), (16, 3, 32, 32)),
        Case(LARGE, (4096, 3, 32, 32), (128, 3, 32, 32)),
        Case(WIDE, (50_000, 100), (2000, 100)),
        Case(POINTS, (1_000_000, 2), (100_000, 2)),
    )
}

SSCS, EM, NOISE_FREE, COPY, RANDN = "sscs", "em", "noise-free", "copy", "randn"
OPERATIONS = (SSCS, EM, NOISE_FREE)

_FLOAT = 4  # bytes
# Bytes per coordinate pair, each input read once and each output written once: a stage reads
# (x, v) and one network output and writes (x', v'), a copy reads and writes (x, v), randn writes.
TRAFFIC = {
    SSCS: 5 * _FLOAT, EM: 5 * _FLOAT, NOISE_FREE: 5 * _FLOAT, COPY: 4 * _FLOAT, RANDN: 2 * _FLOAT
}  # fmt: skip

_PLAN_STEPS = 50


def stage_time() -> tuple[float, float]:
    """Time and step of the stage that is measured: the middle of a plan of 50 steps."""
    grid = make_plan(CLD(), "em", steps=_PLAN_STEPS).grid
    middle = _PLAN_STEPS // 2
    return float(grid[middle]), float(grid[middle] - grid[middle + 1])


def stage_weights(operation: str) -> torch.Tensor:
    """Float64 (1, 2, 5) weights on (x, v, o, z_x, z_v) from the middle of a real plan.

    "sscs": the merged stage, all noise; "em": noise on the velocity alone; "noise-free": the merged
    stage without its noise, which is the pattern of a deterministic exponential solver. The output
    o is an x0 prediction: with it a stage contracts, so that a state which is updated in place over
    and over stays in range, where it would grow under a score that ignores it.
    """
    if operation not in OPERATIONS:
        raise ValueError(f"operation must be one of {', '.join(OPERATIONS)}, got {operation!r}")
    solver = EM if operation == EM else SSCS
    plan = make_plan(CLD(), solver, steps=_PLAN_STEPS, parameterization="x0")
    matrix = plan.stages[_PLAN_STEPS // 2].matrix()
    if operation == NOISE_FREE:
        matrix[:, -2:] = 0.0
    return torch.from_numpy(matrix)[None]


class Inputs:
    """Random float32 tensors of one case: state, network output, and where to write.

    shape: data shape (n, d) or (n, C, H, W). `u` is the working state, which contestants that work
    in place overwrite; `reset` makes it the first state again.
    """

    def __init__(self, shape: tuple[int, ...], seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        n, channels, *rest = shape
        self.shape, self.pairs = shape, math.prod(shape)
        self.first = torch.randn((n, 2 * channels, *rest), generator=generator, device="cpu")
        self.output = torch.randn(shape, generator=generator, device="cpu")
        self.u = self.first.clone()
        self.out = torch.empty_like(self.first)

    def reset(self) -> None:
        """Put the first state back into `u`."""
        self.u.copy_(self.first)


@dataclass(frozen=True, slots=True)
class RunCase:
    """Sampling with a network: steps of SSCS on the quadratic grid.

    network: makes the network for a data shape. quick_shape, quick_steps: in a quick run.
    """

    name: str
    shape: tuple[int, ...]
    steps: int
    quick_shape: tuple[int, ...]
    quick_steps: int
    network: Callable[[tuple[int, ...]], Network]
    about: str


def _constant(shape: tuple[int, ...]) -> Network:
    generator = torch.Generator().manual_seed(1)
    output = torch.randn(shape, generator=generator, device="cpu")
    return lambda u, t: output


def _random(model: MLPScore | UNetScore) -> Network:
    """An untrained model returns zero; small weights in the last layer make its output random."""
    torch.nn.init.normal_(model.last.weight, std=0.01)
    return model.eval()


INTEGRATOR, MLP, UNET = "sample-1024x64", "mlp-1024x100", "unet-64x3x32x32"
RUN_CASES: dict[str, RunCase] = {
    case.name: case
    for case in (
        RunCase(INTEGRATOR, (1024, 64), 50, (1024, 64), 10, _constant, "a free network"),
        RunCase(
            MLP, (1024, 100), 50, (256, 100), 10,
            lambda shape: _random(MLPScore(shape[1], width=512)), "MLP, width 512",
        ),
        RunCase(
            UNET, (64, 3, 32, 32), 20, (4, 3, 32, 32), 2,
            lambda shape: _random(UNetScore(shape[1])), "U-Net, width 32",
        ),
    )
}  # fmt: skip

STEADY_CASE = "run-1000000x2"
