"""Checkpoints of other codebases, which are pickles, read without running what they hold."""

from __future__ import annotations

import os
import pickle
import pickletools
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from cldfast.files import located, opened

# Of the pickle, without the tensors' own bytes; a tensor takes 30 operations and 150 bytes.
_MOST_OPERATIONS = 500_000
_MOST_PICKLE_BYTES = 4 << 20
_STORAGES = "Float Double Half BFloat16 Long Int Short Char Byte Bool"
_DTYPES = "float32 float64 float16 bfloat16 int64 int32 int16 int8 uint8 bool"
# What a checkpoint of tensors and plain values is made of. PyTorch's own list has constructors too,
# which take as much memory as a pickle asks for.
_NEEDED = {
    "collections OrderedDict", "collections Counter", "__builtin__ set", "__builtin__ complex",
    "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter", "torch Size",
    "torch device", *(f"torch {name}Storage" for name in _STORAGES.split()),
    *(f"torch {name}" for name in _DTYPES.split()),
}  # fmt: skip


def read_checkpoint(
    path: str | os.PathLike[str], device: Any = "cpu", more: Iterable[Any] = ()
) -> dict[Any, Any]:
    """The dictionary in a file of `torch.save`: tensors and plain values.

    device: where the tensors go. more: further classes and functions that a file may name, as for
        `torch.serialization.safe_globals`.

    Raises ValueError in one line for a file that is missing, broken, compressed or of PyTorch's
    format before 1.6, and for a pickle that names anything else, which it could run.
    """
    more = list(more)
    try:
        _check(path, _NEEDED | {_name(entry) for entry in more})
        with torch.serialization.safe_globals(more):
            state = torch.load(path, map_location=device, weights_only=True)
    except (ValueError, RuntimeError, pickle.UnpicklingError, EOFError, LookupError) as error:
        raise located(Path(path), error) from None
    if not isinstance(state, dict):
        raise ValueError(f"{path}: expected a dictionary, got {type(state).__name__}")
    return state


def _name(entry: Any) -> str:
    """How a pickle names a class or function, or the (function, name) of `safe_globals`."""
    if isinstance(entry, tuple):
        return " ".join(entry[1].rsplit(".", 1))
    return f"{entry.__module__} {entry.__qualname__}"


def _check(path: str | os.PathLike[str], allowed: set[str]) -> None:
    """ValueError for an archive that is larger than its file, or names what it may not."""
    with opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            archive = zipfile.ZipFile(file)
        except (zipfile.BadZipFile, NotImplementedError) as error:
            what = "not a whole file of torch.save in its format of PyTorch 1.6 and later"
            raise ValueError(f"{what}: {error}") from None
        members = archive.infolist()
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise ValueError("expected an archive that is not compressed, as torch.save writes it")
        if sum(member.file_size for member in members) > size:
            raise ValueError("not a whole file of torch.save: it ends before its tensors do")
        for member in members:
            if member.filename.endswith(".pkl"):
                if member.file_size > _MOST_PICKLE_BYTES:
                    raise ValueError(f"expected a pickle of {_MOST_PICKLE_BYTES} bytes at most")
                _check_pickle(archive.read(member), allowed)


def _check_pickle(text: bytes, allowed: set[str]) -> None:
    """ValueError for a pickle that names what it may not; nothing of it is run."""
    for count, (operation, argument, _) in enumerate(pickletools.genops(text)):
        if count == _MOST_OPERATIONS:
            raise ValueError(f"expected a pickle of {_MOST_OPERATIONS} operations at most")
        if operation.name in ("STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4"):
            raise ValueError(f"expected a pickle as torch.save writes it, found {operation.name}")
        if operation.name == "GLOBAL" and argument not in allowed:
            named = str(argument).replace(" ", ".")
            raise ValueError(
                f"expected tensors and plain values alone (weights_only), found the object {named}"
            )
