"""How a shard lies on disk: a safetensors file, a part of one .npy file, or a folder of PNGs."""

from __future__ import annotations

import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cldfast.extras import extra_module
from cldfast.files import read_tensors, write_atomic, write_tensors


class ShardFiles(ABC):
    """The files of a folder's n samples of one shape."""

    def __init__(self, folder: Path, n: int, shape: tuple[int, ...]) -> None:
        self.folder, self.n, self.shape = folder, n, shape

    @abstractmethod
    def path(self, shard: int) -> Path:
        """What is there when, and only when, a shard is."""

    def has(self, shard: int) -> bool:
        """Whether a shard is there, as a whole."""
        return self.path(shard).exists()

    @abstractmethod
    def write(self, shard: int, first: int, rows: Tensor, labels: Tensor | None) -> None:
        """Write a shard whose first sample has the number `first`; OSError leaves none of it."""

    @abstractmethod
    def read(self, shard: int, first: int, count: int) -> Tensor:
        """The rows of a shard, float32."""

    def remove_leftovers(self, shard: int) -> None:
        """Remove what a killed process left of a shard beside its target."""
        for path in self.folder.glob(f".{self.path(shard).name}.*.tmp"):
            _remove(path)

    def finish(self, shards: int) -> None:  # noqa: B027, most formats have nothing to do
        """When all shards are there."""


class _Safetensors(ShardFiles):
    """`shard-000000.safetensors` with `samples`, and `labels` where there are some."""

    def path(self, shard: int) -> Path:
        return self.folder / f"shard-{shard:06d}.safetensors"

    def write(self, shard: int, first: int, rows: Tensor, labels: Tensor | None) -> None:
        tensors = {"samples": rows} | ({} if labels is None else {"labels": labels})
        write_tensors(self.path(shard), tensors, {"first_index": first})

    def read(self, shard: int, first: int, count: int) -> Tensor:
        return read_tensors(self.path(shard))[0]["samples"]


class _Npy(ShardFiles):
    """One array `samples.npy` (n, ...), and `labels.npy` (n,), which `np.load` can map.

    Their room is taken at the start. Until all shards are there they have other names, and
    `shard-000000.done` says that one is.
    """

    def path(self, shard: int) -> Path:
        return self.folder / f"shard-{shard:06d}.done"

    def has(self, shard: int) -> bool:
        return (self.folder / "samples.npy").exists() or self.path(shard).exists()

    def write(self, shard: int, first: int, rows: Tensor, labels: Tensor | None) -> None:
        self._put("samples", first, rows.float().contiguous().numpy(), self.shape)
        if labels is not None:
            self._put("labels", first, labels.contiguous().numpy(), ())
        write_atomic(self.path(shard), b"")

    def _put(self, name: str, first: int, rows: Any, shape: tuple[int, ...]) -> None:
        made = BytesIO()
        values = {"descr": rows.dtype.str, "fortran_order": False, "shape": (self.n, *shape)}
        np.lib.format.write_array_header_1_0(made, values)
        header, width = made.getvalue(), rows.nbytes // len(rows)
        handle = os.open(self.folder / f".{name}.npy.part", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            # Where there is no room, the error comes now and not from a mapped page later.
            os.posix_fallocate(handle, 0, len(header) + self.n * width)
            os.pwrite(handle, header, 0)
            at, view = len(header) + first * width, memoryview(rows.tobytes())
            while view:
                written = os.pwrite(handle, view, at)
                view, at = view[written:], at + written
            os.fsync(handle)
        finally:
            os.close(handle)

    def read(self, shard: int, first: int, count: int) -> Tensor:
        whole = np.load(self.folder / "samples.npy", mmap_mode="r")
        return torch.from_numpy(whole[first : first + count].copy())

    def finish(self, shards: int) -> None:
        for name in ("labels", "samples"):  # the second one tells that all is there
            with suppress(FileNotFoundError):  # no labels, or another process was faster
                os.replace(self.folder / f".{name}.npy.part", self.folder / f"{name}.npy")
        for shard in range(shards):
            self.path(shard).unlink(missing_ok=True)


class _Png(ShardFiles):
    """`shard-000000/000000012.png` for sample 12, or `000000012-3.png` with the label 3.

    Numbers in [-1, 1] become bytes; others are clipped.
    """

    def __init__(self, folder: Path, n: int, shape: tuple[int, ...]) -> None:
        super().__init__(folder, n, shape)
        if len(shape) != 3 or shape[0] not in (1, 3):
            raise ValueError(f"PNG files: expected images (1 or 3, H, W), got {shape}")
        self._pillow = extra_module("PIL.Image", "PNG files need Pillow")

    def path(self, shard: int) -> Path:
        return self.folder / f"shard-{shard:06d}"

    def write(self, shard: int, first: int, rows: Tensor, labels: Tensor | None) -> None:
        target = self.path(shard)
        beside = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        levels = ((rows.float().clamp(-1.0, 1.0) + 1.0) * 127.5).round().to(torch.uint8)
        pixels = levels.movedim(1, -1).numpy()
        try:
            beside.mkdir()
            for index, image in enumerate(pixels):
                label = "" if labels is None else f"-{int(labels[index])}"
                with open(beside / f"{first + index:09d}{label}.png", "wb") as file:
                    self._pillow.fromarray(
                        image.squeeze(-1) if image.shape[2] == 1 else image
                    ).save(file, "PNG")
                    file.flush()
                    os.fsync(file.fileno())
            os.rename(beside, target)
        finally:
            _remove(beside)

    def read(self, shard: int, first: int, count: int) -> Tensor:
        return torch.stack(list(self._images(shard)))

    def _images(self, shard: int) -> Iterator[Tensor]:
        for path in sorted(self.path(shard).glob("*.png")):
            with self._pillow.open(path) as image:
                pixels = torch.from_numpy(np.array(image)).float() / 127.5 - 1.0
            yield pixels[None] if pixels.ndim == 2 else pixels.movedim(-1, 0)


FORMATS: dict[str, type[ShardFiles]] = {"safetensors": _Safetensors, "npy": _Npy, "png": _Png}


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
