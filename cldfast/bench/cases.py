"""What is measured: sizes, operations, and the random inputs that all contestants share."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from cldfast.planner.make_plan import make_plan
from cldfast.process.sde import CLD


@dataclass(frozen=True, slots=True)
class Case:
    """One size of state.

    name: as on the command line. shape: data shape (n, d) or (n, C, H, W). quick: shape in a quick
    run. about: what the size stands for.
    """

    name: str
    shape: tuple[int, ...]
    quick: tuple[int, ...]
    about: str


IMAGE, TOY, SMALL_IMAGES, LARGE, WIDE, POINTS = (
    "1x3x256x256", "64x2", "256x3x32x32", "4096x3x32x32", "50000x100", "1000000x2",
)  # fmt: skip

# The quick sizes keep the kind of each case; LARGE stays well above the second-level caches.
CASES: dict[str, Case] = {
    case.name: case
    for case in (
        Case(IMAGE, (1, 3, 256, 256), (1, 3, 64, 64), "one large image"),
        Case(TOY, (64, 2), (64, 2), "a toy: the cost of a call"),
        Case(SMALL_IMAGES, (256, 3, 32, 32), (16, 3, 32, 32), "a batch of small images"),
        Case(LARGE, (4096, 3, 32, 32), (128, 3, 32, 32), "far beyond every cache"),
        Case(WIDE, (50_000, 100), (2000, 100), "many vectors"),
        Case(POINTS, (1_000_000, 2), (100_000, 2), "very many points in the plane"),
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
        self.first = torch.randn((n, 2 * channels, *rest), generator=generator)
        self.output = torch.randn(shape, generator=generator)
        self.u = self.first.clone()
        self.out = torch.empty_like(self.first)

    def reset(self) -> None:
        """Put the first state back into `u`."""
        self.u.copy_(self.first)
