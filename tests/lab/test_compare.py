"""The comparison of processes: its rows, floors and networks, and the command that writes them."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

pytest.importorskip("ot")
pytest.importorskip("matplotlib")

import cldfast
from cldfast.app.cli import main
from cldfast.lab.compare import FORM, contenders, fitted_mixture, learned_networks
from cldfast.lab.data import Funnel
from cldfast.lab.mixture import GaussianMixture

# Narrow enough for all, wide enough for Langevin steps of 0.1.
DATA = GaussianMixture([0.5, 0.5], [[-0.7, 0.0], [0.7, 0.0]], [[0.3, 0.3], [0.3, 0.3]])


def test_every_process_reaches_the_data_with_exact_networks() -> None:
    rows = cldfast.compare(DATA, (8, 40), samples=500, repeats=3, seed=3)
    assert [(row["process"], row["evaluations"]) for row in rows] == [
        (name, count) for name in contenders() for count in (8, 40)
    ]
    for row in rows[1::2]:
        if row["process"] != "kinetic Langevin":  # which has not mixed yet
            assert row["distance"] < 3.0 * row["floor"]
    langevin = [row["distance"] for row in rows if row["process"] == "kinetic Langevin"]
    assert langevin[1] < langevin[0]


def test_given_networks_replace_exact_ones() -> None:
    nets = {"CLD": lambda y, c: 0.0 * y}
    (row,) = cldfast.compare(DATA, (6,), networks=nets, samples=300, repeats=2)
    exact = cldfast.compare(DATA, (6,), {"CLD": contenders()["CLD"]}, samples=300, repeats=2)[0]
    with pytest.raises(ValueError, match="repeats must be at least 2"):
        cldfast.compare(DATA, (6,), repeats=1)
    assert row["process"] == "CLD" and row["distance"] > exact["distance"]


def test_networks_are_trained_alike() -> None:
    before = torch.get_rng_state()
    some = {name: contenders()[name] for name in ("CLD", "VP", "kinetic Langevin")}
    nets = learned_networks(DATA, some, steps=3, batch=16, width=8)
    assert list(nets) == ["CLD", "VP"]
    sizes = {name: [p.shape for p in net.parameters()] for name, net in nets.items()}  # type: ignore[attr-defined]
    assert sizes["CLD"] == sizes["VP"]
    again = learned_networks(DATA, some, steps=3, batch=16, width=8)
    assert torch.equal(torch.get_rng_state(), before)
    y, c = torch.randn(4, 2), torch.zeros(4)
    assert torch.equal(nets["VP"](y, c), again["VP"](y, c))
    assert str(FORM) == "edm"


def test_a_mixture_fitted_to_a_funnel() -> None:
    pytest.importorskip("sklearn")
    mixture = fitted_mixture(Funnel(), components=5)
    assert mixture.dim == 2
    assert float((mixture.cov() - torch.diag(torch.tensor([1.0, 1.65]))).abs().max()) < 0.1


def test_the_study_of_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new"
    assert (
        main(["study", "processes", "--data", "two_points", "--samples", "100", "--out", str(out)])
        == 0
    )
    with (out / "processes.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 25 and {row["process"] for row in rows} == set(contenders())
    assert (out / "processes.png").read_bytes().startswith(b"\x89PNG")
    assert main(["study", "processes", "--samples", "0"]) == 2
    assert "--samples: expected at least 2" in capsys.readouterr().err
