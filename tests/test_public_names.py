"""Each public name has a page in the reference, and stands in the program that type checkers read."""

from __future__ import annotations

import ast
import re
import sys
import typing
from inspect import signature
from pathlib import Path

import pytest

import cldfast
from cldfast import classical

ROOT = Path(__file__).resolve().parents[1]
NAMES = {f"cldfast.{name}" for name in cldfast.__all__}
NAMES |= {f"cldfast.classical.{name}" for name in classical.__all__}


def test_each_name_has_a_page() -> None:
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    listed = re.findall(r"^   (cldfast\.[\w.]+)$", text, re.MULTILINE)
    assert len(listed) == len(set(listed))
    assert NAMES - set(listed) == set()


def test_the_users_program_has_each_name() -> None:
    tree = ast.parse((ROOT / "tests" / "user_program.py").read_text(encoding="utf-8"))
    dotted = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    dotted |= {f"cldfast.{name}" for name in dotted if name.startswith("classical.")}
    dotted.add("cldfast.classical")  # imported by that name
    assert NAMES - dotted == set()


@pytest.mark.skipif(
    sys.version_info < (3, 11), reason="PYTHON: overloads are recorded from 3.11 on"
)
def test_what_type_checkers_read_of_sample_is_its_signature() -> None:
    own = dict(signature(cldfast.sample).parameters)
    told = dict(signature(typing.get_overloads(cldfast.sample)[0]).parameters)
    assert own.pop("return_velocity").default is told.pop("return_velocity").default is False
    assert own == told


def test_each_page_of_the_site_is_listed() -> None:
    listed = (ROOT / "docs" / "index.md").read_text(encoding="utf-8").split()
    pages = [path.stem for path in (ROOT / "docs").glob("*.md") if path.stem != "index"]
    assert [page for page in pages if page not in listed] == []
