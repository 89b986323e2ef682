"""Pictures: what is drawn where, whole files only, no global matplotlib state."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from cldfast.lab import plots

IMAGES = torch.linspace(-1.5, 1.5, 20 * 64).reshape(20, 1, 8, 8)
POINTS = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
CURVES = {"em": ([10, 20, 50], [0.5, float("inf"), 0.1]), "sscs": ([10, 20, 50], [0.3, 0.1, 0.06])}

DRAWINGS = {
    "image_grid": lambda path: plots.image_grid(IMAGES, path, rows=3, columns=5),
    "scatter": lambda path: plots.scatter(POINTS, 2 * POINTS, path),
    "quality_curve": lambda path: plots.quality_curve(CURVES, 0.05, path, title="x"),
    "loss_curve": lambda path: plots.loss_curve(
        range(300), np.linspace(1, 0.1, 300).tolist(), path
    ),
}
EACH = pytest.mark.parametrize("draw", DRAWINGS.values(), ids=DRAWINGS.keys())


def pixels(path):
    from matplotlib.image import imread

    return imread(path)[:, :, :3]


@EACH
@pytest.mark.parametrize("suffix", [".png", ".pdf", ".svg"])
def test_pictures_are_written_whole(draw, suffix, tmp_path):
    path = tmp_path / f"picture{suffix}"
    draw(path)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    head = path.read_bytes()[:8]
    assert head.startswith(
        {".png": b"\x89PNG\r\n\x1a\n", ".pdf": b"%PDF", ".svg": b"<?xml"}[suffix]
    )
    if suffix == ".png":
        image = pixels(path)
        assert min(image.shape[:2]) > 300 and image.std() > 0.05


@EACH
def test_a_failed_write_leaves_the_old_file(draw, tmp_path, monkeypatch):
    path = tmp_path / "picture.png"
    path.write_bytes(b"old")

    def refuse(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="disk full"):
        draw(str(path))
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["picture.png"]


@EACH
def test_bad_paths_are_refused(draw, tmp_path):
    with pytest.raises(ValueError, match=r"directory .* does not exist"):
        draw(tmp_path / "nowhere" / "picture.png")
    with pytest.raises(ValueError, match=r"picture\.xyz: unknown format 'xyz'"):
        draw(tmp_path / "picture.xyz")
    assert list(tmp_path.iterdir()) == []


@EACH
def test_missing_matplotlib_names_the_extra(draw, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'cldfast\[demo\]'"):
        draw(tmp_path / "picture.png")


def test_pyplot_is_never_loaded(tmp_path):
    code = (
        "import sys, numpy as np\n"
        "from cldfast.lab import plots\n"
        "assert 'matplotlib' not in sys.modules\n"
        f"path = {str(tmp_path / 'p.png')!r}\n"
        "x = np.random.default_rng(0).standard_normal((9, 2))\n"
        "plots.image_grid(x.reshape(9, 1, 2, 1), path)\n"
        "plots.scatter(x, x, path)\n"
        "plots.quality_curve({'em': ([1, 2], [1.0, 2.0])}, 0.5, path)\n"
        "plots.loss_curve([1, 2], [1.0, -2.0], path)\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.parametrize("channels", [0, 1, 3])
def test_image_grid_puts_every_pixel_in_its_place(channels, tmp_path):
    """Read back, cell (r, c) holds image r * columns + c, and all the rest is white."""
    g = torch.Generator().manual_seed(0)
    images = torch.rand(5, max(channels, 1), 8, 8, generator=g) * 3 - 1.5
    plots.image_grid(
        images[:, 0] if channels == 0 else images, tmp_path / "g.png", rows=2, columns=3
    )
    picture = pixels(tmp_path / "g.png")
    zoom = picture.shape[0] // (2 * 9 + 1)
    assert picture.shape == (zoom * 19, zoom * 28, 3)
    small = picture[zoom // 2 :: zoom, zoom // 2 :: zoom]
    assert np.array_equal(small.repeat(zoom, axis=0).repeat(zoom, axis=1), picture)
    expected = np.ones((19, 28, 3))
    for i in range(5):
        top, left = 1 + 9 * (i // 3), 1 + 9 * (i % 3)
        cell = (images[i].clamp(-1, 1) + 1) / 2
        expected[top : top + 8, left : left + 8] = cell.permute(1, 2, 0).numpy()
    np.testing.assert_allclose(small, expected, atol=1 / 255)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda p: plots.image_grid(torch.zeros(4, 2, 8, 8), p), ValueError, r"got \(4, 2, 8, 8\)"),
        (lambda p: plots.image_grid(torch.zeros(8, 8), p), ValueError, r"got \(8, 8\)"),
        (lambda p: plots.image_grid(torch.zeros(0, 1, 8, 8), p), ValueError, r"got \(0, 1, 8, 8\)"),
        (lambda p: plots.image_grid(IMAGES, p, rows=0), ValueError, "at least 1, got 0 and 16"),
        (lambda p: plots.image_grid(IMAGES * np.inf, p), ValueError, "images: expected finite"),
        (lambda p: plots.image_grid("digits", p), TypeError, "images: expected a tensor .* str"),
        (
            lambda p: plots.scatter(torch.zeros(4, 3), POINTS, p),
            ValueError,
            r"samples: .* \(4, 3\)",
        ),
        (lambda p: plots.scatter(POINTS, POINTS[:0], p), ValueError, r"data: .* \(0, 2\)"),
        (lambda p: plots.quality_curve({}, None, p), ValueError, "series: expected at least one"),
        (lambda p: plots.quality_curve({"a": ([1], [])}, None, p), ValueError, "a: expected two"),
        (lambda p: plots.quality_curve({"a": ([1], [-1])}, None, p), ValueError, "a: expected pos"),
        (lambda p: plots.quality_curve({"a": ([0], [1])}, None, p), ValueError, "a: expected pos"),
        (lambda p: plots.quality_curve(CURVES, 0.0, p), ValueError, "floor: expected a positive"),
        (lambda p: plots.loss_curve([], [], p), ValueError, "expected one length"),
        (lambda p: plots.loss_curve([1, 2], [1.0], p), ValueError, "expected one length"),
        (lambda p: plots.loss_curve([1], [np.nan], p), ValueError, "losses: expected finite"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(call, error, message, tmp_path):
    with pytest.raises(error, match=message):
        call(tmp_path / "picture.png")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("floor", [None, 0.1])
def test_quality_curve_where_every_run_diverged(floor, tmp_path):
    lost = {"em": ([10, 20], [float("nan"), float("inf")])}
    plots.quality_curve(lost, floor, tmp_path / "q.png")
    assert (tmp_path / "q.png").exists()


@pytest.mark.parametrize("floor", [None, 0.1])
def test_quality_curve_of_a_single_run(floor, tmp_path):
    plots.quality_curve({"em": ([10], [0.1])}, floor, tmp_path / "q.png")
    assert (tmp_path / "q.png").exists()
