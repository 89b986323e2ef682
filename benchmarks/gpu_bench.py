"""`make gpu-bench`: the operations and whole sampling on a GPU, to results/<device>.csv and .png.

Device events, medians, and as many sets of inputs in turn as the cache cannot hold. A bandwidth
counts each input read once and each output written once, and stands beside that of a copy in the
same run. Eight minutes at most.
"""

from __future__ import annotations

import math
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import gpu_setup
from output import RESULTS, write_csv

DEVICE = "cuda"
PAIRS = (2**24, 2**26)
_WIDTH = 1024
# Bytes of a pair in float32: state read and written, and output read; a copy's.
STAGE_BYTES, COPY_BYTES = 20, 8
# Data read, state and offset written; output and offset read, gradient written.
PERTURBATION_BYTES, RESIDUAL_BYTES = 16, 12
# Several times the largest cache of today's GPUs, 50 MB.
_SETS_BYTES = 400e6
_ROUNDS, _RUN_ROUNDS = 30, 7
STEPS = 100
BATCHES = (1024, 64)  # of the MLP and the U-Net


@dataclass(frozen=True)
class Row:
    """One measurement.

    seconds: median of `rounds`. share: of the copy's bandwidth. speedup: of a stage, its time over
    that of cuda; of a run, the eager reference's time over its own. note: what is asked of it.
    """

    case: str
    contestant: str
    pairs: int
    rounds: int
    seconds: float
    gb_per_s: float | None = None
    share: float | None = None
    speedup: float | None = None
    note: str = ""


def timed(calls: Sequence[Callable[[], object]], rounds: int) -> float:
    """Median seconds by device events; each call has inputs of its own, and they take turns."""
    import torch

    for call in [*calls, *calls]:
        call()
    torch.cuda.synchronize()
    events = []
    for i in range(rounds):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        calls[i % len(calls)]()
        end.record()
        events.append((begin, end))
    torch.cuda.synchronize()
    return statistics.median(begin.elapsed_time(end) for begin, end in events) / 1e3


class Sets:
    """States and outputs of one size, as many as take turns; `calls` binds a function to each."""

    def __init__(self, pairs: int) -> None:
        import torch

        rows = pairs // _WIDTH
        count = max(2, round(_SETS_BYTES / (pairs * 12)))
        self.states = [torch.randn(rows, 2 * _WIDTH) for _ in range(count)]
        self.outputs = [torch.randn(rows, _WIDTH) for _ in range(count)]

    def calls(self, function: Callable[..., object]) -> list[Callable[[], object]]:
        """`function(state, output, number)` for each set."""
        pairs = zip(self.states, self.outputs, strict=True)
        return [partial(function, state, output, i) for i, (state, output) in enumerate(pairs)]


