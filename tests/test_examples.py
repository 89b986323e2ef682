"""Each example runs, at the size of a test: numbers named in capitals are made small."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

plt = pytest.importorskip("matplotlib.pyplot", reason="the extra demo is missing")

FOLDER = Path(__file__).resolve().parents[1] / "examples"
SIZES = {"TRAIN_STEPS": 2, "FIT_STEPS": 1, "SAMPLES": 60, "ROWS": 3, "DRAWS": 1, "STEPS": 4}
# Commands and what other tests run, and those of several processes.
ELSEWHERE = {
    "route.py", "diffusers_pipeline.py", "conditional_digits.py", "ddp.py", "train_in_processes.py",
}  # fmt: skip


@pytest.mark.parametrize(
    "path",
    [p for p in sorted(FOLDER.glob("*.py")) if p.name not in ELSEWHERE],
    ids=lambda p: p.name,
)
def test_example(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "diffusers" in path.read_text(encoding="utf-8"):
        pytest.importorskip("diffusers", reason="the extra diffusers is missing")
    plt.switch_backend("agg")
    source = path.read_text(encoding="utf-8")
    names = re.search(r"^([A-Z_]+(?:, [A-Z_]+)*) = ([\d, ]+)$", source, re.MULTILINE)
    assert names is not None, "an example names its sizes in one line of capitals"
    sizes = [
        str(SIZES.get(name, number))
        for name, number in zip(names[1].split(", "), names[2].split(", "), strict=True)
    ]
    small = source.replace(names[0], f"{names[1]} = {', '.join(sizes)}")
    exec(compile(small, str(path), "exec"), {"__name__": "example", "__file__": str(path)})
    plt.close("all")
