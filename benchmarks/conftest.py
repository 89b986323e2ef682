"""Collects `bench_*.py`, and gives each file the contestants of the case that it names."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from cldfast.bench.cases import CASES, Inputs
from cldfast.bench.contestants import Contestant, contestants


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    """The suite's files are not tests, so pytest's own pattern leaves them out."""
    if file_path.name.startswith("bench_") and file_path.suffix == ".py":
        return pytest.Module.from_parent(parent, path=file_path)  # type: ignore[no-any-return]
    return None


@cache
def _names() -> list[str]:
    """Names of all contestants; `torch.compile` is lazy, so a tiny state costs nothing."""
    return [_name(contestant) for contestant in contestants(Inputs((2, 2)))]


def _name(contestant: Contestant) -> str:
    return " ".join(filter(None, (contestant.name, contestant.operation, contestant.level)))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One benchmark for each contestant in a file that has a CASE."""
    if "contestant" in metafunc.fixturenames:
        metafunc.parametrize("contestant", _names(), indirect=True)


@pytest.fixture(scope="module")
def _entrants(request: pytest.FixtureRequest) -> Iterator[dict[str, Contestant]]:
    inputs = Inputs(CASES[request.module.CASE].shape)
    yield {_name(contestant): contestant for contestant in contestants(inputs)}


@pytest.fixture
def contestant(request: pytest.FixtureRequest, _entrants: dict[str, Contestant]) -> Contestant:
    """A contestant on the inputs of the file's case."""
    return _entrants[request.param]
