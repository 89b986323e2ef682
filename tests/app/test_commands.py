"""Classes, likelihood, budget, progress: what these options and commands make."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("safetensors")
pytest.importorskip("matplotlib")

from cldfast import CLD, PSLD, make_plan, sample
from cldfast.app.cli import main
from cldfast.app.runs import likelihood_run
from cldfast.extras import ProgressLines
from cldfast.lab.models import MLPScore
from cldfast.model.run_folder import RunConfig, save_run
from cldfast.network import ClassifierFree
from cldfast.planner.plan import Plan


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert main([*arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    return err


@pytest.fixture
def classes(tmp_path: Path) -> tuple[Path, MLPScore]:
    """A run folder of a network of three classes that tells them apart."""
    torch.manual_seed(0)
    net = MLPScore(2, width=8, depth=1, time_width=8, classes=3, label_dropout=0.1).eval()
    for weight in (net.last.weight, net.label.weight):
        torch.nn.init.normal_(weight)
    config = RunConfig(CLD().config(), net.config(), (2,), "noise", data={"scale": 2.0})
    return save_run(tmp_path / "run", net, config), net


def test_labels_by_turn_and_guidance(
    classes: tuple[Path, MLPScore], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A sample's label depends on its number alone, whatever the batch and the shard."""
    folder, net = classes

    def drawn(*options: str) -> tuple[np.ndarray, list[int]]:
        out = str(tmp_path / "a.npz")
        command = ["sample", str(folder), "--steps", "4", "--no-picture", "--out", out, *options]
        assert main(command) == 0
        with np.load(out) as file:
            return file["samples"], file["labels"].tolist()

    whole, labels = drawn("-n", "7", "--batch-size", "3", "--solver", "em")
    assert labels == [0, 1, 2, 0, 1, 2, 0]
    with torch.no_grad():
        wanted = sample(
            lambda u, t: net(u, t, torch.tensor(labels)), CLD(), (7, 2), "em", 4, seed=0,
            parameterization="noise",
        )  # fmt: skip
    np.testing.assert_allclose(whole, wanted / 2.0, rtol=1e-5, atol=1e-6)
    shard, labels = drawn("-n", "4", "--first-index", "3", "--solver", "em")
    np.testing.assert_allclose(shard, whole[3:], rtol=1e-5, atol=1e-6)
    guided, labels = drawn("-n", "4", "--labels", "2", "none", "--guidance-scale", "2.5")
    assert labels == [2, 3, 2, 3]
    wanted = sample(
        ClassifierFree(net, torch.tensor(labels)), CLD(), (4, 2), steps=4, seed=0,
        parameterization="noise", guidance_scale=2.5,
    )  # fmt: skip
    np.testing.assert_allclose(guided, wanted / 2.0, rtol=1e-5, atol=1e-6)
    assert "expected 0 to 2 or none" in refused(capsys, "sample", str(folder), "--labels", "3")
    assert "--device nowhere" in refused(capsys, "sample", str(folder), "--device", "nowhere")


