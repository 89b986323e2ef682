"""A machine with a GPU, in a process of its own: `fake_device`, with the library's kernels on it.

`cuda` is its sources on the host, `triton` its interpreter. As a pytest plugin, `-p emulated_gpu`, it
lets tests of backends find both on any machine. Run with TRITON_INTERPRET=1.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import cuda_on_host
import fake_device

from cldfast import kernels
from cldfast.kernels import native
from cldfast.kernels.backends.triton.backend import TritonBackend


class WrongMemoryError(RuntimeError):
    """A kernel was given the address of memory that is not the device's."""


class Watched:
    """The compiled module, which takes addresses of the device's memory alone."""

    def __init__(self, kernels: Any) -> None:
        self.kernels = kernels

    def __getattr__(self, name: str) -> Any:
        return getattr(self.kernels, name)

    def _launch(self, name: str, addresses: Iterable[int], arguments: tuple[Any, ...]) -> None:
        missing = {address for address in addresses if address} - fake_device.addresses
        fake_device.addresses.clear()  # those of the next launch are asked for anew
        if missing:
            raise WrongMemoryError(f"{name} was given an address of the host's memory")
        getattr(self.kernels, name)(*arguments)

    def stage(self, layout, inputs, outputs, weights, on_device, step, *more) -> None:  # type: ignore[no-untyped-def]
        matrix = (weights[0],) if on_device else ()
        arguments = (layout, inputs, outputs, weights, on_device, step, *more)
        self._launch("stage", (*inputs[::7], *outputs[::7], *matrix, step), arguments)

    def residual(
        self, layout, outputs, offsets, gradients, weights, scale, factor, sums, queue
    ) -> None:  # type: ignore[no-untyped-def]
        planes = outputs[::7] + offsets[::7] + gradients[::7]
        arguments = (layout, outputs, offsets, gradients, weights, scale, factor, sums, queue)
        self._launch("residual", (*planes, weights[0], scale, sums), arguments)

    def matrices(self, *arguments: Any) -> None:
        self._launch("matrices", [arguments[i] for i in (0, 1, 6, 9)], arguments)

    def advance(self, *arguments: Any) -> None:
        self._launch("advance", arguments[:3], arguments)

    def philox_words(self, *arguments: Any) -> None:
        self._launch("philox_words", arguments[2:4], arguments)


def install() -> None:
    """From now on there is the device, and both backends serve it."""
    fake_device.install()
    cuda = cuda_on_host.backend()
    native.cuda = cuda.kernels
    cuda.kernels = Watched(cuda.kernels)
    fast = cuda_on_host.OnHost(cuda.kernels, fast_normals=True)
    for backend in (cuda, fast, TritonBackend()):
        kernels.unregister_backend(backend.name)
        kernels.register_backend(backend.name, lambda found=backend: found, ("cuda",))


install()
