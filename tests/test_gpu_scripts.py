"""`make gpu-check` and `make gpu-bench` on a machine without a GPU: one sentence, and no success."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from cuda_on_host import ROOT


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
