"""The limits of the kernels: one place in each language, and the two agree."""

from __future__ import annotations

from pathlib import Path

import pytest
from cuda_on_host import ROOT

from cldfast.kernels import limits, native

SHARED = ("MOST_PLANES", "MOST_COLUMNS", "MOST_OCTAVES", "LAUNCH_OUTPUTS", "MOST_OVERWRITTEN")


@pytest.mark.parametrize("name", SHARED)
def test_python_and_the_compiled_modules_agree(name: str) -> None:
    for module in (native.core, native.cuda):
        if module is not None:
            assert getattr(module, name) == getattr(limits, name)


def test_no_other_file_states_a_limit() -> None:
    stated = [
        path
        for path in Path(ROOT / "cldfast").rglob("*.py")
        for name in SHARED
        if f"\n{name} = " in path.read_text(encoding="utf-8")
    ]
    assert {path.name for path in stated} == {"limits.py"}
