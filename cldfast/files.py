"""Reading and writing files: each is written whole or not at all, and errors name it in one line.

A file is written beside its target and renamed, so a reader finds the old content or the new.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    # Plans are written without PyTorch.
    from torch import Tensor

PathLike = str | os.PathLike[str]

# The key of the one JSON text that our safetensors files carry in their header.
_METADATA = "cldfast"


def write_atomic(path: PathLike, data: bytes) -> None:
    """Write a file so that its readers see the old content or the new, also after a crash."""
    target = Path(path)
    beside = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with open(beside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, target)
    finally:
        beside.unlink(missing_ok=True)
    if os.name == "posix":
        # The new name is on disk only when its folder is.
        handle = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def remove_stale(folder: PathLike) -> None:
    """Remove what killed writers have left beside their targets in a folder."""
    for leftover in Path(folder).glob(".*.tmp"):
        leftover.unlink(missing_ok=True)


def write_json(path: PathLike, value: Any) -> None:
    """Write plain values as JSON, atomically; ValueError for NaN, infinity or other objects."""
    try:
        text = json.dumps(value, indent=2, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: cannot be written as JSON: {error}") from error
    write_atomic(path, (text + "\n").encode())


def read_json(path: PathLike) -> dict[str, Any]:
    """Read a JSON object; ValueError in one line for a missing or broken file."""
    try:
        text = Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: {(error.strerror or 'cannot be read').lower()}") from None
    try:
        value = json.loads(text.decode())
    except ValueError as error:
        raise located(Path(path), error, "not valid JSON: ") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def write_tensors(
    path: PathLike, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any] | None = None
) -> None:
    """Write named tensors and plain metadata as one safetensors file, atomically."""
    save = _safetensors().torch.save
    # Copies: the format takes neither views of one storage nor other memory layouts.
    host = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    header = None if metadata is None else {_METADATA: json.dumps(metadata, allow_nan=False)}
    write_atomic(path, save(host, metadata=header))


def read_tensors(path: PathLike) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write_tensors` wrote; ValueError in one line for a missing or broken file."""
    package = _safetensors()
    target = Path(path)
    if not target.is_file():
        raise ValueError(f"{target}: no such file")
    try:
        with package.safe_open(target, framework="pt") as file:
            metadata = json.loads((file.metadata() or {}).get(_METADATA, "{}"))
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118
    except (package.SafetensorError, ValueError, OSError) as error:
        raise located(target, error, "not a whole safetensors file: ") from error


def _safetensors() -> Any:
    try:
        import safetensors
        import safetensors.torch
    except ImportError as error:
        raise ImportError("run folders need safetensors: pip install 'cldfast[demo]'") from error
    return safetensors


def located(path: Path, error: Exception, what: str = "") -> ValueError:
    """The error as one line that starts with the file, unless it already does."""
    text = " ".join(str(error).split())
    return ValueError(text if text.startswith(str(path)) else f"{path}: {what}{text}")
