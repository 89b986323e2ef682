"""The studies under benchmarks/, made tiny, and the document that their results make."""

from __future__ import annotations

import csv
import functools
import math
from pathlib import Path

import pytest
import torch

pytest.importorskip("matplotlib")
pytest.importorskip("ot")
pytest.importorskip("safetensors")
pytest.importorskip("sklearn")

import fitted_study
import learned_nets
import learned_study
import learning_docs
import learning_study
import numpy as np
import one_network_study
import position_noise_study
import solver_docs
import solver_study
from output import write_csv

import cldfast
from cldfast.lab.mixture import GaussianMixture

SDE = cldfast.CLD(beta=cldfast.LinearBeta(1.0, 7.0))


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("t", [1e-3, 0.1, 1.0])
def test_cheap_score_is_the_exact_one(t: float) -> None:
    """Against the mixture of 25 in float64; float32 sums of terms up to 25 / var roundings apart."""
    centres = torch.cartesian_prod(solver_study.CENTRES, solver_study.CENTRES)
    variances = torch.full((25, 2), solver_study.SPREAD**2)
    mixture = GaussianMixture(torch.ones(25), centres, variances).network(SDE)
    u = cldfast.initial_state(SDE, (200, 2), seed=1)
    times = torch.tensor([t]).expand(len(u))
    exact = mixture(u.double(), times.double())
    got = solver_study.exact_score(SDE)(u, times)
    # Logits reach |u|^2 / (2 spread^2) = 10^3, so posteriors keep 10^3 float32 roundings.
    assert (got - exact).abs().max() < 1e3 * torch.finfo(torch.float32).eps * exact.abs().max()


def test_measures_of_exact_samples_and_of_others() -> None:
    x = solver_study.exact_samples(4000, 0)
    references = [solver_study.projected(x)]
    same = solver_study.measures(x, references)
    assert same["sliced_w2"] == 0.0
    # Shares of 4000 / 25 = 160 points vary by 1/sqrt(160) = 0.08 of themselves, covariances by
    # sqrt(3/160)/... of the same order; 4 sd in two dimensions are left by exp(-8).
    assert same["weight_error"] < 0.16 and same["cov_error"] < 0.25 and same["stray"] < 2e-3
    moved = solver_study.measures(x + 0.01, references)
    # All projections move by 0.01 (cos + sin), whose root mean square is 0.01.
    assert moved["sliced_w2"] == pytest.approx(0.01, rel=1e-3)
    lost = solver_study.measures(torch.full((10, 2), math.nan), references)
    assert lost["sliced_w2"] == math.inf


@pytest.mark.parametrize("label", solver_study.CASES)
def test_plans_stay_within_the_budget(label: str) -> None:
    plan = solver_study.fitting_plan(SDE, label, 12, None, 1e-3)
    assert plan is not None and 10 <= plan.evaluations <= 12


def test_solver_study(tmp_path: Path) -> None:
    cases = ["em, linear", "multistep 2"]
    sizes = ["--seeds", "2", "--samples", "300", "--evaluations", "6", "12"]
    solver_study.main([*sizes, "--cases", *cases, "--out", str(tmp_path)])
    found = rows(tmp_path / "solver_study.csv")
    assert [(r["solver"], r["budget"]) for r in found] == [
        ("floor", "0"), *((case, n) for case in cases for n in ("6", "12")),
    ]  # fmt: skip
    assert float(found[0]["over_floor"]) == 1.0
    assert float(found[-1]["sliced_w2"]) < float(found[2]["sliced_w2"])
    assert (tmp_path / "solver_study.png").read_bytes()[:4] == b"\x89PNG"
    assert "multistep 2" in solver_docs.best(found)


