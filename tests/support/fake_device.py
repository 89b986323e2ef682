"""A device `cuda:0` whose tensors live in the host's memory: they carry values and keep to it.

Operations on tensors of both devices raise, as on a GPU. What a host would wait for (a value, a
copy to the host, a size that values decide) and what it would copy to the device are counted, and
refused inside `refused()`. `install()` is for a process of its own: it stays.

The tensors wrap those of the host, see PyTorch's "Extending torch with a Tensor wrapper type". What
autograd takes for their device is a backend that PyTorch lets Python make.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.utils._device
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

import cldfast  # noqa: F401, makes the operators known

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
_NAME = "fakegpu"
# Library operators: their kernels want Python's view of the tensors.
_OPERATORS = {
    name: sys.modules[f"cldfast.kernels.{name}"]._implementation for name in ("stage", "residual")
}
# Operations that read a value for the host, or make a tensor whose size values decide.
_LOOKS = {
    "_local_scalar_dense", "_unique2", "bincount", "equal", "is_nonzero", "item", "masked_select",
    "nonzero", "repeat_interleave", "unique_consecutive", "unique_dim",
}  # fmt: skip
_COPIES = {"_to_copy", "copy_"}
_INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_"}

# Names of operations so far for which a host would wait, and of copies to the device.
waits: list[str] = []
copies: list[str] = []
# What the regions refuse that the program is in.
_refusing: list[list[str]] = []
# Addresses of the device's memory that were asked for, as whoever passes them to a kernel does.
addresses: set[int] = set()


class HostWaitError(RuntimeError):
    """In a region that forbids it, an operation waits for the device or copies to it."""


@contextmanager
def refused(uploads: bool = True) -> Iterator[None]:
    """A region in which the host does not wait for the device, nor, if `uploads`, copies to it."""
    before = _refusing[:]
    _refusing.extend([waits, copies] if uploads else [waits])
    try:
        yield
    finally:
        _refusing[:] = before


def _note(record: list[str], name: str, what: str) -> None:
    record.append(name)
    if any(record is other for other in _refusing):
        raise HostWaitError(f"{name} {what}")


def _is_fake(device: Any) -> bool:
    return device is not None and torch.device(device).type in ("cuda", _NAME)


class OnDevice(torch.Tensor):
    """A tensor of the fake device: `inner` holds its values."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> OnDevice:
        made = torch.Tensor._make_wrapper_subclass(
            cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(),
            dtype=inner.dtype, layout=inner.layout, device=torch.device(_NAME, 0),
        )  # fmt: skip
        made.inner = inner
        return made  # type: ignore[no-any-return]

    def __repr__(self, **_: Any) -> str:
        return f"OnDevice({self.inner!r})"

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        name = getattr(func, "__name__", "")
        if name == "untyped_storage":
            return args[0].inner.untyped_storage()
        if name == "data_ptr":
            address = args[0].inner.data_ptr()
            addresses.add(address)
            return address
        if name == "tolist":
            _note(waits, name, "reads values for the host")
            return args[0].inner.tolist()
        if name == "__get__" and func.__self__ is torch.Tensor.device:
            return CUDA
        if name == "__get__" and func.__self__ is torch.Tensor.is_cuda:
            return True
        if name in ("numpy", "__array__"):
            raise TypeError("can't convert cuda:0 device type tensor to numpy: use Tensor.cpu()")
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """One operation of PyTorch, on the host, with the rules of two devices."""
    name = func._schema.name.partition("::")[2]
    if func.namespace == "cldfast":
        with torch._C._EnableTorchFunction():
            return _OPERATORS[name](*args, **kwargs)
    tensors = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, torch.Tensor)]
    there = [tensor for tensor in tensors if isinstance(tensor, OnDevice)]
    here = [tensor for tensor in tensors if not isinstance(tensor, OnDevice)]
    to_device = bool(there) if kwargs.get("device") is None else _is_fake(kwargs["device"])
    if there and name not in _COPIES | _INDEXED and any(tensor.dim() for tensor in here):
        raise RuntimeError(
            "Expected all tensors to be on the same device, but found at least two devices, "
            f"cuda:0 and cpu! (in {name})"
        )
    masks = [t for t in there[1:] if name in _INDEXED and t.dtype in (torch.bool, torch.uint8)]
    if there and (name in _LOOKS or masks):
        _note(waits, name, "reads values for the host")
    if name == "copy_" and there and here:
        to_device = isinstance(args[0], OnDevice)
    if name in _COPIES and there and not to_device:
        _note(waits, name, "copies to the host")
    if (name in _COPIES and here and to_device) or (name in _INDEXED and there and here):
        _note(copies, name, "copies to the device")
    if "device" in kwargs:
        kwargs = {**kwargs, "device": CPU, "pin_memory": None}
        if "pin_memory" not in {argument.name for argument in func._schema.arguments}:
            del kwargs["pin_memory"]
    known = {id(tensor.inner): tensor for tensor in there}

    def wrapped(made: Any) -> Any:
        if not to_device or not isinstance(made, torch.Tensor) or isinstance(made, OnDevice):
            return made
        return known[id(made)] if id(made) in known else OnDevice(made)

    def inner(leaf: Any) -> Any:
        return leaf.inner if isinstance(leaf, OnDevice) else leaf

    made = func(*tree_map(inner, args), **tree_map(inner, kwargs))
    return args[0] if name == "copy_" else tree_map(wrapped, made)


class _Operations(TorchDispatchMode):
    """Operations that no tensor of the device takes part in, but that may make one."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func.namespace == "cldfast":
            with self:  # an operator's kernel makes tensors too
                return _run(func, args, kwargs or {})
        return _run(func, args, kwargs or {})


class _Functions(TorchFunctionMode):
    """Calls that name the device: PyTorch without CUDA refuses its name."""

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor, torch.asarray):
            if func is not torch.tensor and isinstance(args[0], torch.Tensor):
                return func(*args, **kwargs)
            device = kwargs.pop("device", None) or torch.utils._device.CURRENT_DEVICE
            gradient = kwargs.pop("requires_grad", False)
            made = func(*args, device="cpu", **kwargs)
            made = made.to(CUDA) if _is_fake(device) else made
            return made.requires_grad_() if gradient else made
        if getattr(func, "__name__", "") in ("to", "cuda") or "device" in kwargs:
            args = tuple(self.device(argument) for argument in args)
            kwargs = {name: self.device(value) for name, value in kwargs.items()}
        return func(*args, **kwargs)

    def device(self, argument: Any) -> Any:
        is_device = isinstance(argument, (str, torch.device))
        try:
            return f"{_NAME}:0" if is_device and _is_fake(argument) else argument
        except RuntimeError:  # a string that names no device
            return argument


def install() -> None:
    """From now on PyTorch has the device."""
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

    _setup_privateuseone_for_python_backend(_NAME)
    cuda: Any = torch.cuda
    cuda._lazy_init = lambda: None
    cuda.is_available = lambda: True
    cuda.device_count = lambda: 1
    cuda.current_device = lambda: 0
    cuda.synchronize = lambda device=None: None
    cuda.mem_get_info = lambda device=None: (0, 2**34)
    cuda.empty_cache = lambda: None
    cuda.get_device_name = lambda device=None: "Fake (host)"
    # Modes belong to a thread, and a device's gradients are made in a thread of its own.
    torch.autograd.set_multithreading_enabled(False)
    _Functions().__enter__()
    _Operations().__enter__()
