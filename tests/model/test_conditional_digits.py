"""The example of a conditional U-Net of diffusers runs as it is, with a few steps."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

pytest.importorskip("diffusers", reason="a U-Net of diffusers needs the extra diffusers")
plt = pytest.importorskip("matplotlib.pyplot", reason="the digits are drawn by matplotlib")
SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "conditional_digits.py"


def test_the_example_is_short_and_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    text = SCRIPT.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 40 and "guidance_scale=2.0, batch_size=64" in text
    plt.switch_backend("agg")
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "5"])
    names = runpy.run_path(str(SCRIPT))
    assert names["x"].shape == (200, 1, 8, 8) and bool(names["x"].isfinite().all())
    assert names["model"].shape == (1, 8, 8)
    plt.close("all")