@pytest.mark.parametrize("name", ["funnel", "digits"])
def test_learned_study(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = {"em, linear": ("em", "linear", {}), "sscs2": ("sscs2", "auto", {})}
    budgets = {"em, linear": (5,), "sscs2": (3,)}

    def study(**options: bool) -> list[dict[str, object]]:
        return learned_study.study(
            name, 2, cases, budgets, tmp_path, samples=20, steps=2, width=8, **options
        )

    assert len(study(only_kept=True)) == 1
    found = study()
    assert [(r["solver"], r["evaluations"]) for r in found] == [
        ("floor", 0), ("em, linear", 5), ("sscs2", 3),
    ]  # fmt: skip
    assert all(math.isfinite(float(str(r["sliced_w2"]))) for r in found)
    assert found[1]["over_baseline"] == "1.0000"
    # A second run trains and samples nothing, and finds the same.
    monkeypatch.setattr(learned_nets, "train_run", None)
    monkeypatch.setattr(cldfast, "sample", None)
    assert study() == found
    write_csv(tmp_path / "learned.csv", found)
    learned_study.plot(found, tmp_path / "learned.png")
    assert (tmp_path / "learned.png").read_bytes()[:4] == b"\x89PNG"
    assert "| floor |" in solver_docs.learned(rows(tmp_path / "learned.csv"), name)


def test_speed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(learned_study.SPEED_SAMPLES, "funnel", 10)
    cases = ((learned_study.BASELINE, 20), ("unipc", 5))
    found = learned_study.speed("funnel", cases, tmp_path, samples=20, steps=1, width=8)
    assert [(r["solver"], r["evaluations"]) for r in found] == list(cases)
    assert found[0]["times_faster"] == 1.0 and found[1]["seconds"] > 0.0


def test_position_noise_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(position_noise_study, "EVALUATIONS", (3,))
    quick = functools.partial(position_noise_study.step_times, rounds=1, calls=1)
    monkeypatch.setattr(position_noise_study, "step_times", quick)
    found = position_noise_study.study(2, tmp_path, samples=20, dim=3, steps=2)
    cases = len(position_noise_study.CASES)
    assert [r["network"] for r in found[1:]] == ["d outputs"] * cases + ["2d outputs"] * cases
    position_noise_study.plot(found, tmp_path / "position.png")
    write_csv(tmp_path / "position.csv", found)
    assert "training, ms a step" in solver_docs.position(rows(tmp_path / "position.csv"))


def test_networks_are_told_apart_and_trained_once(tmp_path: Path) -> None:
    first, second = (learned_nets.funnel(2, steps=1, width=8, seed=seed) for seed in (0, 1))
    for _ in range(2):
        learned_nets.trained(first, tmp_path)
    learned_nets.trained(second, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_the_document_is_that_of_the_results() -> None:
    text = solver_docs.DOCUMENT.read_text(encoding="utf-8")
    assert solver_docs.filled(text, solver_docs.sections()) == text


@pytest.mark.parametrize(
    "recipe", {**learning_study.POSITION_NOISE, **learning_study.PRECONDITIONING}.values(), ids=str
)
def test_every_recipe_trains_and_samples(recipe: learning_study.Recipe) -> None:
    rows = torch.randn(512, 2)
    net, form, seconds = learning_study.train(recipe, SDE, rows, 2, seed=1)
    found = learning_study.judge(net, SDE, form, (32, 2), lambda x: float(x.std()))
    assert seconds > 0.0 and found.keys() == learning_study.SAMPLERS.keys()
    assert all(math.isfinite(value) for value in found.values())


def test_runs_of_one_network_end_at_one_noise_level() -> None:
    for process in one_network_study.PROCESSES.values():
        levels, end = one_network_study.noise_level(process), one_network_study.last_time(process)
        assert np.exp(levels.log_sigma(np.array([end]))) == pytest.approx([0.01], rel=1e-6)


def test_the_document_of_learning_is_that_of_the_results() -> None:
    text = learning_docs.DOCUMENT.read_text(encoding="utf-8")
    assert solver_docs.filled(text, learning_docs.sections()) == text


def test_markers_are_asked_for() -> None:
    with pytest.raises(ValueError, match="best:begin"):
        solver_docs.filled("no markers", {"best": "table"})


def test_fitted_study(tmp_path: Path) -> None:
    """A row for each fit and each seed, written as they come; nothing is measured twice."""
    command = [
        "--problems", "exact", "--evaluations", "3", "--bases", "multistep 3", "--fits", "0",
        "--seeds", "2", "--options", '{"steps": 3, "batch_size": 64}', "--out", str(tmp_path),
        "--root", str(tmp_path),
    ]  # fmt: skip
    fitted_study.main(command)
    found = rows(tmp_path / fitted_study.TABLE)
    assert [row["case"] for row in found] == ["floor", *["fitted multistep 3"] * 3]
    floor, fit, *judged = found
    assert float(fit["seconds"]) > 0.0 and fit["sliced_w2"] == ""
    assert all(float(row["sliced_w2"]) > float(floor["sliced_w2"]) for row in judged)
    assert (tmp_path / "plans" / "exact-3-multistep-3-0.json").exists()
    assert (tmp_path / "fitted_study.png").exists()
    fitted_study.main(command)
    assert rows(tmp_path / fitted_study.TABLE) == found
    fitted_study.main([*command, "--unfitted"])
    cases = {row["case"] for row in rows(tmp_path / fitted_study.TABLE)}
    assert cases >= set(fitted_study.UNFITTED)
