"""The operations: what the kernels do, with checks, choice of backend, gradients and fake kernels.

Each operation has a file; `address` says where noise comes from, `backends` holds what runs them.
"""

import torch

import cldfast.kernels.backends  # noqa: F401, registers the backends
from cldfast.kernels import philox
from cldfast.kernels.address import NoiseAddress, Stream, check_seed
from cldfast.kernels.backends.protocol import (
    ALL_COLUMNS,
    Backend,
    Noise,
    StageResult,
    recorded_step,
)
from cldfast.kernels.backends.reference import noise_planes
from cldfast.kernels.backends.registry import (
    BackendWarning,
    automatic_backend,
    backend_names,
    get_backend,
    missing_backend,
    register_backend,
    resolve_backend,
    unregister_backend,
)
from cldfast.kernels.checks import (
    OUTPUT_DTYPES,
    STATE_DTYPES,
    check_data,
    check_noise,
    check_output,
    check_planes,
    check_state,
)
from cldfast.kernels.normals import normals
from cldfast.kernels.perturb import covers, matrices, perturb
from cldfast.kernels.residual import REDUCTIONS, check_gradients, residual
from cldfast.kernels.seeds import noise_address
from cldfast.kernels.stage import stage
from cldfast.kernels.time_tables import AtTimes, OutsideTableError


def pair_words(
    address: NoiseAddress, count: int, device: torch.device | str = "cpu"
) -> tuple[torch.Tensor, torch.Tensor]:
    """The words of `kernels.philox.pair_words` by the fastest backend that has a kernel."""
    device = torch.device(device)
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return philox.pair_words(address, count, device)
    return automatic_backend(device.type).words(address, count, device)


def uniforms(address: NoiseAddress, count: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """A number in (0, 1), float64 (count,), for each pair from an address on."""
    word, _ = pair_words(address, count, device)
    return (word.to(torch.float64) + 0.5) * 2.0**-32  # the half keeps zero out


__all__ = [
    "ALL_COLUMNS",
    "recorded_step",
    "OUTPUT_DTYPES",
    "REDUCTIONS",
    "STATE_DTYPES",
    "AtTimes",
    "Backend",
    "BackendWarning",
    "Noise",
    "NoiseAddress",
    "OutsideTableError",
    "StageResult",
    "Stream",
    "automatic_backend",
    "backend_names",
    "check_data",
    "check_gradients",
    "check_noise",
    "check_output",
    "check_planes",
    "check_seed",
    "check_state",
    "covers",
    "get_backend",
    "matrices",
    "missing_backend",
    "noise_address",
    "noise_planes",
    "normals",
    "pair_words",
    "perturb",
    "register_backend",
    "residual",
    "resolve_backend",
    "stage",
    "uniforms",
    "unregister_backend",
]
