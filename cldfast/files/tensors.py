"""Named tensors as safetensors files, whose headers are checked before memory is taken."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cldfast.files.opening import PathLike, located, opened
from cldfast.files.plain_json import parse_json
from cldfast.files.writing import write_atomic

if TYPE_CHECKING:
    # Plans are written without PyTorch.
    from torch import Tensor

# The key of the one JSON text that our safetensors files carry in their header.
_METADATA = "cldfast"
# Bytes of a header, in which 4 MiB name 40,000 tensors.
MOST_HEADER_BYTES = 4 << 20
# Dimensions of a tensor; weights of a convolution have 4.
_MOST_DIMENSIONS = 8
# Bits of an element, by the names of the format; formats of fewer than 8 bits are not read.
_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "I16": 16, "U16": 16, "F16": 16,
    "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64, "C64": 64,
}  # fmt: skip


def write_tensors(
    path: PathLike, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any] | None = None
) -> None:
    """Write named tensors and plain metadata as one safetensors file, atomically."""
    save = _safetensors().torch.save
    # Copies: the format takes neither views of one storage nor other memory layouts.
    host = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    header = None if metadata is None else {_METADATA: json.dumps(metadata, allow_nan=False)}
    write_atomic(path, save(host, metadata=header))


def read_tensors(
    path: PathLike, like: Mapping[str, Tensor] | None = None, most: int | None = None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write_tensors` wrote, after the names and sizes in its header have been checked.

    like: tensors, which may be on the device `meta`, with the names and shapes that are expected;
        floating-point numbers may have another precision. most: bytes of all tensors.

    Raises ValueError in one line for a missing or broken file, and for tensors that do not fit.
    """
    package = _safetensors()
    target = Path(path)
    try:
        metadata = checked_header(target, like, most)
    except ValueError as error:
        raise located(target, error) from None
    try:
        with package.safe_open(target, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118
    except (package.SafetensorError, ValueError, OSError) as error:
        raise located(target, error, "not a whole safetensors file: ") from error


def checked_header(
    path: Path, like: Mapping[str, Tensor] | None, most: int | None
) -> dict[str, Any]:
    """Our metadata in the header of a safetensors file, whose tensors fit what is expected."""
    with opened(path) as file:
        start, size = file.read(8), os.fstat(file.fileno()).st_size
        length = int.from_bytes(start, "little")
        if len(start) < 8 or not 2 <= length <= size - 8:
            raise ValueError("not a whole safetensors file: it ends before its header does")
        if length > MOST_HEADER_BYTES:
            raise ValueError(f"expected a header of at most {MOST_HEADER_BYTES} bytes")
        tensors = parse_json(file.read(length))
    plain = tensors.pop("__metadata__", {})
    if not isinstance(plain, dict) or not isinstance(text := plain.get(_METADATA, "{}"), str):
        raise ValueError("not a safetensors file: its metadata are no texts")
    shapes = {name: _shape(name, entry) for name, entry in tensors.items()}
    there = sum(end - begin for entry in tensors.values() for begin, end in [entry["data_offsets"]])
    if there != size - 8 - length:
        raise ValueError(f"not a whole safetensors file: {there} bytes expected after its header")
    if there > (most := _memory() if most is None else most):
        raise ValueError(f"expected at most {most} bytes of tensors, got {there}")
    if like is not None:
        _check_like(tensors, shapes, like)
    return parse_json(text.encode())


def _shape(name: str, entry: object) -> tuple[int, ...]:
    """The shape of a tensor in a header, whose bytes are as many as its elements need."""
    keys = {"dtype", "shape", "data_offsets"}
    if not isinstance(entry, dict) or entry.keys() != keys or entry["dtype"] not in list(_BITS):
        raise ValueError(f"not a safetensors file: the tensor {name!r} is not described")
    shape, offsets = entry["shape"], entry["data_offsets"]
    for values in (shape, offsets):
        sizes = isinstance(values, list) and len(values) <= _MOST_DIMENSIONS
        if not sizes or any(type(n) is not int or n < 0 for n in values):
            raise ValueError(f"not a safetensors file: the tensor {name!r} has no size")
    bits = math.prod(shape) * _BITS[entry["dtype"]]
    if len(offsets) != 2 or bits != 8 * (offsets[1] - offsets[0]):
        raise ValueError(f"not a safetensors file: the tensor {name!r} has another size")
    return tuple(shape)


def _check_like(
    entries: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], like: Mapping[str, Tensor]
) -> None:
    """ValueError for tensors other than the expected ones."""
    missing, extra = sorted(like.keys() - shapes.keys()), sorted(shapes.keys() - like.keys())
    if missing or extra:
        what = f"no {missing[0]!r}" if missing else f"a tensor {extra[0]!r} too many"
        raise ValueError(f"does not fit the network: {what}")
    for name, tensor in like.items():
        if shapes[name] != tuple(tensor.shape):
            raise ValueError(
                f"does not fit the network: {name!r} has the shape {list(shapes[name])}, "
                f"expected {list(tensor.shape)}"
            )
        if ("F" in entries[name]["dtype"]) != tensor.is_floating_point():
            raise ValueError(
                f"does not fit the network: {name!r} has the dtype {entries[name]['dtype']}, "
                f"expected {tensor.dtype}"
            )


def _memory() -> int:
    """Bytes of this machine's memory: more than these no file can fill, however large it says."""
    if not hasattr(os, "sysconf"):
        return 1 << 40
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _safetensors() -> Any:
    import safetensors
    import safetensors.torch  # here: plans are read without PyTorch

    return safetensors
