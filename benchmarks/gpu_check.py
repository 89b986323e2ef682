"""`make gpu-check`: build, then every operation on `cuda` and `triton` against the reference.

What needs a GPU and is no ordinary test (words of long runs, more than 2^31 pairs, captured loops,
CPU against GPU), the operations' test files, and some of the first under compute-sanitizer where
there is one. Each check of each backend is a process of its own with a limit of its own: a failure
ends nothing else. Logs and outcomes go to build/gpu_check as they come.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeVar

import gpu_jobs
import gpu_setup

TESTS = (
    "kernels/test_stage.py",
    "kernels/test_residual.py",
    "kernels/test_time_tables.py",
    "planner/test_guidance.py",
    "sampling/test_run.py",
    "training/test_losses.py",
)
BACKENDS = ("cuda", "triton")
DEVICE = "cuda"
# Rows and widths: long ones, few and very long ones, many; and how often their sums are repeated.
LONG, REPEATS = [(65, 70_000), (3, 2**20), (5000, 1028)], 20
# Under a sanitizer, which slows kernels down by a lot.
SHORT, FEW = [(65, 5000), (70, 1028)], 2
STEPS, MANY = 50, 2**22  # of a loop; normals whose distance is measured
# Seconds: of a check, of a test file, of a sanitizer, and of all of them together, which leaves
# four and a half minutes of eight to the build and to `make gpu-bench`.
_CHECK, _TEST, _SANITIZER, _ALL = 100, 100, 80, 210
# Where Triton compiles a kernel for each case, several processes share the cases.
SHARES = {("triton", "stages"): 6, ("triton", "loops"): 5}
# The sanitizers' tools, and the checks that run under them.
TOOLS, SANITIZED = ("memcheck", "racecheck"), ("words", "stages", "residuals", "sums", "tables")
# This process does the cases whose number is SHARE[0] modulo SHARE[1].
SHARE = (0, 1)
_Case = TypeVar("_Case")


def shared(cases: Iterable[_Case]) -> Iterator[_Case]:
    """The cases that this process does."""
    return (case for number, case in enumerate(cases) if number % SHARE[1] == SHARE[0])


def words() -> None:
    """Bit for bit those of the CPU, past 2^32 calls and across the sign of 64-bit numbers."""
    import torch

    from cldfast import NoiseAddress, kernels

    cpu = kernels.get_backend("cpu", "cpu")
    for name in BACKENDS:
        backend = kernels.get_backend(name, DEVICE)
        for seed, first, count, stage, stream in [
            (0, 0, 1_000_003, 0, 0), (2**64 - 1, 2**33 - 5, 100_001, 2**32 - 1, 7),
            (0x9E3779B97F4A7C15, 2**63 - 50_000, 100_000, 3, 2**32 - 1),
        ]:  # fmt: skip
            address = NoiseAddress(seed, first, stage, stream)
            expected = cpu.words(address, count, torch.device("cpu"))
            made = backend.words(address, count, torch.device(DEVICE))
            for word, reference in zip(made, expected, strict=True):
                assert torch.equal(word.cpu(), reference), (name, address)


def stages() -> None:
    """Dtypes and layouts, tails and what networks see against the reference on the CPU."""
    import torch

    f32, f64, bf16, f16 = torch.float32, torch.float64, torch.bfloat16, torch.float16
    # Triton compiles each combination by itself, so it gets fewer.
    shapes = [(5, 3), (33, 100), (3, 3, 32, 32), (1, 2), (7, 8), (9, 65), (2, 2052), (4, 5, 7, 9)]
    dtypes = [(f32, f32), (f32, bf16), (f64, f64), (f32, f16), (f32, f64), (f64, bf16)]
    few = {"cuda": len(shapes), "triton": 3}
    cases = [
        (shape, dtype, other, own, layout, [name for name in BACKENDS if number < few[name]])
        for number, shape in enumerate(shapes)
        for dtype, other in dtypes
        for own in (False, True)
        for layout in [torch.contiguous_format, torch.channels_last][: len(shape) // 2]
    ]
    for case in shared(cases):
        compare(*case)


def compare(shape, dtype, other, own, layout, names) -> None:  # type: ignore[no-untyped-def]
    """One stage on the named backends; `own` gives each row its matrix."""
    import torch

    from cldfast import NoiseAddress, kernels
    from cldfast.kernels.backends.reference import ReferenceBackend

    n, c, *rest = shape
    u = torch.randn(n, 2 * c, *rest, dtype=dtype)
    o = torch.randn(n, 2 * c, *rest).to(other)
    h = torch.randn(n, c, *rest, dtype=dtype)
    w = torch.randn(n if own else 1, 3, 7, dtype=torch.float64)
    w = torch.cat([w, w[:, :2]], 1)  # the network sees the state itself
    noise = NoiseAddress(5, 3, 2, 1)
    wanted = ReferenceBackend().stage(u, [o], [h], w, noise, seen_planes=2)
    gpu = [tensor.to(DEVICE, memory_format=layout) for tensor in (u, o, h)]
    weights = w.to(DEVICE) if own and n > 1 else w
    # Seven terms of size up to about 10, each rounded.
    tolerance = 2e-5 if dtype == torch.float32 else 5e-14
    for name in names:
        made = kernels.stage(
            gpu[0], gpu[1:2], gpu[2:], weights, noise=noise, seen_planes=2, seen_dtype=other,
            backend=name,
        )  # fmt: skip
        what = (name, shape, dtype, other, own, layout)
        for got, expected in zip(made[:2], wanted[:2], strict=True):
            error = float((got.cpu() - expected).abs().max())
            assert error <= tolerance, (what, error)
        assert torch.equal(made.seen, made.state.to(other)), what


def beyond_32_bits() -> None:
    """More than 2^31 pairs in one call: the last rows are those of a call of their own."""
    import torch

    from cldfast import NoiseAddress, kernels

    rows, width = 2**19 + 8, 4096
    free, _ = torch.cuda.mem_get_info()
    if free < 1.2 * rows * width * (2 * 4 + 2):
        print(f"  left out: {free / 1e9:.0f} GB are free, 26 are needed")
        return
    w = torch.tensor([[[0.9, 0.1, 0.2, 0.3, 0.0], [-0.1, 0.8, 0.1, 0.1, 0.4]]], dtype=torch.float64)
    for name in BACKENDS:
        u = torch.ones(rows, 2 * width, device=DEVICE)
        o = torch.ones(rows, width, device=DEVICE, dtype=torch.bfloat16)
        last = slice(rows - 16, rows)
        small, _, _ = kernels.stage(
            u[last].clone(), (o[last],), weights=w, noise=NoiseAddress(3, rows - 16), backend=name
        )
        kernels.stage(u, (o,), weights=w, noise=NoiseAddress(3), out=u, backend=name)
        assert torch.equal(u[last], small), name
        del u, o


def residuals() -> None:
    """The same bits every time, and the reference's numbers."""
    import torch

    from cldfast import kernels

    for shape in [(5, 3), (300, 100), (65, 1031), (16, 3, 32, 32)]:
        for dtype in (torch.float32, torch.bfloat16):
            n, c, *rest = shape
            u = torch.randn(n, 2 * c, *rest, device=DEVICE)
            w = torch.randn(n, 1, 3, dtype=torch.float64, device=DEVICE)
            seen = {}
            for name in ("reference", *BACKENDS, *BACKENDS):
                torch.manual_seed(2)
                o = torch.randn(shape, device=DEVICE).to(dtype).requires_grad_()
                loss = kernels.residual(o, u, w, reduction="mean", backend=name)
                loss.backward()
                if name in seen:
                    assert torch.equal(loss, seen[name][0]) and torch.equal(o.grad, seen[name][1])
                seen[name] = (loss.detach(), o.grad)
            for name in BACKENDS:
                assert torch.allclose(seen[name][0], seen["reference"][0], rtol=1e-5), (name, shape)
                wanted = seen["reference"][1].float()
                error = float((seen[name][1].float() - wanted).norm() / wanted.norm())
                assert error <= max(2 * torch.finfo(dtype).eps, 2e-6), (name, shape, dtype, error)


