"""`cldfast fit` writes a plan into a run folder, and `cldfast sample` takes it by itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("safetensors")
pytest.importorskip("matplotlib")

from cldfast.app.cli import main
from cldfast.app.plans import plan_path
from cldfast.app.runs import sample_run
from cldfast.model.run_folder import load_run
from cldfast.planner.make_plan import make_plan
from cldfast.planner.plan import Plan
from cldfast.process.sde import CLD

SMALL = ["--width", "8", "--depth", "1", "--rows", "200", "--batch-size", "16", "--steps", "40"]
QUICK = ["--steps", "12", "--batch-size", "64", "--quiet"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fit") / "funnel"
    assert main(["train", "funnel", "--out", str(folder), "--dim", "3", *SMALL]) == 0
    assert main(["fit", str(folder), "--evaluations", "4", *QUICK]) == 0
    return folder


def drawn(run: Path, out: Path, *options: str) -> tuple[np.ndarray, dict[str, Any]]:
    command = ["sample", str(run), "-n", "6", "--out", str(out), "--no-picture", "--quiet"]
    assert main([*command, *options]) == 0
    with np.load(out) as file:
        return file["samples"], json.loads(str(file["settings"]))


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert main([*arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    return err


def test_the_plan_has_its_figures(run: Path) -> None:
    _, sde, config = load_run(run)
    plan = Plan.load(plan_path(run, 4), sde, config.parameterization)
    figures = Plan.figures(plan_path(run, 4))
    assert plan.evaluations == 4 and figures["evaluations"] == 4 and figures["shape"] == [3]
    assert figures["options"] == {"steps": 12, "batch_size": 64}
    assert (figures["fitted"] < figures["base"]) == figures["improved"]
    assert figures["seconds"] > 0.0 and figures["nearest_ratio"] > 0.0


def test_sample_takes_the_plan_by_itself(run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(run, tmp_path / "run"))
    net, sde, config = load_run(run)
    # Another plan than that of the default solver, which a fit of few steps may return.
    plan = make_plan(sde, "em", 4, parameterization=config.form)
    plan.save(plan_path(run, 4), {"shape": list(config.shape)})
    wanted = sample_run(net, sde, config, 6, plan=plan, seed=3).numpy()
    for options in (["--steps", "4"], ["--plan", str(plan_path(run, 4))]):
        made, settings = drawn(run, tmp_path / "a.npz", "--seed", "3", *options)
        assert np.array_equal(made, wanted)
        assert settings["solver"] == plan.solver and settings["steps"] == 4
    for options in (["--steps", "4", "--plan", "none"], ["--steps", "4", "--solver", "auto"]):
        made, settings = drawn(run, tmp_path / "b.npz", "--seed", "3", *options)
        assert not np.array_equal(made, wanted) and settings["solver"] == "auto"
    assert not np.array_equal(drawn(run, tmp_path / "c.npz", "--steps", "5")[0], wanted)


def test_what_does_not_go_with_a_plan(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(plan_path(run, 4))
    assert "leave out solver" in refused(
        capsys, "sample", str(run), "--plan", path, "--solver", "em"
    )
    assert "leave out steps" in refused(capsys, "sample", str(run), "--plan", path, "--steps", "4")
    assert "--plan does not go" in refused(
        capsys, "sample", str(run), "--plan", path, "--solver", "pflow"
    )
    assert "no such file" in refused(capsys, "sample", str(run), "--plan", str(tmp_path / "x.json"))
    other = make_plan(CLD(a=1.0), "em", 2, parameterization="mixed")
    other.save(tmp_path / "process.json")
    file = str(tmp_path / "process.json")
    assert "another process" in refused(capsys, "sample", str(run), "--plan", file)
    _, sde, config = load_run(run)
    wide = make_plan(sde, "em", 2, parameterization=config.parameterization)
    wide.save(tmp_path / "shape.json", {"shape": [1, 8, 8]})
    file = str(tmp_path / "shape.json")
    assert "for samples [1, 8, 8], not [3]" in refused(capsys, "sample", str(run), "--plan", file)


def test_bad_fits_are_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "evaluations" in refused(capsys, "fit", str(run), "--evaluations", "0")
    assert "unknown solver" in refused(capsys, "fit", str(run), "--base", "magic")
    assert "objective" in refused(capsys, "fit", str(run), "--objective", "fid")
    assert "name=weight" in refused(capsys, "fit", str(run), "--objective", "energy=1,paths")
    assert "found nothing" in refused(capsys, "fit", str(run / "no"))


def test_a_trained_on_network_has_no_plan(run: Path) -> None:
    """Last: the plans are fitted to the network that was."""
    assert main(["train", "--resume", "--out", str(run), "--steps", "41", "--quiet"]) == 0
    assert not plan_path(run, 4).exists()
