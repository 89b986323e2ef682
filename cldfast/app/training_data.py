"""The rows that a run is trained on and those held out, from what its config says of data."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from cldfast.app.data_files import open_data
from cldfast.app.lazy_rows import Change, LazyRows
from cldfast.lab.data import Digits, make_data
from cldfast.training.data_scale import DataScale

# Rows held out of a data set that is drawn; the digits bring their own test set.
HELD_OUT_ROWS = 2_000
# Of a file one row in ten is held out, and no more than the number above.
_HELD_OUT_SHARE = 10
# Numbers of rows in files that means are taken of: 256 MiB in float32.
_MOST_NUMBERS = 1 << 26


@dataclass(frozen=True)
class OpenedData:
    """Rows to train on, which may be read later; rows held out; labels (n,), int64, or None."""

    rows: Tensor | LazyRows
    held_out: Tensor
    labels: Tensor | None = None
    held_out_labels: Tensor | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one row."""
        return tuple(rows_shape(self.rows)[1:])

    @property
    def classes(self) -> int | None:
        """Number of classes: the largest label and those before it; None without labels."""
        if self.labels is None or self.held_out_labels is None:
            return None
        return 1 + int(torch.cat([self.labels, self.held_out_labels]).max())

    def some_rows(self) -> Tensor:
        """All rows, or of those in files as many as fit in 256 MiB: for means and deviations."""
        return self.rows.tensor(_MOST_NUMBERS) if isinstance(self.rows, LazyRows) else self.rows


@dataclass(frozen=True)
class TrainingData(OpenedData):
    """The same with all rows in memory."""

    rows: Tensor


def rows_shape(rows: Tensor | LazyRows) -> tuple[int, ...]:
    """The shape (n, d) or (n, C, H, W) of all rows."""
    return rows.rows_shape if isinstance(rows, LazyRows) else tuple(rows.shape)


def training_data(data: dict[str, Any]) -> TrainingData:
    """Rows to train on and rows held out, scaled, in memory; see `open_training_data`."""
    found = open_training_data(data)
    rows = found.rows.tensor() if isinstance(found.rows, LazyRows) else found.rows
    return TrainingData(rows, found.held_out, found.labels, found.held_out_labels)


def open_training_data(data: dict[str, Any]) -> OpenedData:
    """Rows to train on and rows held out, scaled.

    data: "name" and "dim" (see `cldfast.lab.data.make_data`), and for data that is drawn "rows" and
        "seed"; or "path" of a file or folder (see `cldfast.app.data_files`), "size" of its images,
        and the "seed" of what is held out. "scale" multiplies the rows, or "standardised" says how
        they are standardised.

    Raises ValueError for an unknown name, bad values, or a file that cannot be read.
    """
    if data.get("standardised") is not None:
        change: Change = DataScale(**data["standardised"]).standardise
    else:
        change = partial(torch.mul, other=data.get("scale", 1.0))
    if "path" in data:
        return _from_file(data, change)
    found = _of_ours(data)
    return replace(found, rows=change(found.rows), held_out=change(found.held_out))


def _of_ours(data: dict[str, Any]) -> TrainingData:
    source = make_data(str(data.get("name")), data.get("dim"))
    if isinstance(source, Digits):
        return TrainingData(source.train_x, source.test_x, source.train_y, source.test_y)
    seed = data.get("seed", 0)
    rows = source.sample(data.get("rows", 50_000), seed)
    return TrainingData(rows, source.sample(HELD_OUT_ROWS, seed + 1))


def _from_file(data: dict[str, Any], change: Change) -> OpenedData:
    source, labels = open_data(data["path"], data.get("size"))
    count = source.rows_shape[0]
    if count < _HELD_OUT_SHARE:
        raise ValueError(f"{data['path']}: expected at least {_HELD_OUT_SHARE} rows, got {count}")
    generator = torch.Generator().manual_seed(data.get("seed", 0))
    order = torch.randperm(count, generator=generator, device="cpu")
    held_out, kept = order.tensor_split([min(HELD_OUT_ROWS, count // _HELD_OUT_SHARE)])
    kept = kept.sort().values
    aside = change(source.read(held_out.tolist()))
    if labels is None:
        return OpenedData(LazyRows(source, kept, change), aside)
    return OpenedData(LazyRows(source, kept, change), aside, labels[kept], labels[held_out])
