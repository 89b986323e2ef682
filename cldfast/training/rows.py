"""The rows of each step, whatever holds them: tensors, a data set, a function or an iterable.

The order of a data set is made from the seed, the epoch and the number of a row, so it is the same
for any number of processes, and a resumed run finds its place without reading what is behind it.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, SequentialSampler

from cldfast import kernels
from cldfast.kernels import NoiseAddress, Stream

# Rows, or rows with their labels.
Rows = Tensor | tuple[Tensor, Tensor]
Batches = Callable[[int], Rows]
Batch = tuple[Tensor, Tensor | None]


@runtime_checkable
class Dataset(Protocol):
    """A `torch.utils.data.Dataset` of rows, or of pairs of a row and its label.

    One that says the shape of all its rows as `rows_shape` is told apart from others on resuming.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


@dataclass(frozen=True)
class Taken:
    """Which rows are taken: `share` of each batch of `size`, in the order of a seed."""

    seed: int
    size: int
    share: slice

    @property
    def count(self) -> int:
        """Rows of one batch."""
        return self.share.stop - self.share.start

    def first(self, step: int) -> int:
        """The global number of this process's first row in a step."""
        return step * self.size + self.share.start


class RowSource(Protocol):
    """Rows by step. shape: of the whole data, for a checkpoint; None where that is unknown."""

    @property
    def shape(self) -> list[int] | None: ...

    def at(self, step: int) -> Batch:
        """This process's rows of a step, from 0, and their labels, if they have some."""


def row_source(
    data: object, taken: Taken, *, workers: int = 0, pinned: bool = False, independent: bool = False
) -> RowSource:
    """What gives the rows of a training; see `cldfast.training.Trainer` for the kinds of data.

    workers: processes that load the rows of a data set ahead. pinned: load into memory that a GPU
    copies from while it computes. independent: draw every row of all rows, and not each one once an
    epoch; only data whose rows have numbers can do so.

    Raises TypeError or ValueError for what holds no rows.
    """
    order = Draws if independent else Order
    if isinstance(data, Tensor | tuple):
        return _TensorRows(data, taken, order)
    if isinstance(data, DataLoader):
        if type(data.sampler) in (RandomSampler, SequentialSampler):
            if not independent and data.batch_size not in (taken.size, taken.count):
                raise ValueError(
                    f"data: expected a loader of batches of {taken.size}, as the settings have it, "
                    f"got {data.batch_size}"
                )
            pinned = data.pin_memory or pinned
            return _DatasetRows(
                data.dataset, taken, data.num_workers, pinned, data.collate_fn, order,
                data.worker_init_fn,
            )  # fmt: skip
    elif isinstance(data, Dataset) and not isinstance(data, list | str | dict | IterableDataset):
        return _DatasetRows(data, taken, workers, pinned, None, order)
    if independent:
        raise TypeError(
            "reference: expected data whose rows can be drawn, a tensor, a pair of tensors, a "
            f"Dataset or a DataLoader of one, got {type(data).__name__}"
        )
    if callable(data):
        return _FunctionRows(data, taken)
    if isinstance(data, Iterable) and not isinstance(data, list | str | dict):
        return _IterableRows(data, taken)
    raise TypeError(
        "data: expected a tensor, a pair of tensors, a Dataset, a DataLoader, a function of the "
        f"step or an iterable of batches, got {type(data).__name__}"
    )


class Order:
    """The order of `rows` rows in each epoch, by their addressed words: alike on any machine."""

    def __init__(self, rows: int, seed: int, device: torch.device | str = "cpu") -> None:
        self.rows, self.seed, self.device = rows, seed, device
        self._kept: tuple[int, Tensor] | None = None

    def indices(self, first: int, count: int) -> Tensor:
        """Row numbers (count,), int64, of the draws from number `first` on."""
        epoch, offset = divmod(first, self.rows)
        parts = [self._epoch(epoch)[offset : offset + count]]
        while (missing := count - sum(map(len, parts))) > 0:
            epoch += 1
            parts.append(self._epoch(epoch)[:missing])
        return torch.cat(parts)

    def _epoch(self, epoch: int) -> Tensor:
        if self._kept is None or self._kept[0] != epoch:
            address = NoiseAddress(self.seed, epoch * self.rows, stream=Stream.DATA_ORDER)
            high, low = kernels.pair_words(address, self.rows)
            order = torch.argsort((high << 31) | (low >> 1), stable=True)
            self._kept = epoch, order.to(self.device)
        return self._kept[1]


class Draws(Order):
    """Rows drawn independently, each of all rows, by their addressed words."""

    def indices(self, first: int, count: int) -> Tensor:
        address = NoiseAddress(self.seed, first, stream=Stream.DATA_ORDER)
        return (kernels.uniforms(address, count) * self.rows).long().to(self.device)


class _TensorRows:
    def __init__(self, data: Rows, taken: Taken, order: type[Order]) -> None:
        self.rows, self.labels = parted(data)
        check_rows("data", self.rows, self.labels)
        self.shape = list(self.rows.shape)
        self.taken = taken
        self.order = order(len(self.rows), taken.seed, self.rows.device)

    def at(self, step: int) -> Batch:
        chosen = self.order.indices(self.taken.first(step), self.taken.count)
        return self.rows[chosen], None if self.labels is None else self.labels[chosen]


