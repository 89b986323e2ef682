"""nv-tlabs/CLD-SGM (Dockhorn, Vahdat, Kreis 2022), over cldfast: see docs/codebases.md.

Every function has the signature and the result of the codebase's function, and takes `mode`.
"""

from cldfast.compat.cld_sgm.checkpoint import load_checkpoint, load_model, restore_checkpoint
from cldfast.compat.cld_sgm.install import install, installed, uninstall
from cldfast.compat.cld_sgm.likelihood import get_likelihood_fn
from cldfast.compat.cld_sgm.losses import get_loss_fn
from cldfast.compat.cld_sgm.sampling import (
    get_em_sampler,
    get_ode_sampler,
    get_sampling_fn,
    get_sscs_sampler,
)
from cldfast.compat.cld_sgm.sde import CLD, VPSDE

__all__ = [
    "CLD",
    "VPSDE",
    "get_em_sampler",
    "get_likelihood_fn",
    "get_loss_fn",
    "get_ode_sampler",
    "get_sampling_fn",
    "get_sscs_sampler",
    "install",
    "installed",
    "load_checkpoint",
    "load_model",
    "restore_checkpoint",
    "uninstall",
]
