"""docs/architecture.md: its examples run, and the files that it names exist."""

from __future__ import annotations

import re
from pathlib import Path

import cldfast
from cldfast import kernels
from cldfast.planner.solvers import SOLVERS

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def test_the_examples_run() -> None:
    names: dict[str, object] = {}
    try:
        for block in re.findall(r"```python\n(.*?)```", PAGE, re.S):
            exec(block, names)
        assert 1.9 < names["order"] < 2.1  # type: ignore[operator]
        x = cldfast.sample(
            lambda u, t: -u[:, 2:], cldfast.CLD(), (4, 2), "warm", 3, backend="counting", seed=0
        )
        assert x.shape == (4, 2)
        # The states at T are made by a stage too.
        assert kernels.get_backend("counting", "cpu").stages == 1 + 3  # type: ignore[attr-defined]
    finally:
        for name in ("warm", "midpoint"):
            SOLVERS.pop(name, None)
        kernels.unregister_backend("counting")


def test_every_file_that_is_named_exists() -> None:
    places = [ROOT, ROOT / "cldfast", ROOT / "cldfast/planner", ROOT / "csrc", ROOT / "csrc/bind"]
    places += [ROOT / "cldfast/kernels", ROOT / "csrc/cuda", ROOT / "docs"]
    places += [folder for folder in (ROOT / "cldfast").iterdir() if folder.is_dir()]
    named = re.findall(r"`([\w/]+(?:\.py|\.h|\.cpp|\.cu|\.md|/))`", PAGE)
    missing = [name for name in named if not any((place / name).exists() for place in places)]
    assert missing == []
