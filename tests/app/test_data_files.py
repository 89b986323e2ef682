"""Data from files: what is read, and one line for what cannot be."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("safetensors")
pytest.importorskip("PIL", reason="images need Pillow")

from cldfast.app.cli import main
from cldfast.app.data_files import open_data, read_data
from cldfast.app.lazy_rows import LazyRows
from cldfast.app.training_data import open_training_data, training_data
from cldfast.files import write_tensors
from cldfast.lab.models import build_model
from cldfast.model.run_folder import load_run
from cldfast.process.sde import sde_from_config
from cldfast.training import TrainConfig, Trainer

Image = importlib.import_module("PIL.Image")
POINTS = np.arange(24.0).reshape(12, 2)
PIXELS = np.arange(12 * 8 * 8, dtype=np.uint8).reshape(12, 8, 8)
LABELS = np.arange(12) % 3


def saved(pixels: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def test_arrays(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", POINTS)
    assert torch.equal(read_data(tmp_path / "a.npy").rows, torch.from_numpy(POINTS).float())
    np.savez(tmp_path / "a.npz", samples=POINTS, labels=LABELS, settings=np.array("{}"))
    read = read_data(tmp_path / "a.npz")
    assert torch.equal(read.rows, torch.from_numpy(POINTS).float())
    assert read.labels is not None and read.labels.tolist() == LABELS.tolist()
    write_tensors(tmp_path / "a.safetensors", {"x": torch.from_numpy(POINTS)})
    assert read_data(tmp_path / "a.safetensors").rows.shape == (12, 2)
    # Bytes are images: 0 is -1 and 255 is 1, and channels may be last.
    np.save(tmp_path / "grey.npy", PIXELS)
    grey = read_data(tmp_path / "grey.npy").rows
    assert grey.shape == (12, 1, 8, 8)
    np.testing.assert_allclose(grey[:, 0], PIXELS / 127.5 - 1.0, atol=1e-6)
    np.save(tmp_path / "colour.npy", np.stack([PIXELS] * 3, axis=-1))
    assert torch.equal(read_data(tmp_path / "colour.npy").rows, grey.expand(-1, 3, -1, -1))


def test_folders(tmp_path: Path) -> None:
    for number, pixels in enumerate(PIXELS):
        saved(pixels, tmp_path / "plain" / f"{number:02}.png")
        saved(pixels, tmp_path / "classes" / "cba"[number % 3] / f"{number:02}.PNG")
    read = read_data(tmp_path / "plain")
    np.testing.assert_allclose(read.rows[:, 0], PIXELS / 127.5 - 1.0, atol=1e-6)
    assert read.labels is None
    classes = read_data(tmp_path / "classes")
    assert classes.labels is not None and classes.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert torch.equal(classes.rows[0], read.rows[2])  # "a" has the images 2, 5, 8, 11
    colour = np.zeros((6, 10, 3), dtype=np.uint8)
    colour[..., 0] = 255
    saved(colour, tmp_path / "plain" / "red.jpg")
    mixed = read_data(tmp_path / "plain", size=4).rows
    assert mixed.shape == (13, 3, 4, 4)
    red = torch.tensor([1.0, -1.0, -1.0])[:, None, None].expand(3, 4, 4)
    torch.testing.assert_close(mixed[-1], red, atol=0.02, rtol=0.0)  # JPEG is not exact


def test_what_cannot_be_read(tmp_path: Path) -> None:
    def refused(name: str, word: str, **options: Any) -> None:
        with pytest.raises(ValueError) as caught:
            read_data(tmp_path / name, **options)
        text = str(caught.value)
        assert text.startswith(str(tmp_path)) and word in text and "\n" not in text, text

    refused("nothing.npy", "found nothing")
    (tmp_path / "text.txt").write_text("1 2")
    refused("text.txt", "expected an array file")
    for name in ("cut.npy", "cut.npz", "cut.safetensors"):
        (tmp_path / name).write_bytes(b"\x93NUMPY")
        refused(name, name)
    np.save(tmp_path / "objects.npy", np.array([{}, {}]), allow_pickle=True)
    refused("objects.npy", "objects")
    np.save(tmp_path / "nan.npy", np.array([[1.0, np.nan]]))
    refused("nan.npy", "finite")
    np.save(tmp_path / "flat.npy", np.arange(5.0))
    refused("flat.npy", "(5,)")
    refused("flat.npy", "size goes with a folder", size=8)
    np.savez(tmp_path / "two.npz", a=POINTS, b=POINTS)
    refused("two.npz", "got a, b")
    np.savez(tmp_path / "labels.npz", a=POINTS, labels=LABELS[:4])
    refused("labels.npz", "12 whole numbers")
    (tmp_path / "empty").mkdir()
    refused("empty", "found none")
    saved(PIXELS[0], tmp_path / "sizes" / "a.png")
    saved(PIXELS[0, :4], tmp_path / "sizes" / "b.png")
    refused("sizes/", "8 x 4")
    saved(PIXELS[0], tmp_path / "both" / "b" / "b.png")
    saved(PIXELS[0], tmp_path / "both" / "a.png")
    refused("both", "found both")
    (tmp_path / "both" / "a.png").write_bytes(b"no image")
    (tmp_path / "both" / "b" / "b.png").unlink()
    refused("both", "not an image")


def test_a_run_on_images_of_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Trained with the labels that the folders say; the run folder finds its data again."""
    for number, pixels in enumerate(PIXELS):
        saved(pixels, tmp_path / "data" / "ab"[number % 2] / f"{number}.png")
    run = tmp_path / "run"
    small = ["--width", "8", "--batch-size", "4", "--steps", "2", "--quiet", "--conditional"]
    assert main(["train", "--data", str(tmp_path / "data"), "--out", str(run), *small]) == 0
    net, _, config = load_run(run)
    assert config.shape == (1, 8, 8) and config.data is not None
    assert config.model["classes"] == 2 and config.train["label_dropout"] == 0.1
    data = training_data(config.data)
    assert data.rows.shape == (11, 1, 8, 8) and data.held_out.shape == (1, 1, 8, 8)
    torch.testing.assert_close(data.rows.mean(), torch.tensor(0.0), atol=1e-5, rtol=0.0)
    with torch.no_grad():
        made = net(data.rows[:2], torch.zeros(2), torch.tensor([0, 1]))
    assert made.shape == (2, 1, 8, 8)
    assert main(["sample", str(run), "-n", "3", "--steps", "3", "--no-picture"]) == 0
    capsys.readouterr()
    for options, word in (
        (["funnel", "--conditional"], "no labels"), (["digits", "--size", "8"], "--size"),
        (["--data", str(tmp_path / "data"), "--dim", "3"], "--dim"), (["moons"], "funnel"),
        (["--data", str(tmp_path / "data"), "--size", "6"], "--size"),
        (["digits", "--data", str(tmp_path / "data")], "once"),
        (["funnel", "--label-dropout", "0.1"], "--conditional"),
        (["funnel", "--flip"], "images"), (["funnel", "--workers", "1", *small[:-1]], "in memory"),
    ):  # fmt: skip
        assert main(["train", *options, "--out", str(tmp_path / "no")]) == 2
        assert word in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


