"""Run folders: what is written comes back, and what is broken is refused in one line."""

import json
import os
from dataclasses import asdict

import pytest
import torch

from cldfast import CLD
from cldfast.files import read_json, read_tensors, write_atomic, write_json, write_tensors
from cldfast.lab.models import MLPScore
from cldfast.model.run_folder import (
    CONFIG,
    METRICS,
    MODEL,
    RunConfig,
    load_config,
    load_run,
    save_run,
)

pytest.importorskip("safetensors")


def _config(net, **changes):
    values = {
        "sde": CLD().config(), "model": net.config(), "shape": (2,), "parameterization": "noise",
        "t_min": 1e-3, "data": {"name": "funnel", "dim": 2, "scale": 0.5},
    }  # fmt: skip
    return RunConfig(**(values | changes))


@pytest.fixture
def net():
    torch.manual_seed(0)
    net = MLPScore(2, width=8, depth=1, time_width=8)
    torch.nn.init.normal_(net.last.weight)
    return net


@pytest.fixture
def run(tmp_path, net):
    return save_run(tmp_path / "run", net, _config(net), {"loss": 1.5})


def _refused(run, *words):
    with pytest.raises(ValueError) as caught:
        load_run(run)
    text = str(caught.value)
    assert "\n" not in text
    for word in words:
        assert word in text, text


def test_round_trip(run, net):
    loaded, sde, config = load_run(run)
    u, t = torch.randn(5, 4), torch.rand(5)
    assert torch.equal(loaded(u, t), net(u, t))
    assert not loaded.training
    assert sde.config() == CLD().config()
    assert config == _config(net)
    assert config.shape == (2,) and config.scale == 0.5
    assert config.versions["torch"] == torch.__version__
    assert read_json(run / METRICS) == {"loss": 1.5}
    assert sorted(p.name for p in run.iterdir()) == sorted([CONFIG, MODEL, METRICS])


def test_missing_things(tmp_path, run):
    _refused(tmp_path / "nowhere", "nowhere", "nothing")
    _refused(run / CONFIG, "a file")
    (run / MODEL).unlink()
    _refused(run, MODEL, "no such file")
    (run / CONFIG).unlink()
    _refused(run, CONFIG, "no such file")


@pytest.mark.parametrize("name", [CONFIG, MODEL])
@pytest.mark.parametrize("part", [0.0, 0.02, 0.5, 0.99])
def test_cut_files(run, name, part):
    data = (run / name).read_bytes()
    (run / name).write_bytes(data[: int(part * len(data))])
    _refused(run, name)


def test_garbage_files(run):
    model = (run / MODEL).read_bytes()
    (run / MODEL).write_bytes(b"\xff" * len(model))
    _refused(run, MODEL)
    (run / CONFIG).write_bytes(b"\xff\xfe{}")
    _refused(run, CONFIG, "JSON")
    (run / CONFIG).write_text("[1]")
    _refused(run, CONFIG, "object")


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"extra": 1}, "unknown extra"),
        ({"sde": None}, "sde"),
        ({"sde": {"kind": "vp"}}, "vp"),
        ({"sde": {"kind": "cld", "mass": 1.0}}, "cld"),
        ({"sde": {"kind": "cld", "a": "two"}}, "a must"),
        ({"sde": {"kind": "cld", "a": -1.0}}, "a must"),
        ({"model": {"kind": "tree"}}, "tree"),
        ({"model": {"kind": "mlp", "dim": 2, "colour": 1}}, "colour"),
        ({"model": {"kind": "mlp", "dim": 3, "width": 8, "depth": 1, "time_width": 8}}, "shape"),
        (
            {"model": {"kind": "mlp", "dim": 2, "width": 8, "depth": 2, "time_width": 8}},
            "no 'blocks.1",
        ),
        ({"shape": [0]}, "shape"),
        ({"shape": "2"}, "shape"),
        ({"parameterization": "colour"}, "colour"),
        ({"t_min": 0}, "t_min"),
        ({"t_min": 2.0}, "t_min"),
        ({"data": {"scale": "big"}}, "scale"),
        ({"train": 3}, "train"),
    ],
)
def test_bad_config(run, changes, word):
    config = json.loads((run / CONFIG).read_text()) | changes
    (run / CONFIG).write_text(json.dumps(config))
    _refused(run, word)


def test_missing_key(run):
    config = json.loads((run / CONFIG).read_text())
    del config["shape"]
    (run / CONFIG).write_text(json.dumps(config))
    _refused(run, "no shape")


def test_weights_that_are_not_finite_are_neither_written_nor_read(tmp_path, run, net):
    with torch.no_grad():
        net.last.weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        save_run(tmp_path / "other", net, _config(net))
    assert not (tmp_path / "other").exists()
    write_tensors(run / MODEL, net.state_dict())
    _refused(run, MODEL, "last.weight", "not finite")


def test_metrics_that_are_not_plain_numbers_leave_the_old_file(tmp_path):
    path = tmp_path / METRICS
    write_json(path, {"loss": 1.0})
    for bad in ({"loss": float("nan")}, {"loss": object()}):
        with pytest.raises(ValueError, match="JSON"):
            write_json(path, bad)
    assert read_json(path) == {"loss": 1.0}
    assert [p.name for p in tmp_path.iterdir()] == [METRICS]


def test_a_file_is_no_folder(tmp_path, net):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="folder"):
        save_run(tmp_path / "file", net, _config(net))


def test_tensors_of_any_layout_and_shared_memory_go_round(tmp_path):
    base = torch.arange(24.0)
    tensors = {
        "channels_last": base.view(1, 2, 3, 4).contiguous(memory_format=torch.channels_last),
        "view": base[::2], "same": base, "scalar": torch.tensor(3.0), "bytes": torch.ones(3).byte(),
        "half": base.bfloat16(),
    }  # fmt: skip
    path = tmp_path / "x.safetensors"
    write_tensors(path, tensors, {"step": 3, "x": 0.1})
    back, metadata = read_tensors(path)
    assert metadata == {"step": 3, "x": 0.1}
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(back[name], tensor) and back[name].dtype == tensor.dtype


def test_no_writer_leaves_half_a_file(tmp_path, monkeypatch):
    path = tmp_path / "data"
    write_atomic(path, b"old")

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="full"):
        write_atomic(path, b"new and longer")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["data"]


def test_nothing_is_unpickled(run):
    """A pickle in the place of the weights is refused, not run."""
    torch.save({"last.weight": torch.zeros(1)}, run / MODEL)
    _refused(run, MODEL)


def test_config_is_the_inverse_of_asdict(run, net):
    config = load_config(run)
    assert RunConfig.from_dict(asdict(config)) == config
