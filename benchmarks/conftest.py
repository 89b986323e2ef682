"""Collects `bench_*.py`."""

from __future__ import annotations

from pathlib import Path

import pytest


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    """The suite's files are not tests, so pytest's own pattern leaves them out."""
    if file_path.name.startswith("bench_") and file_path.suffix == ".py":
        return pytest.Module.from_parent(parent, path=file_path)  # type: ignore[no-any-return]
    return None