def test_a_training_reads_the_rows_of_files_when_it_asks_for_them(tmp_path: Path) -> None:
    """The weights of rows in memory, bit for bit, also where other processes read, with labels."""
    for number, pixels in enumerate(np.tile(PIXELS, (2, 1, 1))):
        saved(pixels, tmp_path / "data" / "ab"[number % 2] / f"{number:02}.png")
    options = ["train", "--data", str(tmp_path / "data"), "--width", "8", "--batch-size", "4"]
    options += ["--steps", "3", "--quiet", "--conditional", "--flip"]
    for name, more in (("here", []), ("ahead", ["--workers", "2"])):
        assert main([*options, "--out", str(tmp_path / name), *more]) == 0
    config = load_run(tmp_path / "here")[2]
    assert config.data is not None and config.train is not None
    lazy, whole = open_training_data(config.data), training_data(config.data)
    assert isinstance(lazy.rows, LazyRows) and lazy.shape == (1, 8, 8)
    assert torch.equal(lazy.rows.tensor(), whole.rows) and whole.labels is not None
    some = lazy.rows.tensor(most=6 * 64)  # rows at equal distances
    assert torch.equal(some, whole.rows[[22 * k // 6 for k in range(6)]])
    torch.manual_seed(0)
    net = build_model(config.model)
    settings = TrainConfig.from_dict(config.train)
    memory = Trainer(net, sde_from_config(config.sde), (whole.rows, whole.labels), settings)
    made = memory.fit().state_dict()
    for name in ("here", "ahead"):
        for key, value in load_run(tmp_path / name)[0].state_dict().items():
            assert torch.equal(value, made[key]), (name, key)


def test_arrays_are_mapped(tmp_path: Path) -> None:
    """What is written into a file that is open already is seen."""
    np.save(tmp_path / "a.npy", POINTS)
    write_tensors(tmp_path / "a.safetensors", {"x": torch.from_numpy(POINTS)})
    for name in ("a.npy", "a.safetensors"):
        source, labels = open_data(tmp_path / name)
        assert source.rows_shape == (12, 2) and labels is None
        np.testing.assert_array_equal(source.read([3, 1]), POINTS[[3, 1]].astype(np.float32))
        with open(tmp_path / name, "r+b") as file:
            file.seek(-8, os.SEEK_END)
            file.write(np.float64(7.0).tobytes())
        assert source.read([11])[0, 1] == 7.0
