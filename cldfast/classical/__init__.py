"""The processes that CLD grew out of, in the same stages: score-based models and Langevin steps.

`cldfast.sample(net, classical.VP(), shape, ...)` and `cldfast.make_plan` take a path in place of a
phase-space process. `docs/classical.md` is the guide.
"""

from cldfast.classical import solvers  # noqa: F401, registers them
from cldfast.classical.langevin import (
    KineticLangevin,
    Langevin,
    annealed_langevin,
    kinetic_langevin,
    ula,
)
from cldfast.classical.losses import (
    dsm_loss,
    flow_matching_loss,
    implicit_loss,
    multi_scale_loss,
    sliced_loss,
)
from cldfast.classical.paths import EDM, OU, VE, VP, Brownian, FlowMatching, GaussianPath
from cldfast.sampling.mala import mala

__all__ = [
    "EDM", "OU", "VE", "VP", "Brownian", "FlowMatching", "GaussianPath", "KineticLangevin",
    "Langevin", "annealed_langevin", "dsm_loss", "flow_matching_loss", "implicit_loss",
    "kinetic_langevin", "mala", "multi_scale_loss", "sliced_loss", "ula",
]  # fmt: skip
