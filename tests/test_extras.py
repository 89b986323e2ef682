"""Messages about missing packages name an extra that installs them."""

from __future__ import annotations

import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from cldfast.extras import EXTRAS, extra_module, require

if sys.version_info >= (3, 11):
    import tomllib

PROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"


@pytest.mark.skipif(sys.version_info < (3, 11), reason="reads TOML")
def test_each_module_is_in_its_extra() -> None:
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    known = packages_distributions()
    for module, extra in EXTRAS.items():
        # A module that is not installed here is taken to be named like its package.
        names = {name.lower() for name in known.get(module, [module])}
        assert names & {name.lower() for name in project["optional-dependencies"][extra]}, module
    assert {"safetensors", "tqdm"} <= set(project["dependencies"])


def test_what_is_missing_is_named_with_its_extras(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in EXTRAS:
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(ImportError, match=rf"x: pip install 'cldfast\[{EXTRAS[module]}\]'"):
            extra_module(module, "x")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"ot, arviz: pip install 'cldfast\[demo,mcmc\]'"):
        require("ot", "arviz")