def sums() -> None:
    """Many pieces or rows, again and again: bits that blocks at the same time cannot change."""
    import torch

    from cldfast import kernels

    for rows, width in LONG:
        o, e = (torch.randn(rows, width, device=DEVICE) for _ in range(2))
        w = torch.randn(rows, 1, 2, dtype=torch.float64, device=DEVICE)
        residual = w[:, 0, :1] * o.double() + w[:, 0, 1:] * e.double()
        of_rows, exact = (residual**2).sum(1), 2.0 * w[:, 0, :1] * residual
        for name in BACKENDS:
            for reduce in (False, True):
                what = (name, rows, width, reduce)
                run = partial(kernels.get_backend(name, DEVICE).residual, o, e, w, reduce=reduce)
                loss, gradient = run()
                for _ in range(REPEATS):
                    again = run()
                    assert torch.equal(again[0], loss) and torch.equal(again[1], gradient), what
                wanted = of_rows.sum() if reduce else of_rows
                assert torch.allclose(loss.double(), wanted, rtol=1e-5), what
                # Numbers up to about 500, rounded some times.
                assert float((gradient.double() - exact).abs().max()) < 1e-3, what


def tables() -> None:
    """A loss's coefficients and the words of its times, from kernels and from the CPU's core."""
    import torch

    import cldfast
    from cldfast import kernels
    from cldfast.training.row_weights import loss_tables

    sde = cldfast.CLD(beta=cldfast.LinearBeta(1.0, 7.0), x_noise=0.3)
    t = 1e-3 + (sde.T - 1e-3) * torch.rand(10_001, dtype=torch.float64)
    for table in loss_tables(sde, "hsm", "reweighted", "score"):
        assert table is not None
        wanted = kernels.matrices(table.at(t), "cpu")
        for name in BACKENDS:
            made = kernels.matrices(table.at(t.to(DEVICE), (1e-3, sde.T)), name).cpu()
            # Horner's rule of 16 terms, with fused products or without.
            assert torch.allclose(made, wanted, rtol=1e-13, atol=0.0), name
    for shape in [(300, 20), (300, 1024), (1, 300), (16, 3, 32, 32)]:
        for parameterization, planes in (("score", 1), ("full_score", 2)):
            x0, count = torch.randn(shape), planes * shape[1]
            wanted = _loss(sde, x0, count, parameterization, "auto")
            for name in BACKENDS:
                made = _loss(sde, x0.to(DEVICE), count, parameterization, name).cpu()
                assert torch.allclose(made, wanted, rtol=1e-4), (name, shape, parameterization)


