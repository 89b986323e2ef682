"""What a build makes on which machine, and that it does not trust what an earlier one left."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("setuptools", reason="setuptools is missing")

import build_modules as build  # noqa: E402
import cmake_build  # noqa: E402

VARIABLES = ("CLDFAST_CORE", "CLDFAST_CUDA", "CLDFAST_SANITIZE", "CXX", "CUDACXX")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[pytest.MonkeyPatch]:
    """A machine with a C++ compiler and nvcc, and nothing said about them."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, variable in {"compiler": "CXX", "nvcc": "CUDACXX"}.items():
        program = tmp_path / name
        program.touch(mode=0o755)
        monkeypatch.setenv(variable, str(program))
    build.names.cache_clear()
    build.announce.cache_clear()
    yield monkeypatch
    build.names.cache_clear()
    build.announce.cache_clear()


@pytest.mark.parametrize(
    ("variables", "made"),
    [
        ({}, (build.CORE, build.CUDA)),
        ({"CLDFAST_CUDA": "0"}, (build.CORE,)),
        ({"CUDACXX": "/nowhere/nvcc"}, (build.CORE,)),
        ({"CLDFAST_SANITIZE": "address"}, (build.CORE,)),
        ({"CXX": "/nowhere/c++"}, ()),
        ({"CLDFAST_CORE": "0", "CLDFAST_CUDA": "0"}, ()),
    ],
)
def test_what_is_made(
    machine: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    variables: dict[str, str],
    made: tuple[str, ...],
) -> None:
    for name, value in variables.items():
        machine.setenv(name, value)
    assert tuple(module.name for module in build.modules()) == made
    build.announce()
    build.announce()  # says it once
    said = capsys.readouterr().err
    assert said.count("pure Python") == (build.CORE not in made)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"CLDFAST_CORE": "1", "CXX": "/nowhere/c++"}, "CLDFAST_CORE=1, but a C.* install g"),
        ({"CLDFAST_CUDA": "1", "CUDACXX": "/nowhere/nvcc"}, "CLDFAST_CUDA=1, but nvcc .* toolkit"),
        ({"CLDFAST_CUDA": "no"}, "CLDFAST_CUDA must be 0 or 1, got 'no'"),
    ],
)
def test_what_is_demanded(
    machine: pytest.MonkeyPatch, variables: dict[str, str], message: str
) -> None:
    for name, value in variables.items():
        machine.setenv(name, value)
    with pytest.raises(SystemExit, match=message):
        build.modules()


def test_a_build_of_other_sources_is_forgotten(tmp_path: Path) -> None:
    for sources, kept in ((cmake_build.SOURCES, True), (tmp_path / "elsewhere" / "csrc", False)):
        folder = tmp_path / "core"
        folder.mkdir(exist_ok=True)
        (folder / "CMakeCache.txt").write_text(f"CMAKE_HOME_DIRECTORY:INTERNAL={sources}\n")
        cmake_build.forget_other_sources(folder)
        assert folder.exists() == kept