def stage_rows(pairs: int) -> list[Row]:
    """One noisy stage; the compiled kernels work in place, as a sampler runs them."""
    import torch

    from cldfast import NoiseAddress, kernels
    from cldfast.bench.baselines import PublishedSteps
    from cldfast.bench.cases import stage_time, stage_weights
    from cldfast.process.sde import CLD

    sets, weights = Sets(pairs), stage_weights("sscs")
    (xx, xv, xo, xz, xw), (vx, vv, vo, vz, vw) = weights[0].tolist()

    def fused(name, u, o, i):  # type: ignore[no-untyped-def]
        backend = kernels.get_backend(name, DEVICE)
        return backend.stage(u, (o,), (), weights, NoiseAddress(i), out=u)

    def merged(u, o):  # type: ignore[no-untyped-def]
        x, v = u.chunk(2, 1)
        z, w = torch.randn_like(u).chunk(2, 1)
        next_x = xx * x + xv * v + xo * o + xz * z + xw * w
        return torch.cat([next_x, vx * x + vv * v + vo * o + vz * z + vw * w], 1)

    halves = [output.bfloat16() for output in sets.outputs]
    targets = [torch.empty_like(state) for state in sets.states]
    compiled = torch.compile(merged)
    published = PublishedSteps(CLD())
    t, dt = (torch.tensor(value) for value in stage_time())
    contestants: list[tuple[str, Callable[..., object], int, str]] = [
        ("copy", lambda u, o, i: targets[i].copy_(u), 2 * COPY_BYTES, ""),
        ("cuda", partial(fused, "cuda"), STAGE_BYTES, "share at least 0.85"),
        ("triton", partial(fused, "triton"), STAGE_BYTES, "share at least 0.85"),
        (
            "cuda, bfloat16 output", lambda u, o, i: fused("cuda", u, halves[i], i),
            STAGE_BYTES - 2, "",
        ),
        ("merged, eager", lambda u, o, i: merged(u, o), STAGE_BYTES, ""),
        (
            "merged, torch.compile", lambda u, o, i: compiled(u, o), STAGE_BYTES,
            "at least the time of cuda",
        ),
        (
            "SSCS step, eager", lambda u, o, i: published.sscs(u, o, t, dt), STAGE_BYTES,
            "at least 15 times that of cuda",
        ),
    ]  # fmt: skip
    seconds = {name: timed(sets.calls(call), _ROUNDS) for name, call, _, _ in contestants}
    copy_rate = 2 * COPY_BYTES * pairs / seconds["copy"] / 1e9
    rows = []
    for name, _, bytes_of_pair, note in contestants:
        rate = bytes_of_pair * pairs / seconds[name] / 1e9
        ratio = seconds[name] / seconds["cuda"]
        row = Row("stage", name, pairs, _ROUNDS, seconds[name], rate, rate / copy_rate, ratio, note)
        rows.append(row)
    return rows


def loss_rows(pairs: int, copy_rate: float) -> list[Row]:
    """A loss's two passes as training calls them."""
    import torch

    from cldfast import NoiseAddress, kernels

    sets, batch = Sets(pairs), pairs // _WIDTH
    first = torch.randn(batch, 3, 3, dtype=torch.float64)
    second = torch.randn(batch, 1, 2, dtype=torch.float64)

    def perturb(name, u, o, i):  # type: ignore[no-untyped-def]
        return kernels.perturb((o,), first, noise=NoiseAddress(i), backend=name)

    def residual(name, u, o, i):  # type: ignore[no-untyped-def]
        backend = kernels.get_backend(name, DEVICE)
        return backend.residual(o, u[:, :_WIDTH], second, reduce=True)

    def plain(u, o, i):  # type: ignore[no-untyped-def]
        leaf = o.detach().requires_grad_()
        loss = kernels.residual(leaf, u[:, :_WIDTH], second, reduction="sum", backend="reference")
        return torch.autograd.grad(loss, leaf)

    rows = []
    for case, name, call, rounds, bytes_of_pair, note in [
        *[("perturbation", n, partial(perturb, n), _ROUNDS, PERTURBATION_BYTES, "")
          for n in ("cuda", "triton")],
        *[("residual", n, partial(residual, n), _ROUNDS, RESIDUAL_BYTES, "share at least 0.85")
          for n in ("cuda", "triton")],
        ("residual", "reference, eager", plain, _RUN_ROUNDS, RESIDUAL_BYTES, ""),
    ]:  # fmt: skip
        seconds = timed(sets.calls(call), rounds)
        rate = bytes_of_pair * pairs / seconds / 1e9
        rows.append(Row(case, name, pairs, rounds, seconds, rate, rate / copy_rate, note=note))
    return rows