def _loss(sde, x0, count, parameterization, backend):  # type: ignore[no-untyped-def]
    """Losses of rows for a network that is the state."""
    import cldfast

    return cldfast.hsm_loss(
        lambda u, t: u[:, :count] * t.reshape(-1, *[1] * (u.dim() - 1)), sde, x0,
        parameterization=parameterization, seed=5, reduction="none", backend=backend,
    )  # fmt: skip


def fast_normals() -> None:
    """How far the normals by the hardware's functions are from the exact ones, and the bound."""
    import torch

    from cldfast import NoiseAddress, kernels
    from cldfast.kernels.backends.reference import ReferenceBackend

    backend = kernels.get_backend("cuda-fast-normals", DEVICE)
    weights = torch.tensor([[[0.0, 0, 1, 0], [0, 0, 0, 1]]], dtype=torch.float64)
    for shape in ((16, 2 * (MANY // 32)), (7, 2 * 35)):  # quads, and one by one
        u, address = torch.zeros(shape), NoiseAddress(11, 4)
        exact = ReferenceBackend().stage(u.double(), [], [], weights, address).state
        made = backend.stage(u.to(DEVICE), [], [], weights, address).state.cpu()
        error = (made - exact).abs()
        radius = torch.hypot(*exact.chunk(2, 1)).repeat(1, 2)
        print(
            f"  fast normals: at most {float(error.max()):.2g} from the exact ones, "
            f"{float((error / radius).quantile(0.5)):.2g} of the radius in the median"
        )
        # csrc/cuda/fast_normals.h, and our own roundings on top.
        assert float((error / (radius * 2.0**-20 + 2.0**-22 / radius)).max()) <= 1.0


def loops() -> None:
    """CPU against GPU over many steps, and captured loops against those step by step."""
    import copy

    import torch

    import cldfast
    from cldfast.lab.models import MLPScore

    torch.manual_seed(0)
    on_cpu = MLPScore(12, width=64)
    for parameter in on_cpu.parameters():  # its last layer begins at zero
        torch.nn.init.normal_(parameter, std=0.1)
    on_gpu = copy.deepcopy(on_cpu).to(DEVICE)
    for solver in shared(("em", "sscs", "multistep", "heun", "unipc")):
        arguments = {"solver": solver, "steps": STEPS, "seed": 3, "parameterization": "x0"}
        expected = cldfast.sample(on_cpu, cldfast.CLD(), (200, 12), **arguments)
        for name in BACKENDS:
            made = cldfast.sample(on_gpu, cldfast.CLD(), (200, 12), backend=name, **arguments)
            error = float((made.cpu() - expected).norm() / expected.norm())
            assert error <= 1e-4, (solver, name, error)
            with warnings.catch_warnings():
                warnings.simplefilter("error", cldfast.GraphWarning)
                again = cldfast.sample(
                    on_gpu, cldfast.CLD(), (200, 12), backend=name, graph=True, **arguments
                )
            error = float((again - made).norm() / made.norm())
            # cuBLAS may take another algorithm in a capture.
            assert error <= 1e-5, (solver, name, error)


CHECKS: tuple[Callable[[], None], ...] = (
    words, stages, beyond_32_bits, residuals, sums, tables, fast_normals, loops,
)  # fmt: skip


def run_checks(which: Iterable[Callable[[], None]] = CHECKS) -> None:
    """The checks in this process."""
    import torch

    import cldfast

    report = cldfast.info()
    for name in BACKENDS:
        assert report["backends"][name] == "available", report["backends"][name]
    assert "cuda" not in BACKENDS or report["auto"]["cuda"] == "cuda"
    print(f"{report['device']}, {report['versions']}, {report['cuda']}")
    for check in which:
        start = time.perf_counter()
        check()
        torch.cuda.synchronize()
        print(f"  {check.__name__}: passed in {time.perf_counter() - start:.1f} s", flush=True)


def jobs() -> list[gpu_jobs.Job]:
    """All checks of each backend, the operations' tests, and what a sanitizer looks at."""
    here = [sys.executable, str(Path(__file__).resolve()), "--check"]
    made = []
    for backend in BACKENDS:
        own = [check.__name__ for check in CHECKS if backend == "cuda" or check != fast_normals]
        for check in own:
            count = SHARES.get((backend, check), 1)
            for number in range(count):
                name = check if count == 1 else f"{check} {number + 1}/{count}"
                command = [*here, backend, check, str(number), str(count)]
                made.append(gpu_jobs.Job("check", backend, name, command, _CHECK))
        # Without the project's options, which ask for a plugin.
        pytest = [sys.executable, "-m", "pytest", "-q", "-o", "addopts=", "-p", "no:cacheprovider"]
        for test in TESTS:
            command = [*pytest, "-k", backend, str(gpu_setup.ROOT / "tests" / test)]
            made.append(gpu_jobs.Job("test", backend, test, command, _TEST))
    tool = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not os.path.exists(tool):
        print("compute-sanitizer is not installed, so it is not run")
        return made
    for kind in TOOLS:
        options = [tool, "--tool", kind, "--error-exitcode", str(gpu_jobs.FOUND)]
        for check in SANITIZED:
            command = [*options, *here, "cuda", check, "0", "1", "--short"]
            made.append(gpu_jobs.Job(kind, "cuda", check, command, _SANITIZER, sanitized=True))
    return made


def main() -> int:
    """0 where everything passed."""
    if sys.argv[1:2] == ["--check"]:
        backend, check, number, count, *short = sys.argv[2:]
        globals().update(BACKENDS=(backend,), SHARE=(int(number), int(count)))
        if short:
            globals().update(LONG=SHORT, REPEATS=FEW)
        run_checks([known for known in CHECKS if known.__name__ == check])
        return 0
    gpu_setup.require_gpu("make gpu-check")
    start = time.perf_counter()
    environment = gpu_setup.build()
    print(f"built in {time.perf_counter() - start:.0f} s", flush=True)
    workers = max(2, (os.cpu_count() or 2) // 2)
    good = gpu_jobs.run_jobs(jobs(), gpu_setup.BUILD / "gpu_check", workers, _ALL, environment)
    print("gpu-check: " + ("passed" if good else "FAILED"))
    return int(not good)


if __name__ == "__main__":
    sys.exit(main())
