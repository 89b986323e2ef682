"""Rows of files and folders that are read when a training asks for them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

Change = Callable[[Tensor], Tensor]


class FileRows(Protocol):
    """Rows that are read when they are asked for."""

    @property
    def rows_shape(self) -> tuple[int, ...]:
        """Of all rows, (n, d) or (n, C, H, W)."""

    def read(self, numbers: Sequence[int]) -> Tensor:
        """The rows of these numbers, float32; ValueError for what cannot be read."""


class LazyRows(Dataset[Any]):
    """Rows of a file or folder as a `torch.utils.data.Dataset`, read and scaled when asked for.

    source: the file's rows. numbers: of those that are meant. change: what is done to rows.
    labels: (n,) of these rows, which then come with them; None for rows alone.
    """

    def __init__(
        self, source: FileRows, numbers: Tensor, change: Change, labels: Tensor | None = None
    ) -> None:
        self.source, self.numbers, self.change, self.labels = source, numbers, change, labels
        self.rows_shape = (len(numbers), *source.rows_shape[1:])

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> Any:
        rows = self.__getitems__([index])
        return rows[0] if self.labels is None else (rows[0][0], rows[1][0])

    def __getitems__(self, indices: list[int]) -> Any:
        """The rows of a batch at once, as PyTorch's loaders ask for them."""
        rows = self.change(self.source.read(self.numbers[indices].tolist()))
        return rows if self.labels is None else (rows, self.labels[indices])

    def loader(
        self, batch_size: int, workers: int = 0, labels: Tensor | None = None
    ) -> DataLoader[Any]:
        """Batches for a training, loaded ahead by so many processes, with these labels or none."""
        rows = LazyRows(self.source, self.numbers, self.change, labels)
        return DataLoader(rows, batch_size, num_workers=workers, collate_fn=_as_it_is)

    def tensor(self, most: int | None = None) -> Tensor:
        """All rows; or rows at equal distances, where all would be more than `most` numbers."""
        rows = len(self)
        if most is not None:
            rows = max(2, min(rows, most // math.prod(self.rows_shape[1:])))
        chosen = torch.arange(rows, device="cpu") * len(self) // rows
        return self.change(self.source.read(self.numbers[chosen].tolist()))


def _as_it_is(batch: Any) -> Any:
    return batch
