"""`make gpu-check` and `make gpu-bench` without a GPU: what they run, with the CPU in its place, and
what they say."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cuda_on_host import ROOT, needs_cuda_toolkit


@pytest.mark.skipif(torch.cuda.is_available(), reason="GPU: a device is there")
@pytest.mark.parametrize("name", ["check", "bench"])
def test_they_fail_politely(name: str) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / f"gpu_{name}.py")],
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0 and not done.stdout
    assert done.stderr.startswith(f"make gpu-{name} needs an NVIDIA GPU")
    assert done.stderr.endswith("sees none here.\n") and done.stderr.count("\n") == 1


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the scripts' folder importable."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


def emulated(*command: str) -> str:
    """The output of a command with `emulated_gpu` at hand, which must succeed.

    The planner's only dependency is the stand-in that machines without the package get.
    """
    import gpu_setup

    needs_cuda_toolkit()
    for package in ("triton", "pybind11", "matplotlib"):
        pytest.importorskip(package, reason=f"NO_{package.upper()}: {package} is not installed")
    support = ROOT / "tests" / "support"
    paths = [str(gpu_setup.stand_in()), str(support), str(ROOT)]
    paths += [path for path in [os.environ.get("PYTHONPATH")] if path]
    done = subprocess.run(
        [sys.executable, *command],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(paths)},
        cwd=support, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


def test_the_operations_tests_pass_on_the_emulated_backend(scripts: None) -> None:
    """Those that `make gpu-check` runs, on `cuda`; Triton's interpreter has tests of its own."""
    from gpu_check import TESTS

    options = ["-p", "emulated_gpu", "-q", "-o", "addopts=", "-k", "cuda"]
    tests = [str(ROOT / "tests" / name) for name in TESTS]
    assert " passed" in emulated("-m", "pytest", *options, *tests)


def test_the_check_is_rehearsed(scripts: None) -> None:
    told = emulated("emulated_gpu.py", "check")
    for check in ("words", "stages", "beyond_32_bits", "residuals", "sums", "tables", "loops"):
        assert f"  {check}: passed" in told


def test_the_benchmark_is_rehearsed(scripts: None, tmp_path: Path) -> None:
    told = emulated("emulated_gpu.py", "bench", str(tmp_path))
    rows = (tmp_path / "rehearsal-cpu.csv").read_text().splitlines()
    assert f"{len(rows) - 1} rows" in told and len(rows) > 30
    assert (tmp_path / "rehearsal-cpu.png").stat().st_size > 0
