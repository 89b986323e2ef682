"""gDDIM (qsh-zh/gDDIM): its coefficients from its configuration, its layout, its samplers.

The names are those of the codebase; `docs/codebases.md` has them beside ours.
"""

from cldfast.compat.gddim.layout import as_network, as_tensor, from_state, to_state
from cldfast.compat.gddim.plans import (
    deis_plan,
    em_plan,
    hybrid_times,
    multistep_plan,
    order0_plan,
    rev_times,
    sdeis_plan,
    sscs_plan,
)
from cldfast.compat.gddim.process import CLD
from cldfast.compat.gddim.sampling import from_config, get_sampling_fn, plan_from_config
from cldfast.compat.gddim.stochastic import LambdaCLD

__all__ = [
    "CLD",
    "LambdaCLD",
    "as_network",
    "as_tensor",
    "deis_plan",
    "em_plan",
    "from_config",
    "from_state",
    "get_sampling_fn",
    "hybrid_times",
    "multistep_plan",
    "order0_plan",
    "plan_from_config",
    "rev_times",
    "sdeis_plan",
    "sscs_plan",
    "to_state",
]
