"""The demo, made small: what it writes, and that it repeats itself."""

import functools
import json

import pytest
import torch

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
pytest.importorskip("ot")
pytest.importorskip("safetensors")

from cldfast import kernels
from cldfast.app import demo
from cldfast.model.run_folder import load_run


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "deep" / "demo"
    patch = pytest.MonkeyPatch()
    patch.setattr(demo, "CURVE_EVALUATIONS", (2, 6))
    reports = [demo.run_demo(out, train_steps=3, samples=24, seed=5) for _ in range(2)]
    patch.undo()
    return out, reports


def test_files(result):
    out, (_, report) = result
    assert sorted(p.name for p in out.iterdir()) == [
        "quality.png", "report.json", "run", "samples.png",
    ]  # fmt: skip
    for name in ("samples.png", "quality.png", "run/loss.png"):
        assert (out / name).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert json.loads((out / "report.json").read_text()) == report
    net, sde, config = load_run(out / "run")
    assert config.train is not None and config.train["steps"] == 3 and config.shape == (1, 8, 8)
    assert net(torch.zeros(2, 2, 8, 8), torch.ones(2)).shape == (2, 1, 8, 8)
    assert sde.T == 1.0


def test_report(result):
    _, (_, report) = result
    quality, speed = report["quality"], report["speed"]
    assert report["training"]["steps"] == 3
    assert report["sampling"]["evaluations"] == 50
    assert quality["ratio"] == pytest.approx(
        quality["sliced_w2_samples_to_test"] / quality["sliced_w2_train_to_test"]
    )
    assert len(quality["class_fractions"]) == 10
    assert sum(quality["class_fractions"]) == pytest.approx(1.0)
    assert quality["evaluations"] == [2, 6]
    assert quality["sliced_w2_by_solver"].keys() == {"em", "sscs", "auto"}
    for backend in ("fused", "reference"):
        if speed[backend] is not None:
            assert speed[backend]["integrator_seconds"] > 0
            assert speed[backend]["network_seconds"] > 0
    if not kernels.missing_backend("cpu"):
        assert speed["largest_relative_difference"] < 1e-4
    assert {"versions", "device", "threads", "processor"} <= report["machine"].keys()


def test_same_seed_same_digits(result):
    _, (first, second) = result
    assert first["quality"] == second["quality"]
    assert first["training"]["validation_loss"] == second["training"]["validation_loss"]


def test_without_the_core(monkeypatch):
    """The demo still runs, and says why there is no comparison."""
    from cldfast import CLD
    from cldfast.lab.models import UNetScore
    from cldfast.model.run_folder import RunConfig

    monkeypatch.setattr(demo, "missing_backend", lambda name: "not built")
    net = UNetScore(width=8, multipliers=(1,))
    config = RunConfig(CLD().config(), net.config(), (1, 8, 8), "noise")
    draw = functools.partial(demo.sample_run, sde=CLD(), config=config, n=3, seed=0)
    drawn, speed = demo._compare_backends(net, draw)
    assert drawn.shape == (3, 1, 8, 8)
    assert speed["fused"] is None and speed["core_missing"] == "not built"
    assert speed["reference"]["network_seconds"] > 0


def test_curve_of_a_sampler_that_diverges(tmp_path, monkeypatch):
    values = {"em": [None, 50.0], "sscs": [0.2, 0.1]}
    monkeypatch.setattr(demo, "CURVE_EVALUATIONS", (5, 10))
    demo._plot_quality(values, 0.05, tmp_path / "q.png", "title")
    assert (tmp_path / "q.png").stat().st_size > 0


def test_bad_input(tmp_path):
    with pytest.raises(ValueError, match="steps"):
        demo.run_demo(tmp_path / "a", train_steps=0)
    with pytest.raises(ValueError, match="samples"):
        demo.run_demo(tmp_path / "a", samples=1)
    assert not (tmp_path / "a").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="folder"):
        demo.run_demo(tmp_path / "file")
