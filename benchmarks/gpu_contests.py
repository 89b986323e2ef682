"""What `make gpu-bench` measures: stages, the passes of a loss, whole sampling, steps of training.

A contest is made when its turn comes and gives calls that take turns, each on inputs of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

DEVICE = "cuda"
PAIRS = (2**24, 2**26)
_WIDTH = 1024
# Bytes of a pair in float32: state read and written, and output read; a copy's.
STAGE_BYTES, COPY_BYTES = 20, 8
# Data read, state and offset written; output and offset read, gradient written.
PERTURBATION_BYTES, RESIDUAL_BYTES = 16, 12
# Several times the largest cache of today's GPUs, 50 MB.
SETS_BYTES = 400e6
ROUNDS, RUN_ROUNDS = 30, 7
STEPS = 100
BATCHES, WIDTHS, SIDE = (1024, 64), (512, 64), 32  # of the MLP and the U-Net; of its images
Call = Callable[[], object]


@dataclass(frozen=True)
class Contest:
    """One row to be: `make` gives the calls, `bytes_of_pair` is 0 where no bandwidth is meant.

    rival: the contestant of the same case whose time `speedup` is made with; of a stage the row's
    time over the rival's, of a whole run the rival's over the row's.
    """

    case: str
    contestant: str
    pairs: int
    rounds: int
    make: Callable[[], Sequence[Call]]
    bytes_of_pair: int = 0
    rival: str = ""
    note: str = ""


class Sets:
    """States and outputs of one size, as many as take turns; `calls` binds a function to each."""

    def __init__(self, pairs: int) -> None:
        import torch

        rows = pairs // _WIDTH
        count = max(2, round(SETS_BYTES / (pairs * 12)))
        self.states = [torch.randn(rows, 2 * _WIDTH) for _ in range(count)]
        self.outputs = [torch.randn(rows, _WIDTH) for _ in range(count)]

    def calls(self, function: Callable[..., object]) -> list[Call]:
        """`function(state, output, number)` for each set."""
        pairs = zip(self.states, self.outputs, strict=True)
        return [partial(function, state, output, i) for i, (state, output) in enumerate(pairs)]


def stage_contests(pairs: int) -> Iterator[Contest]:
    """One stage; the compiled kernels work in place, as a sampler runs them."""
    import torch

    from cldfast import NoiseAddress, kernels
    from cldfast.bench.baselines import PublishedSteps
    from cldfast.bench.cases import stage_time, stage_weights
    from cldfast.process.sde import CLD

    sets, weights = Sets(pairs), stage_weights("sscs")
    (xx, xv, xo, xz, xw), (vx, vv, vo, vz, vw) = weights[0].tolist()

    def copies() -> list[Call]:
        targets = [torch.empty_like(state) for state in sets.states]
        return sets.calls(lambda u, o, i: targets[i].copy_(u))

    def fused(name: str, dtype: torch.dtype = torch.float32, kind: str = "sscs") -> list[Call]:
        backend, matrix = kernels.get_backend(name, DEVICE), stage_weights(kind)
        outputs = [output.to(dtype) for output in sets.outputs]
        return sets.calls(
            lambda u, o, i: backend.stage(u, (outputs[i],), (), matrix, NoiseAddress(i), out=u)
        )

    def merged(u, o, i):  # type: ignore[no-untyped-def]
        x, v = u.chunk(2, 1)
        z, w = torch.randn_like(u).chunk(2, 1)
        next_x = xx * x + xv * v + xo * o + xz * z + xw * w
        return torch.cat([next_x, vx * x + vv * v + vo * o + vz * z + vw * w], 1)

    def compiled() -> list[Call]:
        function = torch.compile(partial(merged, i=0))
        return sets.calls(lambda u, o, i: function(u, o))

    def published() -> list[Call]:
        steps = PublishedSteps(CLD())
        t, dt = (torch.tensor(value, device=DEVICE) for value in stage_time())
        return sets.calls(lambda u, o, i: steps.sscs(u, o, t, dt))

    bf16, f16 = torch.bfloat16, torch.float16
    goal, half = "share at least 0.85", STAGE_BYTES - 2
    stage = partial(Contest, "stage", pairs=pairs, rounds=ROUNDS, rival="cuda")
    yield stage("copy", make=copies, bytes_of_pair=2 * COPY_BYTES, rival="")
    for name in ("cuda", "triton"):
        yield stage(name, make=partial(fused, name), bytes_of_pair=STAGE_BYTES, note=goal)
        for said, dtype in (("bfloat16", bf16), ("float16", f16)):
            make = partial(fused, name, dtype)
            yield stage(f"{name}, {said} output", make=make, bytes_of_pair=half, note=goal)
        make = partial(fused, name, kind="noise-free")
        yield stage(f"{name}, noise-free", make=make, bytes_of_pair=STAGE_BYTES, note=goal)
    make = partial(fused, "cuda-fast-normals")
    yield stage("cuda, fast normals", make=make, bytes_of_pair=STAGE_BYTES)
    for name, make, note in [
        ("merged, eager", lambda: sets.calls(merged), ""),
        ("merged, torch.compile", compiled, "at least the time of cuda"),
        ("SSCS step, eager", published, "at least 15 times that of cuda"),
    ]:
        yield stage(name, make=make, bytes_of_pair=STAGE_BYTES, note=note)


def loss_contests(pairs: int) -> Iterator[Contest]:
    """A loss's two passes as training calls them."""
    import torch

    from cldfast import NoiseAddress, kernels

    sets, batch = Sets(pairs), pairs // _WIDTH
    first = torch.randn(batch, 3, 3, dtype=torch.float64)
    second = torch.randn(batch, 1, 2, dtype=torch.float64)

    def perturb(name: str) -> list[Call]:
        return sets.calls(
            lambda u, o, i: kernels.perturb((o,), first, noise=NoiseAddress(i), backend=name)
        )

    def residual(name: str) -> list[Call]:
        backend = kernels.get_backend(name, DEVICE)
        return sets.calls(lambda u, o, i: backend.residual(o, u[:, :_WIDTH], second, reduce=True))

    def plain(u, o, i):  # type: ignore[no-untyped-def]
        leaf, more = o.detach().requires_grad_(), {"reduction": "sum", "backend": "reference"}
        return torch.autograd.grad(kernels.residual(leaf, u[:, :_WIDTH], second, **more), leaf)

    for name in ("cuda", "triton"):
        yield Contest(
            "perturbation", name, pairs, ROUNDS, partial(perturb, name), PERTURBATION_BYTES,
            note="share at least 0.85",
        )  # fmt: skip
        yield Contest(
            "residual", name, pairs, ROUNDS, partial(residual, name), RESIDUAL_BYTES,
            note="share at least 0.9",
        )  # fmt: skip
    yield Contest(
        "residual", "reference, eager", pairs, RUN_ROUNDS, lambda: sets.calls(plain), RESIDUAL_BYTES
    )


