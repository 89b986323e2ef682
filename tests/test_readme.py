"""What the documents say: the README's code run as printed, paths that exist, versions that agree."""

from __future__ import annotations

import csv
import re
import statistics
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


# What README.md says -> the file in benchmarks/results, values of the rows that count, the column.
FIGURES = {
    "1,000 calls: 0.0907": ("learned_study", "funnel", "em, linear", "1000", "sliced_w2"),
    "20 calls: 0.0880": ("learned_study", "funnel", "stochastic_multistep 3", "20", "sliced_w2"),
    "27 times": ("learned_speed", "funnel", "stochastic_multistep 3", "20", "times_faster"),
    "1,000 calls: 0.0601": ("learned_study", "digits", "em, linear", "1000", "sliced_w2"),
    "20 calls: 0.0603": ("learned_study", "digits", "stochastic_multistep 3", "20", "sliced_w2"),
    "37 times": ("learned_speed", "digits", "stochastic_multistep 3", "20", "times_faster"),
    "8 calls: 0.0955": ("fitted_study", "funnel", "fitted stochastic_multistep 3", "8", "0", "sliced_w2"),
    ", 0.0923": ("fitted_study", "funnel", "fitted stochastic_multistep 3", "8", "1", "sliced_w2"),
    "scores: 0.202": ("learning_study", "funnel", "0.25", "full_noise", "multistep 3, 20", "sliced_w2"),
    "outputs: 0.078": ("learning_study", "funnel", "0.25", "edm", "multistep 3, 20", "sliced_w2"),
    "`mixed`: 0.0698": (
        "learning_study", "gaussians25", "0.0", "mixed, uniform times", "multistep 3, 20", "sliced_w2",
    ),
    "averaged targets: 0.0443": (
        "learning_study", "gaussians25", "0.0",
        "edm, half_log times, edm weighting, averaged targets", "multistep 3, 20", "sliced_w2",
    ),
    "floor, 0.0413": ("learning_study", "gaussians25", "0.0", "multistep 3, 20", "floor"),
    "floor is 0.076": ("learning_study", "funnel", "0.25", "edm", "multistep 3, 20", "floor"),
    "47 times": ("loss_kernel", "256x3x32x32", "3.0924e-02", "hsm_loss_ratio"),
    "1.8 times": ("training_step", "64", "128", "2.8248e-03", "ratio"),
    "2.3 times": ("backends", "CLD-SGM", "SSCS, toy MLP, 512 x 2, 500 steps", "exact", "ratio"),
}  # fmt: skip


@pytest.mark.parametrize("said", FIGURES)
def test_the_figures_are_those_of_the_results(said: str) -> None:
    assert said in " ".join(README.read_text(encoding="utf-8").split())
    name, *keys, column = FIGURES[said]
    with (ROOT / "benchmarks" / "results" / f"{name}.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if set(keys) <= set(row.values())]
    mean = statistics.fmean(float(row[column]) for row in rows if row[column])
    number = re.findall(r"[\d.]+\d", said)[-1]
    digits = len(number.partition(".")[2])
    assert f"{mean:.{digits}f}" == number
