"""The rows that a run is trained on and those held out, from what its config says of data."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from cldfast.app.data_files import read_data
from cldfast.lab.data import Digits, make_data
from cldfast.training.data_scale import DataScale

# Rows held out of a data set that is drawn; the digits bring their own test set.
HELD_OUT_ROWS = 2_000
# Of a file one row in ten is held out, and no more than the number above.
_HELD_OUT_SHARE = 10


@dataclass(frozen=True)
class TrainingData:
    """Rows to train on and rows held out, with their labels (n,), int64, or None."""

    rows: Tensor
    held_out: Tensor
    labels: Tensor | None = None
    held_out_labels: Tensor | None = None

    @property
    def classes(self) -> int | None:
        """Number of classes: the largest label and those before it; None without labels."""
        if self.labels is None or self.held_out_labels is None:
            return None
        return 1 + int(torch.cat([self.labels, self.held_out_labels]).max())


def training_data(data: dict[str, Any]) -> TrainingData:
    """Rows to train on and rows held out, scaled.

    data: "name" and "dim" (see `cldfast.lab.data.make_data`), and for data that is drawn "rows" and
        "seed"; or "path" of a file or folder (see `cldfast.app.data_files`), "size" of its images,
        and the "seed" of what is held out. "scale" multiplies the rows, or "standardised" says how
        they are standardised.

    Raises ValueError for an unknown name, bad values, or a file that cannot be read.
    """
    found = _from_file(data) if "path" in data else _of_ours(data)
    if data.get("standardised") is not None:
        change = DataScale(**data["standardised"]).standardise
    else:
        factor = data.get("scale", 1.0)

        def change(rows: Tensor) -> Tensor:
            return rows * factor

    return replace(found, rows=change(found.rows), held_out=change(found.held_out))


def _of_ours(data: dict[str, Any]) -> TrainingData:
    source = make_data(str(data.get("name")), data.get("dim"))
    if isinstance(source, Digits):
        return TrainingData(source.train_x, source.test_x, source.train_y, source.test_y)
    seed = data.get("seed", 0)
    rows = source.sample(data.get("rows", 50_000), seed)
    return TrainingData(rows, source.sample(HELD_OUT_ROWS, seed + 1))


def _from_file(data: dict[str, Any]) -> TrainingData:
    read = read_data(data["path"], data.get("size"))
    count = len(read.rows)
    if count < _HELD_OUT_SHARE:
        raise ValueError(f"{data['path']}: expected at least {_HELD_OUT_SHARE} rows, got {count}")
    generator = torch.Generator().manual_seed(data.get("seed", 0))
    order = torch.randperm(count, generator=generator, device="cpu")
    held_out, kept = order.tensor_split([min(HELD_OUT_ROWS, count // _HELD_OUT_SHARE)])
    kept = kept.sort().values
    if read.labels is None:
        return TrainingData(read.rows[kept], read.rows[held_out])
    return TrainingData(
        read.rows[kept], read.rows[held_out], read.labels[kept], read.labels[held_out]
    )