def networks() -> Iterator[tuple[str, Any, tuple[int, ...]]]:
    """For each network what it is called, itself, and the shape of a batch."""
    import torch

    from cldfast.lab.models import MLPScore, UNetScore

    (vectors, images), (wide, narrow) = BATCHES, WIDTHS
    mlp, unet = MLPScore(100, width=wide, depth=3), UNetScore(3, width=narrow)
    for net in (mlp, unet):  # an untrained network returns zero
        torch.nn.init.normal_(net.last.weight, std=0.01)
    yield f"MLP 3 x {wide}, d = 100, batch {vectors}", mlp.to(DEVICE).eval(), (vectors, 100)
    shape = (images, 3, SIDE, SIDE)
    yield f"U-Net, 3 x {SIDE} x {SIDE}, batch {images}", unet.to(DEVICE).eval(), shape


def sampling_contests() -> Iterator[Contest]:
    """Whole sampling: published loop, reference, ours, captured, and with a compiled network."""
    import torch

    import cldfast
    from cldfast.bench.baselines import PublishedSteps, published_sample

    sde = cldfast.CLD()
    grid = cldfast.make_plan(sde, "sscs", STEPS).grid.tolist()
    for case, net, shape in networks():

        def published(net=net, shape=shape) -> list[Call]:  # type: ignore[no-untyped-def]
            steps = PublishedSteps(sde)
            return [lambda: published_sample(steps, net, shape, grid, device=DEVICE)]

        def ours(net=net, shape=shape, compiled=False, **options: Any) -> list[Call]:  # type: ignore[no-untyped-def]
            asked = torch.compile(net) if compiled else net
            return [
                partial(
                    cldfast.sample, asked, sde, shape, "sscs", steps=STEPS, seed=seed,
                    device=DEVICE, nonfinite="return", **options,
                )
                for seed in range(2)
            ]  # fmt: skip

        def unhoisted(net=net, **options: Any) -> list[Call]:  # type: ignore[no-untyped-def]
            return ours(lambda u, t: net(u, t), **options)

        goal = "at least 5 times" if case.startswith("MLP") else ""
        for name, make, note in [
            ("SSCS loop, eager", published, ""),
            ("reference, eager", partial(ours, backend="reference"), ""),
            ("cuda, time in each call", partial(unhoisted, backend="cuda"), ""),
            ("cuda, time hoisted", partial(ours, backend="cuda"), ""),
            ("cuda, graph", partial(ours, backend="cuda", graph=True), goal),
            ("triton, graph", partial(ours, backend="triton", graph=True), goal),
            (
                "cuda, graph, torch.compile",
                partial(ours, backend="cuda", graph=True, compiled=True),
                "recommended",
            ),
        ]:
            yield Contest(
                case, name, math.prod(shape), RUN_ROUNDS, make, rival="SSCS loop, eager", note=note
            )


def training_contests() -> Iterator[Contest]:
    """A step of training on the hybrid score matching loss: loss, gradients, update."""
    import torch

    import cldfast

    sde = cldfast.CLD()
    for case, net, shape in networks():
        data = torch.randn(shape, device=DEVICE)
        adam = torch.optim.Adam(net.parameters(), lr=1e-6)

        def steps(  # type: ignore[no-untyped-def]
            backend: str, compiled=False, net=net, data=data, adam=adam
        ) -> list[Call]:
            asked = torch.compile(net) if compiled else net

            def step() -> None:
                adam.zero_grad()
                cldfast.hsm_loss(asked, sde, data, seed=1, backend=backend).backward()
                adam.step()

            return [step]

        for name, make in [
            ("reference, eager", partial(steps, "reference")),
            ("cuda", partial(steps, "cuda")),
            ("triton", partial(steps, "triton")),
            ("cuda, torch.compile", partial(steps, "cuda", compiled=True)),
        ]:
            yield Contest(
                f"training, {case}", name, math.prod(shape), RUN_ROUNDS, make,
                rival="reference, eager",
            )  # fmt: skip


GROUPS: dict[str, Callable[[], Iterator[Contest]]] = {
    "stages": lambda: (contest for pairs in PAIRS for contest in stage_contests(pairs)),
    "losses": lambda: (contest for pairs in PAIRS for contest in loss_contests(pairs)),
    "sampling": sampling_contests,
    "training": training_contests,
}