class _DatasetRows:
    """Rows of a map-style data set, loaded by PyTorch's loader in our order."""

    def __init__(
        self,
        data: Any,
        taken: Taken,
        workers: int,
        pinned: bool,
        collate: Any | None,
        order: type[Order],
        begin: Any | None = None,
    ) -> None:
        if len(data) < 1:
            raise ValueError("data: expected a data set with rows, got none")
        self.data, self.taken = data, taken
        self.shape = list(getattr(data, "rows_shape", [len(data)]))
        self.options: dict[str, Any] = {
            "num_workers": workers,
            "pin_memory": pinned,
            "collate_fn": collate,
            # A loader draws a seed for its workers, which must not come from the network's state.
            "generator": torch.Generator().manual_seed(taken.seed),
            "worker_init_fn": begin or (_outlive_first_sigterm if workers else None),
        }
        self.order = order(len(data), taken.seed)
        self._next = -1
        self._batches: Iterator[Any] = iter(())

    def at(self, step: int) -> Batch:
        if step != self._next:
            loader = DataLoader(self.data, batch_sampler=_From(self, step), **self.options)
            self._batches = iter(loader)
        self._next = step + 1
        return _checked(next(self._batches), step, self.taken.count)


def _outlive_first_sigterm(worker: int) -> None:
    """Launchers send SIGTERM to a whole process group; the training still needs its rows then.

    PyTorch and Python end workers by a signal each, so the second one counts.
    """

    def first(number: int, frame: Any) -> None:
        signal.signal(number, signal.SIG_DFL)

    signal.signal(signal.SIGTERM, first)


@dataclass
class _From:
    """A batch sampler: the row numbers of every step from one on."""

    rows: _DatasetRows
    step: int

    def __iter__(self) -> Iterator[list[int]]:
        step, taken = self.step, self.rows.taken
        while True:
            yield self.rows.order.indices(taken.first(step), taken.count).tolist()
            step += 1


class _FunctionRows:
    """Rows of a function of the step that returns whole batches."""

    shape = None

    def __init__(self, data: Batches, taken: Taken) -> None:
        self.data, self.taken = data, taken

    def at(self, step: int) -> Batch:
        return _share(_checked(self.data(step), step, self.taken.size), self.taken)


class _IterableRows:
    """Whole batches of an iterable, one a step; it is begun again when it ends."""

    shape = None

    def __init__(self, data: Iterable[Any], taken: Taken) -> None:
        self.data, self.taken = data, taken
        self._next = -1
        self._batches: Iterator[Any] = iter(())

    def at(self, step: int) -> Batch:
        if self._next < 0 or step < self._next:
            self._next, self._batches = 0, self._endless()
        while self._next < step:  # what a resumed run has seen already
            next(self._batches)
            self._next += 1
        self._next = step + 1
        return _share(_checked(next(self._batches), step, self.taken.size), self.taken)

    def _endless(self) -> Iterator[Any]:
        while True:
            empty = True
            for batch in self.data:
                empty = False
                yield batch
            if empty:
                raise ValueError(
                    "data: the iterable is at its end and begins no second time; give one that "
                    "does, such as a DataLoader or a class with __iter__"
                )


def null_label(net: object, dropout: float) -> int | None:
    """The label that stands for none; None where no label is dropped."""
    if not dropout:
        return None
    classes = getattr(net, "classes", None)
    if classes is None:
        raise ValueError("label_dropout: expected a network of classes, their number in `classes`")
    return int(classes)


def with_dropped(labels: Tensor, share: float, null: int, taken: Taken, step: int) -> Tensor:
    """The labels of a step's rows, some replaced by null: the same ones in any number of parts."""
    address = NoiseAddress(taken.seed, taken.first(step), stream=Stream.LABELS)
    word, _ = kernels.pair_words(address, len(labels), labels.device)
    return labels.masked_fill(word < share * 2**32, null)


def with_mirrored(rows: Tensor, taken: Taken, step: int) -> Tensor:
    """A step's images, half of them from right to left: the same ones in any number of parts."""
    if rows.ndim != 4:
        raise ValueError(f"flip: expected images (n, C, H, W), got {tuple(rows.shape)}")
    address = NoiseAddress(taken.seed, taken.first(step), stream=Stream.MIRRORS)
    word, _ = kernels.pair_words(address, len(rows), rows.device)
    return torch.where((word < 2**31)[:, None, None, None], rows.flip(-1), rows)


def parted(rows: Rows) -> Batch:
    """Rows and their labels, if they have some."""
    if isinstance(rows, tuple) and len(rows) in (1, 2):
        return rows[0], rows[1] if len(rows) == 2 else None
    return rows, None  # type: ignore[return-value]


def check_rows(name: str, rows: object, labels: object = None) -> None:
    """TypeError or ValueError for what are no rows with labels."""
    if not isinstance(rows, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(rows).__name__}")
    if rows.dtype not in kernels.STATE_DTYPES:
        raise TypeError(f"{name}: expected float32 or float64, got {rows.dtype}")
    if rows.ndim < 2 or rows.numel() == 0:
        raise ValueError(
            f"{name}: expected a non-empty (n, d) or (n, C, H, W), got {tuple(rows.shape)}"
        )
    if not bool(rows.isfinite().all()):
        raise ValueError(f"{name}: expected finite numbers")
    if labels is not None and (not isinstance(labels, Tensor) or labels.shape != (len(rows),)):
        got = tuple(labels.shape) if isinstance(labels, Tensor) else type(labels).__name__
        raise ValueError(f"{name}: expected labels of shape ({len(rows)},), got {got}")


def _checked(batch: Any, step: int, count: int) -> Batch:
    rows, labels = parted(tuple(batch) if isinstance(batch, list) else batch)
    check_rows(f"the batch of step {step}", rows, labels)
    if len(rows) != count:
        raise ValueError(f"the batch of step {step}: expected {count} rows, got {len(rows)}")
    return rows, labels


def _share(batch: Batch, taken: Taken) -> Batch:
    rows, labels = batch
    return rows[taken.share], None if labels is None else labels[taken.share]