def test_likelihood_in_the_units_of_the_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of N(mean, std^2) data, standardised, with the exact network: the entropy of that law."""
    pytest.importorskip("torchdiffeq")
    mean, std = [1.0, -2.0], [3.0, 0.5]
    rows = torch.randn(400, 2, generator=torch.Generator().manual_seed(0))
    sde = CLD()
    data = {"standardised": {"mean": mean, "std": std}}
    config = RunConfig(sde.config(), {}, (2,), "edm", data=data)
    # E[x0 | y] of standard normal data is y/(1 + sigma^2): c_skip y at sigma_data = 1, so F = 0.
    bounds, evaluations = likelihood_run(lambda y, c: 0.0 * y, sde, config, rows, batch_size=150)
    exact = 0.5 * (rows.double() ** 2).sum(1) + math.log(2.0 * math.pi * std[0] * std[1])
    assert evaluations > 0
    # The bound falls short by the blur at t_min, about half a sigma_y^2 (2e-3 there) a coordinate.
    assert float((bounds - exact).mean()) == pytest.approx(0.0, abs=0.01)
    torch.manual_seed(0)
    net = MLPScore(2, width=8, depth=1, time_width=8, in_planes=1, conditioning="c_noise")
    folder = str(
        save_run(
            tmp_path / "run", net, RunConfig(sde.config(), net.config(), (2,), "edm", data=data)
        )
    )
    np.save(tmp_path / "rows.npy", (rows * torch.tensor(std) + torch.tensor(mean)).numpy())
    command = ["likelihood", folder, "--data", str(tmp_path / "rows.npy"), "--rows", "300"]
    assert main([*command, "--out", str(tmp_path / "nll.npz")]) == 0
    words = capsys.readouterr().out.split()
    with np.load(tmp_path / "nll.npz") as file:  # an untrained network returns 0
        np.testing.assert_allclose(file["nll"].mean(), float(exact[:300].mean()), atol=0.01)
    assert words[:2] == ["300", "rows:"] and float(words[4]) == pytest.approx(
        float(exact[:300].mean()), abs=0.01
    )
    assert "give --data" in refused(
        capsys,
        "likelihood",
        str(save_run(tmp_path / "no", net, RunConfig(sde.config(), net.config(), (2,), "edm"))),
    )


def test_budget(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def rows(*arguments: str) -> list[list[str]]:
        assert main(["budget", *arguments]) == 0
        return [line.split() for line in capsys.readouterr().out.splitlines()[1:]]

    def wanted(plan: Plan, **options: float) -> list[float]:
        budget = plan.error_budget(**options)
        return [budget.initialisation, budget.discretisation, budget.score, budget.total]

    found = rows("--solver", "em", "sscs", "--steps", "5", "10", "--score-error", "0.1")
    assert [row[:2] for row in found] == [["em", "5"], ["em", "10"], ["sscs", "5"], ["sscs", "10"]]
    numbers = [float(cell) for cell in found[3][2:]]
    assert numbers == pytest.approx(
        wanted(make_plan(CLD(), "sscs", 10), score_error=0.1), rel=1e-3, abs=1e-9
    )
    (row,) = rows("--process", "psld", "kappa=0.1", "--data-var", "0.25", "--solver", "em")
    plan = make_plan(PSLD(kappa=0.1), "em", 20)
    assert [float(cell) for cell in row[2:]] == pytest.approx(
        wanted(plan, data_var=0.25), rel=1e-3, abs=1e-9
    )
    net = MLPScore(2, width=8, depth=1, time_width=8)
    sde = CLD(a=1.0)
    folder = str(
        save_run(tmp_path / "run", net, RunConfig(sde.config(), net.config(), (2,), "noise"))
    )
    (row,) = rows(folder, "--solver", "multistep", "--option", "order=3")
    plan = make_plan(sde, "multistep", 20, parameterization="noise", order=3)
    assert [float(cell) for cell in row[2:]] == pytest.approx(wanted(plan), rel=1e-3, abs=1e-9)
    assert "leave out --a" in refused(capsys, "budget", folder, "--a", "1")
    assert "unknown solver" in refused(capsys, "budget", "--solver", "em", "magic")


def test_lines_of_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no terminal: a line every ten seconds, later every tenth of the time."""
    clock, lines = [0.0], io.StringIO()
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    monkeypatch.setattr("sys.stderr", lines)
    bar = ProgressLines(total=400, desc="training")
    for _ in range(400):
        clock[0] += 1.0
        bar.set_postfix_str("loss 2", refresh=False)
        bar.update()
    bar.close()
    made = lines.getvalue().splitlines()
    assert made[0] == "training: 10 of 400 steps, loss 2, 10 s, 390 s to go"
    assert 10 < len(made) < 30
    assert list(ProgressLines(range(3))) == [0, 1, 2]
