"""Samples on disk in shards, made by any number of processes, on any number of machines.

A folder has `manifest.json`, which says what all samples are, and a file for each shard. A shard is
written beside its target and renamed, so it is there as a whole or not at all; what is missing is
made by whoever comes. Processes need not know of each other: each takes a shard by locking a byte
of one file, and the system frees the bytes of a process that dies.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from cldfast.extras import progress_bar
from cldfast.files import PathLike, read_json, remove_stale, write_json
from cldfast.sampling.shard_files import FORMATS, ShardFiles

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

MANIFEST = "manifest.json"
_CLAIMS = ".claims"
_VERSION = 1
_BY_NUMBER = "let processes take shards by number (--shards all)"
# Seconds between two looks for a shard whose maker has died.
_PATIENCE = 0.5

# `make(first, count)`: rows (count, ...) from number `first` on, and their labels or None.
Make = Callable[[int, int], tuple[Tensor, Tensor | None]]


@dataclass(frozen=True)
class Manifest:
    """What a folder of shards holds; two runs into one folder must agree in all of it.

    n: samples. shape: of one. shard_rows: samples in a shard. files: a format of `FORMATS`.
    settings: plain values, all that decides what the samples are.

    Raises ValueError for numbers or a format that do not fit.
    """

    n: int
    shape: tuple[int, ...]
    shard_rows: int
    files: str = "safetensors"
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("n", "shard_rows"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}: expected a whole number >= 1, got {value!r}")
        if self.files not in FORMATS:
            raise ValueError(f"files: expected one of {', '.join(FORMATS)}, got {self.files!r}")
        object.__setattr__(self, "shape", tuple(self.shape))

    @property
    def shards(self) -> int:
        """Number of shards; the last one may be shorter."""
        return -(-self.n // self.shard_rows)

    def span(self, shard: int) -> tuple[int, int]:
        """Number of a shard's first sample, and how many it has."""
        first = shard * self.shard_rows
        return first, min(self.shard_rows, self.n - first)

    def plain(self) -> dict[str, Any]:
        """As in the file."""
        return {"version": _VERSION} | asdict(self) | {"shape": list(self.shape)}


def shares(shards: int, process: int, processes: int) -> range:
    """The shards of a process where they are taken by number."""
    return range(process, shards, processes)