def sampling_rows() -> list[Row]:
    """Whole sampling: the eager reference loop against captured steps."""
    import cldfast
    from cldfast.lab.models import MLPScore, UNetScore

    rows = []
    vectors, images = BATCHES
    for case, net, shape in [
        (f"MLP 3 x 512, d = 100, batch {vectors}", MLPScore(100, width=512, depth=3),
         (vectors, 100)),
        (f"U-Net, 3 x 32 x 32, batch {images}", UNetScore(3, width=64), (images, 3, 32, 32)),
    ]:  # fmt: skip
        model = net.to(DEVICE).eval()
        draw = partial(
            cldfast.sample, model, cldfast.CLD(), shape, steps=STEPS, parameterization="x0"
        )
        reference = 0.0
        for name, arguments in [
            ("reference, eager", {"backend": "reference"}),
            ("cuda", {"backend": "cuda"}),
            ("cuda, graph", {"backend": "cuda", "graph": True}),
            ("triton, graph", {"backend": "triton", "graph": True}),
        ]:
            calls = [partial(draw, seed=seed, **arguments) for seed in range(2)]
            seconds = timed(calls, _RUN_ROUNDS)
            reference = reference or seconds
            note = "at least 5 times" if "graph" in name and "MLP" in case else ""
            pairs = math.prod(shape)
            rows.append(
                Row(case, name, pairs, _RUN_ROUNDS, seconds, speedup=reference / seconds, note=note)
            )
    return rows


def plot(rows: Sequence[Row], path: Path, device: str) -> None:
    """Shares of the copy's bandwidth, and speed-ups of whole runs."""
    from cldfast.lab import plots

    left = [row for row in rows if row.share is not None and row.pairs == PAIRS[-1]]
    right = [row for row in rows if row.share is None]
    try:
        figure = plots.new_figure(13, 0.45 * max(len(left), len(right)) + 1.5)
    except ImportError as error:
        print(f"no plot: {error}")
        return
    axes = figure.subplots(1, 2)
    axes[0].barh([f"{r.case}: {r.contestant}" for r in left], [r.share for r in left])
    axes[0].axvline(0.85, color="black", linestyle=":")
    axes[0].set_xlabel(f"share of the copy's bandwidth, {PAIRS[-1] / 1e6:.0f} M pairs, float32")
    labels = [f"{r.case.split(',')[0]}: {r.contestant}" for r in right]
    axes[1].barh(labels, [r.speedup for r in right])
    axes[1].set_xlabel(f"times faster than the eager reference loop, {STEPS} steps")
    for axis in axes:
        axis.invert_yaxis()
    figure.suptitle(device)
    plots.save(figure, path)


def measure() -> int:
    """All measurements, in this process."""
    import torch

    import cldfast

    torch.set_default_device(DEVICE)
    device = torch.cuda.get_device_name()
    start = time.perf_counter()
    rows: list[Row] = []
    for pairs in PAIRS:
        found = stage_rows(pairs)
        rows += found
        rows += loss_rows(pairs, found[0].gb_per_s or 1.0)
        torch.cuda.empty_cache()
    rows += sampling_rows()
    name = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
    about = {
        "device": device, "torch": torch.__version__, "cuda": torch.version.cuda,
        "triton": cldfast.info()["versions"]["triton"], "cldfast": cldfast.__version__,
    }  # fmt: skip
    write_csv(RESULTS / f"{name}.csv", [asdict(row) | about for row in rows])
    plot(rows, RESULTS / f"{name}.png", device)
    for row in rows:
        share = "" if row.share is None else f"{row.gb_per_s:7.0f} GB/s {row.share:5.2f} of a copy"
        ratio = "" if row.speedup is None else f"{row.speedup:7.2f} x"
        times = f"{row.seconds * 1e3:9.3f} ms"
        print(f"{row.case:34} {row.contestant:24} {times} {share} {ratio} {row.note}")
    print(
        f"{device}: {len(rows)} rows in {time.perf_counter() - start:.0f} s, {RESULTS / name}.csv"
    )
    return 0


def main() -> int:
    """0 where everything was measured."""
    if sys.argv[1:] == ["--measure"]:
        return measure()
    gpu_setup.require_gpu("make gpu-bench")
    environment = gpu_setup.build()
    here = str(Path(__file__).resolve())
    return subprocess.run([sys.executable, here, "--measure"], env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())
