"""The operations: what the kernels do, with checks, choice of backend, gradients and fake kernels.

`checks` looks at arguments, `dispatch` chooses the backend, and each operation has a file.
"""

from cldfast.kernels.checks import (
    OUTPUT_DTYPES,
    STATE_DTYPES,
    check_planes,
    check_seed,
    check_state,
)
from cldfast.kernels.dispatch import (
    BACKENDS,
    BackendWarning,
    StageResult,
    automatic_backend,
    backend_advance,
    backend_residual,
    backend_stage,
    missing_backend,
    missing_core,
    pair_words,
    resolve_backend,
)
from cldfast.kernels.perturb import covers, matrices, perturb
from cldfast.kernels.residual import residual
from cldfast.kernels.stage import stage, stage_operator
from cldfast.kernels.time_tables import AtTimes, OutsideTableError

__all__ = [
    "AtTimes",
    "BACKENDS",
    "OUTPUT_DTYPES",
    "STATE_DTYPES",
    "BackendWarning",
    "OutsideTableError",
    "StageResult",
    "automatic_backend",
    "backend_advance",
    "backend_residual",
    "backend_stage",
    "check_planes",
    "check_seed",
    "check_state",
    "covers",
    "matrices",
    "missing_backend",
    "missing_core",
    "pair_words",
    "perturb",
    "residual",
    "resolve_backend",
    "stage",
    "stage_operator",
]