class Shards:
    """A folder of shards, made where there is none.

    by_number: (process, processes) to take every so-many-th shard; None takes what is free.
    numbers: of the shards to make; None is all of them.

    Raises ValueError for a folder whose manifest says anything else and for numbers of no shard,
    OSError where it cannot be written.
    """

    def __init__(
        self,
        folder: PathLike,
        manifest: Manifest,
        by_number: tuple[int, int] | None = None,
        numbers: Sequence[int] | None = None,
    ) -> None:
        self.folder, self.manifest, self.by_number = Path(folder), manifest, by_number
        self.numbers = range(manifest.shards) if numbers is None else sorted(set(numbers))
        if self.numbers and not 0 <= self.numbers[0] <= self.numbers[-1] < manifest.shards:
            raise ValueError(
                f"shards: expected numbers from 0 to {manifest.shards - 1}, got "
                f"{self.numbers[0]} to {self.numbers[-1]}"
            )
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"{self.folder}: expected a folder, found a file")
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / MANIFEST
        if not path.exists():
            if any(not entry.name.startswith(".") for entry in self.folder.iterdir()):
                raise ValueError(f"{self.folder}: expected an empty folder, or one of shards")
            write_json(path, manifest.plain())
        _check_same(path, manifest.plain())
        self.files: ShardFiles = FORMATS[manifest.files](self.folder, manifest.n, manifest.shape)
        self._claims: int | None = None

    def missing(self) -> list[int]:
        """Numbers of the shards that are not there yet."""
        return [k for k in range(self.manifest.shards) if not self.files.has(k)]

    def fill(self, make: Make, *, progress: bool = False) -> int:
        """Make what is missing; returns the number of shards that this process made.

        make: `make(first, count)` returns rows and their labels. progress: a tqdm bar over the
        samples of all processes. Returns when all shards that are asked for are there, whoever
        made them; with `by_number`, when this process's are.

        Raises OSError, with the shard's name, where the disk takes no more; what is there stays.
        """
        made, bar = 0, None
        if progress:
            bar = progress_bar(total=self.manifest.n, desc="sampling", unit="sample")
        try:
            while missing := self._wanted():
                taken = False
                for shard in missing:
                    with self._claimed(shard) as claimed:
                        if not claimed:
                            continue
                        if not self.files.has(shard):
                            self._make(shard, make)
                            made += 1
                        taken = True
                    if bar is not None:
                        self._show(bar)
                if not taken:
                    time.sleep(_PATIENCE)
                if bar is not None:
                    self._show(bar)
        finally:
            if bar is not None:
                bar.close()
            if self._claims is not None:
                os.close(self._claims)
                self._claims = None
        if not self.missing():
            self.files.finish(self.manifest.shards)
            (self.folder / _CLAIMS).unlink(missing_ok=True)
            remove_stale(self.folder)
        return made

    def _make(self, shard: int, make: Make) -> None:
        first, count = self.manifest.span(shard)
        rows, labels = make(first, count)
        if tuple(rows.shape) != (count, *self.manifest.shape):
            raise ValueError(
                f"expected rows {(count, *self.manifest.shape)}, got {tuple(rows.shape)}"
            )
        self.files.remove_leftovers(shard)
        try:
            self.files.write(shard, first, rows.detach().cpu(), labels)
        except OSError as error:
            done = self.manifest.shards - len(self.missing())
            raise OSError(
                f"{self.files.path(shard)}: {error.strerror or error}; {done} of "
                f"{self.manifest.shards} shards are whole: make room and run the same again"
            ) from error

    def _wanted(self) -> list[int]:
        wanted = self.numbers
        if self.by_number is not None:
            wanted = [wanted[k] for k in shares(len(wanted), *self.by_number)]
        return [k for k in wanted if not self.files.has(k)]

    @contextmanager
    def _claimed(self, shard: int) -> Iterator[bool]:
        """Whether this process alone may make a shard, within the block."""
        if self.by_number is not None:
            yield True
            return
        if fcntl is None:
            raise ValueError(f"this system has no file locks: {_BY_NUMBER}")
        if self._claims is None:
            self._claims = os.open(self.folder / _CLAIMS, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.lockf(self._claims, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, shard)
        except (BlockingIOError, PermissionError):
            yield False
            return
        except OSError as error:
            raise ValueError(
                f"{self.folder}: its file system has no locks ({error.strerror}): {_BY_NUMBER}"
            ) from error
        try:
            yield True
        finally:
            fcntl.lockf(self._claims, fcntl.LOCK_UN, 1, shard)

    def _show(self, bar: Any) -> None:
        left = sum(self.manifest.span(shard)[1] for shard in self.missing())
        bar.update(self.manifest.n - left - bar.n)


def open_shards(folder: PathLike) -> Shards:
    """The shards of a finished folder, to read; ValueError where some are missing."""
    path = Path(folder) / MANIFEST
    found = read_json(path)
    if found.get("version") != _VERSION:
        raise ValueError(f"{path}: expected version {_VERSION}, got {found.get('version')!r}")
    try:
        manifest = Manifest(**{k: v for k, v in found.items() if k != "version"})
    except TypeError as error:
        raise ValueError(f"{path}: {error}") from error
    shards = Shards(folder, manifest)
    if missing := shards.missing():
        raise ValueError(f"{folder}: {len(missing)} of {manifest.shards} shards are missing")
    return shards


def _check_same(path: Path, expected: dict[str, Any]) -> None:
    """ValueError that names the first thing in which a manifest differs."""
    found, wanted = _flat(read_json(path)), _flat(expected)
    for name in sorted(found.keys() | wanted.keys()):
        here, there = wanted.get(name), found.get(name)
        if here != there:
            raise ValueError(
                f"{path}: its samples are made with {name} = {there!r}, not {here!r}: choose "
                "another folder"
            )


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    """All plain values by name, whatever holds them."""
    made: dict[str, Any] = {}
    for name, value in values.items():
        made |= _flat(value) if isinstance(value, dict) else {name: value}
    return made
