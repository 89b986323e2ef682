"""Accelerated samplers and losses for critically-damped Langevin diffusion (CLD)."""

from cldfast.error_budget import ErrorBudget
from cldfast.flow_likelihood import Likelihood, likelihood
from cldfast.graphs import GraphWarning
from cldfast.grid_search import optimise_grid
from cldfast.grids import make_grid
from cldfast.info import info
from cldfast.inpainting import Inpainting
from cldfast.losses import dsm_loss, hsm_loss, perturb
from cldfast.ops import BackendWarning, stage
from cldfast.plan import Plan, Stage
from cldfast.probability_flow import pflow
from cldfast.sampling import StopSampling, initial_state, run, sample
from cldfast.schedules import (
    CallableBeta,
    ConstantBeta,
    CosineBeta,
    ExponentialBeta,
    LinearBeta,
)
from cldfast.sde import CLD, PSLD, LinearPhaseSDE, sde_from_config
from cldfast.solvers import make_plan
from cldfast.times import sample_times
from cldfast.trajectory import Trajectory

__version__ = "0.1.0"

__all__ = [
    "CLD",
    "PSLD",
    "BackendWarning",
    "CallableBeta",
    "ConstantBeta",
    "CosineBeta",
    "ErrorBudget",
    "ExponentialBeta",
    "GraphWarning",
    "Inpainting",
    "Likelihood",
    "LinearBeta",
    "LinearPhaseSDE",
    "Plan",
    "Stage",
    "StopSampling",
    "Trajectory",
    "dsm_loss",
    "hsm_loss",
    "info",
    "initial_state",
    "likelihood",
    "make_grid",
    "make_plan",
    "optimise_grid",
    "perturb",
    "pflow",
    "run",
    "sample",
    "sample_times",
    "sde_from_config",
    "stage",
]
