"""The pictures of the route: the quick ones are drawn, and the page tells of every one."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("matplotlib")

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def route() -> ModuleType:
    spec = importlib.util.spec_from_file_location("route", ROOT / "examples" / "route.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_quick_pictures(route: ModuleType, tmp_path: Path) -> None:
    names = ["schedules", "curvature", "smoothing", "noising"]
    route.main(["--out", str(tmp_path / "new"), "--only", *names])
    for name in names:
        assert (tmp_path / "new" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_the_page_tells_of_every_picture(route: ModuleType) -> None:
    page = (ROOT / "docs" / "classical.md").read_text(encoding="utf-8")
    assert [name for name in route.PICTURES if f"`{name}`" not in page] == []
