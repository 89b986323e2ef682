"""The demo, made small: what it writes, that it repeats itself, and the network that it comes with."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
pytest.importorskip("ot")
pytest.importorskip("safetensors")

from cldfast.app import cli, demo
from cldfast.app.commands import train
from cldfast.app.demo import quality
from cldfast.app.demo.table import table
from cldfast.app.new_run import run_config
from cldfast.app.plans import plan_path
from cldfast.files import read_json
from cldfast.model.run_folder import METRICS, RunConfig, load_config, load_run
from cldfast.planner.plan import Plan
from cldfast.training import TrainConfig

DOCS = Path(__file__).parents[2] / "docs"
PNG = b"\x89PNG\r\n\x1a\n"
FEW = (("auto", False, (4,)), ("em", True, (3, 8)))


def settings(config: RunConfig) -> dict[str, Any]:
    """All that a config says but the versions, as plain data."""
    values = asdict(config)
    del values["versions"]
    values["train"] = asdict(TrainConfig.from_dict(values["train"]))
    plain: dict[str, Any] = json.loads(json.dumps(values))
    return plain


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    out = tmp_path_factory.mktemp("demo") / "deep" / "demo"
    patch = pytest.MonkeyPatch()
    patch.setattr(demo, "CURVES", FEW)
    reports = [demo.run_demo(out, minutes=1e-6, samples=24, seed=5) for _ in range(2)]
    patch.undo()
    return out, reports


def test_files(result: tuple[Path, list[dict[str, Any]]]) -> None:
    out, (_, report) = result
    assert sorted(p.name for p in out.iterdir()) == [
        "loss.png", "quality.png", "report.json", "samples.png",
    ]  # fmt: skip
    for name in ("samples.png", "quality.png", "loss.png"):
        assert (out / name).read_bytes()[:8] == PNG
    assert json.loads((out / "report.json").read_text()) == report


def test_report(result: tuple[Path, list[dict[str, Any]]]) -> None:
    _, (first, second) = result
    points = first["sampling"]["points"]
    assert [(p["sampler"], p["evaluations"]) for p in points] == [
        ("plans/8.json", demo.EVALUATIONS), ("auto", 4), ("em", 3), ("em", 8),
    ]  # fmt: skip
    assert all(p["seconds"] > 0.0 for p in points)
    # The same seed makes the same digits, and other numbers only for what the clock measures.
    distances = [[p["sliced_w2"] for p in r["sampling"]["points"]] for r in (first, second)]
    assert distances[0] == distances[1]
    assert first["fitted"] == second["fitted"]
    assert first["training"]["steps"] >= 1 and first["training"]["loss_at_last"] > 0.0
    assert {"versions", "device", "threads", "processor"} <= first["machine"].keys()
    text = table(first)
    assert "em (published)" in text and "times fewer evaluations" in text


def test_the_network_of_the_package() -> None:
    """Its size and its plan; and it is what the commands of the documentation make."""
    files = [path for path in demo.NETWORK.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 2 << 20
    net, sde, config = load_run(demo.NETWORK)
    plan = Plan.load(plan_path(demo.NETWORK, demo.EVALUATIONS), sde, config.form)
    assert plan.evaluations == demo.EVALUATIONS
    figures = Plan.figures(plan_path(demo.NETWORK, demo.EVALUATIONS))
    assert figures["options"] == demo.FITTED_BY
    with torch.no_grad():
        made = net(torch.zeros(3, 1, 8, 8), torch.zeros(3), torch.tensor([0, 9, 10]))
    assert made.shape == (3, 1, 8, 8) and not torch.equal(made[0], made[1])
    assert settings(config) == settings(run_config(demo.TRAINED_BY))
    assert read_json(demo.NETWORK / METRICS)["steps"] == demo.TRAINED_BY["steps"]


def test_the_commands_of_the_documentation() -> None:
    if not DOCS.is_dir():
        pytest.skip("the documentation is not here")
    lines = (DOCS / "learning.md").read_text().splitlines()
    (command,) = [line.strip() for line in lines if line.startswith("    cldfast train digits")]
    parsed = cli.parser().parse_args(shlex.split(command)[1:])
    assert settings(train._config(parsed)) == settings(load_config(demo.NETWORK))
    (command,) = [line.strip() for line in lines if line.startswith("    cldfast fit digits")]
    args = cli.parser().parse_args(shlex.split(command)[1:])
    assert args.evaluations == demo.EVALUATIONS
    assert {name: getattr(args, name) for name in demo.FITTED_BY} == demo.FITTED_BY


def test_training_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"width": 8, "steps": 3, "batch_size": 8}
    monkeypatch.setattr(demo, "TRAINED_BY", demo.TRAINED_BY | small)
    monkeypatch.setattr(demo, "FITTED_BY", {"steps": 1, "batch_size": 8})
    monkeypatch.setattr(demo, "CURVES", FEW)
    report = demo.run_demo(tmp_path, train=True, samples=24)
    config = load_config(tmp_path / "run")
    assert config.train is not None and config.train["steps"] == 3
    assert report["training"]["steps"] == 3
    assert read_json(plan_path(tmp_path / "run", demo.EVALUATIONS))
    assert not (tmp_path / "loss.png").exists() and "training " in table(report)


def test_equal_quality() -> None:
    """The fewest evaluations at 5 % above the best published distance, 0.2."""

    def point(name: str, n: int, distance: float | None) -> dict[str, Any]:
        return {
            "sampler": name, "evaluations": n, "sliced_w2": distance, "published": name == "em",
            "seconds": 0.1 * n,
        }  # fmt: skip

    points = [
        point("auto", 5, 0.3), point("auto", 20, 0.19), point("auto", 10, 0.209),
        point("em", 100, 0.2), point("em", 50, 0.25), point("em", 10, None), point("slow", 9, 0.3),
    ]  # fmt: skip
    equal = quality.equal_quality(points)
    assert equal["sliced_w2"] == pytest.approx(0.21)
    assert [(p["sampler"], p["evaluations"]) for p in equal["points"]] == [
        ("auto", 10),
        ("em", 100),
    ]
    lines = quality.series(points)
    assert lines["auto"] == ([5, 10, 20], [0.3, 0.209, 0.19])
    assert lines["em (published)"][0] == [10, 50, 100]


def test_bad_input(tmp_path: Path) -> None:
    for options, word in (
        ({"samples": 1}, "samples"), ({"minutes": -1.0}, "minutes"),
        ({"minutes": float("nan")}, "minutes"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=word):
            demo.run_demo(tmp_path / "a", **options)  # type: ignore[arg-type]
    assert not (tmp_path / "a").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="folder"):
        demo.run_demo(tmp_path / "file")
