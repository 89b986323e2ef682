"""`make gpu-check` and `make gpu-bench` without a GPU: what they run, with the CPU in its place, and
what they say."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import gpu_bench
import gpu_check
import gpu_jobs
import gpu_setup
import pytest
import torch
from cuda_on_host import ROOT, needs_cuda_toolkit
from gpu_jobs import Job


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


def test_the_library_and_the_scripts_on_a_device_that_is_emulated() -> None:
    """Operations' tests that `make gpu-check` runs, and what on_fake_device.py adds to them.

    The planner's only dependency is the stand-in that machines without the package get.
    """
    needs_cuda_toolkit()
    for package in ("triton", "pybind11", "matplotlib"):
        pytest.importorskip(package, reason=f"NO_{package.upper()}: {package} is not installed")
    support = ROOT / "tests" / "support"
    paths = [str(gpu_setup.stand_in()), str(support), str(ROOT / "benchmarks"), str(ROOT)]
    paths += [path for path in [os.environ.get("PYTHONPATH")] if path]
    # Graph compilers cannot see the device, autocast goes by another name of it; laws and gradients
    # of many samples take long there, and tell nothing that a stage's test does not.
    left_out = "opcheck or compile or autocast or joint_law or batches or test_gradients"
    options = ["-p", "emulated_gpu", "-q", "-o", "addopts=", "-p", "no:cacheprovider"]
    tests = [str(ROOT / "tests" / name) for name in gpu_check.TESTS]
    done = subprocess.run(
        [
            sys.executable, "-m", "pytest", *options, "-k", f"fake_device or cuda and not ({left_out})",
            str(support / "on_fake_device.py"), *tests,
        ],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(paths)},
        cwd=support, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed and int(passed[1]) > 130


def test_a_job_that_fails_or_does_not_end_keeps_nothing_from_running(tmp_path: Path) -> None:
    def job(kind: str, name: str, script: str, limit: float = 60.0, **more: bool) -> Job:
        return Job(kind, "cuda", name, [sys.executable, "-c", script], limit, **more)

    jobs = [
        job("check", "dies", "import os; os.abort()"),
        job("check", "hangs", "import time; print('begun', flush=True); time.sleep(600)", 0.5),
        job("check", "raises", "raise ValueError('planted')"),
        job("check", "passes", "print('said')"),
        Job("check", "cuda", "missing", ["/nowhere/tool"], 5.0),
        job("memcheck", "finds", "raise SystemExit(9)", sanitized=True),
        job("memcheck", "cannot", "raise SystemExit(1)", sanitized=True),
    ]
    assert not gpu_jobs.run_jobs(jobs, tmp_path / "out", 4, 60.0, os.environ)
    lines = (tmp_path / "out" / "outcomes.jsonl").read_text().splitlines()
    found = {outcome["name"]: outcome for outcome in map(json.loads, lines)}
    assert {name: outcome["outcome"] for name, outcome in found.items()} == {
        "dies": "failed", "hangs": "did not end", "raises": "failed", "passes": "passed",
        "missing": "failed", "finds": "failed", "cannot": "says nothing",
    }  # fmt: skip
    assert found["raises"]["says"].endswith("ValueError: planted")
    assert found["passes"]["says"] == "said"
    # Without time nothing begins, and nothing is said to have failed.
    assert gpu_jobs.run_jobs(jobs, tmp_path / "late", 4, 0.0, os.environ)


def test_every_check_of_every_backend_is_a_job() -> None:
    jobs = [job for job in gpu_check.jobs() if not job.sanitized]
    for backend in gpu_check.BACKENDS:
        names = {job.name.split()[0] for job in jobs if job.backend == backend}
        checks = {check.__name__ for check in gpu_check.CHECKS}
        left_out = {"fast_normals"} if backend == "triton" else set()
        assert names == checks - left_out | set(gpu_check.TESTS)
    stages = [job.command[-4:] for job in jobs if job.name.startswith("stages ")]
    count = gpu_check.SHARES["triton", "stages"]
    assert stages == [["triton", "stages", str(i), str(count)] for i in range(count)]


def test_a_measurement_that_stops_is_ended() -> None:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    assert gpu_bench.wait(process, time.time() + 0.3, time.time) == -9


def test_the_build_asks_neither_setuptools_nor_for_other_devices(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[object, ...]] = []
    monkeypatch.setitem(sys.modules, "setuptools", None)
    monkeypatch.delitem(sys.modules, "cmake_build", raising=False)
    monkeypatch.setattr(gpu_setup, "own_architecture", lambda: "120")
    monkeypatch.delenv("CLDFAST_CUDA_ARCHITECTURES", raising=False)
    cmake_build = importlib.import_module("cmake_build")
    monkeypatch.setattr(cmake_build, "build_module", lambda *options: asked.append(options))
    environment = gpu_setup.build()
    folder = ROOT / "cldfast"
    assert (gpu_setup.BUILD / "gpu-core", folder) in asked
    (cuda,) = [options for options in asked if "-DCLDFAST_CUDA=ON" in options]
    assert "-DCLDFAST_CUDA_ARCHITECTURES=120" in cuda
    assert environment["PYTHONPATH"].startswith(str(ROOT))
    monkeypatch.setenv("CLDFAST_CUDA_ARCHITECTURES", "80;90")
    assert "-DCLDFAST_CUDA_ARCHITECTURES=80;90" in cmake_build.cuda_options("120")
