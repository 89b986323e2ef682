"""What the documents say: the README's code run as printed, paths that exist, versions that agree."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import cldfast
from cldfast.bench.timing import threads_set

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "benchmarks/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]


def test_the_ten_lines_learn_their_data() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, Any] = {}
    with threads_set(1):  # layers this small do not gain from a second one
        exec(code, names)
    x = names["x"]
    assert x.shape == (10_000, 2)
    # Monte Carlo gives 0.5 to 1 %; the rest is a small network trained for two seconds.
    assert torch.allclose(x.std(0), torch.full((2,), 0.5), rtol=0.15)
    assert float(x.mean(0).abs().max()) < 0.1


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_paths_in_the_documents_exist(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    places = "cldfast|csrc|tests|benchmarks|docs|tools|examples"
    named = re.findall(rf"`((?:{places})/[\w./-]*)`", text)
    linked = re.findall(r"\]\((?!https?:)([^)#]+)", text)
    missing = [path for path in named if not (ROOT / path).exists()]
    missing += [path for path in linked if not (document.parent / path).exists()]
    assert missing == []


def test_the_citation_is_of_this_version() -> None:
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {cldfast.__version__}\n" in text
