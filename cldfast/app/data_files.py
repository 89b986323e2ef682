"""Data from files: arrays of numbers (.npy, .npz, .safetensors), or a folder of images."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cldfast.extras import extra_module
from cldfast.files import PathLike, read_tensors

ARRAYS = (".npy", ".npz", ".safetensors")
IMAGES = (".png", ".jpg", ".jpeg")
# The array of this name holds the classes of the rows, where a file has several arrays.
LABELS = "labels"
# Bytes 0 to 255 of images are mapped to [-1, 1], where the networks and pictures have them.
_HALF_BYTE = 127.5
_GREY_MODES = {"1", "L", "LA"}


@dataclass(frozen=True)
class DataFile:
    """Rows (n, d) or (n, C, H, W), float32, and their labels (n,), int64 from 0 on, or None."""

    rows: Tensor
    labels: Tensor | None = None


def read_data(path: PathLike, size: int | None = None) -> DataFile:
    """Read an array file or a folder of images.

    An array is (n, d), (n, H, W) of grey or (n, C, H, W); bytes are images, also (n, H, W, C), and
    become numbers in [-1, 1]. A file of several arrays has one of rows, and perhaps one that is
    named "labels". A folder has images (PNG, JPEG) of one size, in itself or in a folder for each
    class; classes are numbered by their sorted names.

    size: of folders, images are cut to squares about their centres and resized to this many pixels.

    Raises ValueError, in one line that names the file, for what holds no such data; ImportError for
    images without Pillow.
    """
    source = Path(path)
    if size is not None and not source.is_dir():
        raise ValueError(f"{source}: a size goes with a folder of images")
    if source.is_dir():
        return _read_folder(source, size)
    if not source.is_file():
        raise ValueError(f"{source}: expected a file or a folder of images, found nothing")
    if source.suffix not in ARRAYS:
        raise ValueError(
            f"{source}: expected an array file ({', '.join(ARRAYS)}) or a folder of images"
        )
    try:
        rows, labels = _arrays(source)
        return DataFile(as_rows(rows), None if labels is None else as_labels(labels, len(rows)))
    except (ValueError, TypeError, EOFError, OSError, zipfile.BadZipFile) as error:
        text = " ".join(str(error).split())
        located = text if text.startswith(str(source)) else f"{source}: {text}"
        raise ValueError(located) from error


def _arrays(source: Path) -> tuple[Any, Any]:
    """The rows and labels of a file as they are in it; of arrays alone nothing is unpickled."""
    if source.suffix == ".npy":
        return np.load(source, mmap_mode="r", allow_pickle=False), None
    if source.suffix == ".npz":
        with np.load(source, allow_pickle=False) as file:
            return _chosen({name: file[name] for name in file.files})
    return _chosen(read_tensors(source)[0])


def _chosen(arrays: Mapping[str, Any]) -> tuple[Any, Any]:
    rows = [name for name, array in arrays.items() if name != LABELS and array.ndim >= 2]
    if len(rows) != 1:
        raise ValueError(
            f"expected one array of rows and perhaps {LABELS!r}, got {', '.join(arrays) or 'none'}"
        )
    return arrays[rows[0]], arrays.get(LABELS)


def as_rows(values: Any) -> Tensor:
    """Numbers as float32 rows; bytes are images and go to [-1, 1]. ValueError for other shapes."""
    array = torch.from_numpy(np.array(values)) if isinstance(values, np.ndarray) else values
    if array.dtype.is_complex or array.dtype == torch.bool:
        raise ValueError(f"expected an array of numbers, got {array.dtype}")
    if array.ndim == 4 and array.dtype == torch.uint8 and array.shape[3] in (1, 3):
        array = array.permute(0, 3, 1, 2)
    elif array.ndim == 3:
        array = array[:, None]
    if array.ndim not in (2, 4) or array.numel() == 0:
        raise ValueError(f"expected (n, d), (n, H, W) or (n, C, H, W), got {tuple(array.shape)}")
    rows = array.float().contiguous()
    if array.dtype == torch.uint8:
        return rows / _HALF_BYTE - 1.0
    if not bool(rows.isfinite().all()):
        raise ValueError("expected finite numbers")
    return rows


def as_labels(values: Any, count: int) -> Tensor:
    """Whole numbers (count,) from 0 on as int64; ValueError for others."""
    labels = torch.from_numpy(np.array(values)) if isinstance(values, np.ndarray) else values
    if labels.dtype.is_floating_point or labels.dtype.is_complex or labels.shape != (count,):
        raise ValueError(
            f"{LABELS}: expected {count} whole numbers, got {tuple(labels.shape)} of {labels.dtype}"
        )
    labels = labels.long()
    if bool((labels < 0).any()):
        raise ValueError(f"{LABELS}: expected whole numbers from 0 on, got {int(labels.min())}")
    return labels


def _read_folder(folder: Path, size: int | None) -> DataFile:
    if size is not None and size < 1:
        raise ValueError(f"size: expected at least 1 pixel, got {size}")
    files = sorted(
        path for path in folder.rglob("*") if path.suffix.lower() in IMAGES and path.is_file()
    )
    if not files:
        raise ValueError(f"{folder}: expected images ({', '.join(IMAGES)}), found none")
    classes = [path.relative_to(folder).parts[0] for path in files if path.parent != folder]
    if classes and len(classes) < len(files):
        raise ValueError(f"{folder}: expected images in it or in folders of classes, found both")
    names = sorted(set(classes))
    labels = (
        torch.tensor([names.index(name) for name in classes], device="cpu") if classes else None
    )
    pixels = _read_images(files, size)
    return DataFile(as_rows(pixels), labels)


def _read_images(files: Sequence[Path], size: int | None) -> Any:
    """Images of one size as bytes (n, H, W, C): grey where all are grey, else colour."""
    pillow = extra_module("PIL.Image", "images need Pillow")
    fit = extra_module("PIL.ImageOps", "images need Pillow").fit
    shape, grey = None, True
    for path in files:  # headers only
        with _opened(pillow, path) as image:
            grey = grey and image.mode in _GREY_MODES
            if size is None and shape not in (None, image.size):
                raise ValueError(
                    f"{path}: {image.width} x {image.height} pixels, but {files[0].name} has "
                    f"{shape[0]} x {shape[1]}: give a size to which images are cut and resized"
                )
            shape = image.size if size is None else (size, size)
    assert shape is not None
    pixels = np.empty((len(files), shape[1], shape[0], 1 if grey else 3), dtype=np.uint8)
    for row, path in zip(pixels, files, strict=True):
        with _opened(pillow, path) as image:
            try:
                plain = image.convert("L" if grey else "RGB")
            except (OSError, SyntaxError, ValueError) as error:
                raise ValueError(f"{path}: not a whole image: {error}") from None
            if size is not None:
                plain = fit(plain, shape, pillow.Resampling.LANCZOS)
            row[:] = np.asarray(plain).reshape(row.shape)
    return pixels


def _opened(pillow: Any, path: Path) -> Any:
    try:
        return pillow.open(path)
    except (OSError, SyntaxError, ValueError, pillow.DecompressionBombError) as error:
        raise ValueError(f"{path}: not an image: {error}") from None
