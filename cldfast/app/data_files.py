"""Data from files: arrays of numbers (.npy, .npz, .safetensors), or a folder of images."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cldfast.app.image_folder import HALF_BYTE, open_folder
from cldfast.app.lazy_rows import FileRows
from cldfast.files import PathLike, read_tensors

ARRAYS = (".npy", ".npz", ".safetensors")
# The array of this name holds the classes of the rows, where a file has several arrays.
LABELS = "labels"


@dataclass(frozen=True)
class DataFile:
    """Rows (n, d) or (n, C, H, W), float32, and their labels (n,), int64 from 0 on, or None."""

    rows: Tensor
    labels: Tensor | None = None


def read_data(path: PathLike, size: int | None = None) -> DataFile:
    """All rows of what `open_data` opens."""
    source, labels = open_data(path, size)
    return DataFile(source.read(range(source.rows_shape[0])), labels)


def open_data(path: PathLike, size: int | None = None) -> tuple[FileRows, Tensor | None]:
    """The rows of an array file, mapped into memory, or of a folder of images, and their labels.

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
        return open_folder(source, size)
    if not source.is_file():
        raise ValueError(f"{source}: expected a file or a folder of images, found nothing")
    if source.suffix not in ARRAYS:
        raise ValueError(
            f"{source}: expected an array file ({', '.join(ARRAYS)}) or a folder of images"
        )
    with _naming(source):
        array, labels = _arrays(source)
        rows = _ArrayRows(array, source)
        return rows, None if labels is None else as_labels(labels, rows.rows_shape[0])


class _ArrayRows:
    """Rows of an array, which may lie in a file that is mapped."""

    def __init__(self, array: Any, path: Path) -> None:
        _check_shape(array)
        self.array, self.path = array, path
        self.rows_shape = (len(array), *as_rows(array[:1]).shape[1:])

    def read(self, numbers: Sequence[int]) -> Tensor:
        whole = isinstance(numbers, range) and numbers == range(len(self.array))
        with _naming(self.path):
            return as_rows(self.array if whole else self.array[list(numbers)])


@contextmanager
def _naming(source: Path) -> Iterator[None]:
    """Turns the errors of a broken file into ValueErrors that name it."""
    try:
        yield
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
    _check_shape(array)
    if array.ndim == 4 and array.dtype == torch.uint8 and array.shape[3] in (1, 3):
        array = array.permute(0, 3, 1, 2)
    elif array.ndim == 3:
        array = array[:, None]
    rows = array.float().contiguous()
    if array.dtype == torch.uint8:
        return rows / HALF_BYTE - 1.0
    if not bool(rows.isfinite().all()):
        raise ValueError("expected finite numbers")
    return rows


def _check_shape(array: Any) -> None:
    if array.ndim not in (2, 3, 4) or 0 in array.shape:
        raise ValueError(f"expected (n, d), (n, H, W) or (n, C, H, W), got {tuple(array.shape)}")


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
