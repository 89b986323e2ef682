"""Models written to folders and read again: the same samples, whatever they are made of."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import cldfast
from cldfast.lab.models import MLPScore
from cldfast.model.run_folder import CONFIG, MODEL, RunConfig, save_run

pytest.importorskip("safetensors")
SDE = cldfast.PSLD(beta=cldfast.LinearBeta(0.5, 8.0))
SCALE = cldfast.DataScale((1.0, -2.0), (3.0, 0.5))


class Own(nn.Module):
    """A network that no config describes, with labels."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, y: Tensor, sigma: Tensor, labels: Tensor) -> Tensor:
        return self.layer(y) + labels[:, None]


def mlp() -> MLPScore:
    net = MLPScore(2, width=8, depth=1, in_planes=1, conditioning="c_noise", classes=3)
    nn.init.normal_(net.last.weight)
    return net


def draw(model: cldfast.Model) -> Any:
    return model.sample(5, 3, labels=[0, 2, 1, 1, 0], guidance_scale=2.0, seed=1)


def test_a_network_of_ours_is_built_from_the_folder(tmp_path: Path) -> None:
    form = cldfast.Preconditioned(0.7)
    model = cldfast.Model(mlp(), SDE, form, SCALE, shape=(2,), t_min=0.01, times="log")
    assert model.save_pretrained(tmp_path / "model") == tmp_path / "model"
    read = cldfast.Model.from_pretrained(tmp_path / "model", device="cpu")
    assert torch.equal(draw(read), draw(model)) and not read.training
    for name in ("parameterization", "scale", "shape", "t_min", "weighting", "times", "null"):
        assert getattr(read, name) == getattr(model, name), name
    assert read.sde.config() == SDE.config()


def test_a_network_of_ones_own_is_filled(tmp_path: Path) -> None:
    model = cldfast.Model(Own(), SDE, "denoiser", shape=(2,), null={"labels": 7})
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"config.json: .* of its own, 'Own': pass such a network"):
        cldfast.Model.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"model.safetensors: does not fit the network"):
        cldfast.Model.from_pretrained(tmp_path, nn.Linear(2, 2))
    read = cldfast.Model.from_pretrained(tmp_path, Own())
    assert read.null == {"labels": 7} and torch.equal(draw(read), draw(model))
    assert cldfast.Model.from_pretrained(tmp_path, Own(), null={"labels": 3}).null == {"labels": 3}


def test_a_run_folder_is_a_model(tmp_path: Path) -> None:
    """That of a training, with a factor of the data and without the newer keys."""
    net = MLPScore(2, width=8, depth=1)
    nn.init.normal_(net.last.weight)
    data = {"name": "funnel", "dim": 2, "scale": 0.25}
    save_run(tmp_path, net, RunConfig(SDE.config(), net.config(), (2,), "noise", 1e-2, data))
    config = json.loads((tmp_path / CONFIG).read_text())
    del config["null"]
    (tmp_path / CONFIG).write_text(json.dumps(config))
    read = cldfast.Model.from_pretrained(tmp_path)
    plain = cldfast.sample(net, SDE, (4, 2), steps=3, seed=2, parameterization="noise", t_min=1e-2)
    assert torch.equal(read.sample(4, 3, seed=2), 4.0 * plain)


def test_the_hub_is_asked_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its cache has links; nothing here leaves the machine."""
    hub = pytest.importorskip("huggingface_hub", reason="models on the Hub need huggingface-hub")
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    snapshot.mkdir()
    asked: list[Any] = []

    class Api:
        def __init__(self, token: str | None) -> None:
            asked.append(token)

        def create_repo(self, repo_id: str, **options: Any) -> Any:
            return SimpleNamespace(repo_id=f"me/{repo_id}")

        def upload_folder(self, folder_path: str, **options: Any) -> str:
            asked.append(options)
            shutil.copytree(folder_path, blobs)
            for file in blobs.iterdir():
                (snapshot / file.name).symlink_to(file)
            return f"https://huggingface.co/{options['repo_id']}"

    def download(repo_id: str, **options: Any) -> str:
        asked.append((repo_id, options))
        return str(snapshot)

    monkeypatch.setattr(hub, "HfApi", Api)
    monkeypatch.setattr(hub, "snapshot_download", download)
    model = cldfast.Model(mlp(), SDE, "edm", shape=(2,))
    model.save_pretrained(tmp_path / "toy", push_to_hub=True, token="secret", branch="new")
    read = cldfast.Model.from_pretrained("me/toy", revision="new")
    assert torch.equal(draw(read), draw(model))
    token, upload, (name, options) = asked
    assert token == "secret" and upload["repo_id"] == "me/toy" and upload["revision"] == "new"
    assert name == "me/toy" and options == {"allow_patterns": [CONFIG, MODEL], "revision": "new"}


def test_what_cannot_be_written_or_read_is_refused(tmp_path: Path) -> None:
    def refused(
        message: str, net: Any, sde: Any = SDE, form: Any = "denoiser", **options: Any
    ) -> None:
        with pytest.raises(ValueError, match=message):
            cldfast.Model(net, sde, form, **({"shape": (2,)} | options)).save_pretrained(
                tmp_path / "no"
            )
        assert not (tmp_path / "no").exists()

    refused("net: expected a module to save, got function", lambda y, sigma: y)
    refused(r"shape: expected shape=\(d,\)", Own(), shape=None)
    refused("null of 'labels': expected a number to write", Own(), null={"labels": torch.zeros(3)})
    refused("only the schedules constant, linear", Own(), cldfast.CLD(beta=lambda t: 4.0))
    with pytest.raises(ValueError, match="expected a folder, or the name of a repository"):
        cldfast.Model.from_pretrained(tmp_path / "nowhere")
