"""A folder of images as rows: nothing of an image is kept but its path."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cldfast.extras import extra_module

IMAGES = (".png", ".jpg", ".jpeg")
# Bytes 0 to 255 of images are mapped to [-1, 1], where the networks and pictures have them.
HALF_BYTE = 127.5
_GREY_MODES = {"1", "L", "LA"}


def open_folder(folder: Path, size: int | None = None) -> tuple[ImageRows, Tensor | None]:
    """The images of a folder, in the order of their paths, and the classes that folders in it say.

    size: images are cut to squares about their centres and resized to this many pixels.

    Raises ValueError, in one line that names the file, for what are no images of one size.
    """
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
    numbers = {name: number for number, name in enumerate(sorted(set(classes)))}
    labels = torch.tensor([numbers[name] for name in classes], device="cpu") if classes else None
    return ImageRows(files, size), labels


class ImageRows:
    """Images of one size, which are read when they are asked for: grey where all are grey.

    The headers of all files are read at the start.

    Raises ValueError for images of several sizes, where no size is given.
    """

    def __init__(self, files: Sequence[Path], size: int | None) -> None:
        self.files, self.size, self.grey = files, size, True
        shape = None if size is None else (size, size)
        for path in files:
            with _opened(path) as image:
                self.grey = self.grey and image.mode in _GREY_MODES
                if size is None and shape not in (None, image.size):
                    raise ValueError(
                        f"{path}: {image.width} x {image.height} pixels, but {files[0].name} has "
                        f"{shape[0]} x {shape[1]}: give a size to which images are cut and resized"
                    )
                shape = shape or image.size
        assert shape is not None
        self.rows_shape = (len(files), 1 if self.grey else 3, shape[1], shape[0])

    def read(self, numbers: Sequence[int]) -> Tensor:
        """The images of these numbers, (n, C, H, W), float32 in [-1, 1]."""
        _, channels, height, width = self.rows_shape
        pixels = np.empty((len(numbers), height, width, channels), dtype=np.uint8)
        for row, number in zip(pixels, numbers, strict=True):
            row[:] = self._pixels(self.files[number]).reshape(row.shape)
        rows = torch.from_numpy(pixels).permute(0, 3, 1, 2).float().contiguous()
        return rows / HALF_BYTE - 1.0

    def _pixels(self, path: Path) -> Any:
        pillow = _pillow()
        _, _, height, width = self.rows_shape
        with _opened(path) as image:
            if self.size is None and image.size != (width, height):
                raise ValueError(f"{path}: its size has changed to {image.width} x {image.height}")
            try:
                plain = image.convert("L" if self.grey else "RGB")
            except (OSError, SyntaxError, ValueError) as error:
                raise ValueError(f"{path}: not a whole image: {error}") from None
        if self.size is not None:
            fit = extra_module("PIL.ImageOps", "images need Pillow").fit
            plain = fit(plain, (width, height), pillow.Resampling.LANCZOS)
        return np.asarray(plain)


def _pillow() -> Any:
    return extra_module("PIL.Image", "images need Pillow")


def _opened(path: Path) -> Any:
    pillow = _pillow()
    try:
        return pillow.open(path)
    except (OSError, SyntaxError, ValueError, pillow.DecompressionBombError) as error:
        raise ValueError(f"{path}: not an image: {error}") from None
