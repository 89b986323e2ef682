"""Accelerated samplers and losses for critically-damped Langevin diffusion (CLD)."""

from cldfast import classical
from cldfast.compat.denoisers import from_denoiser, from_diffusers
from cldfast.fitting.fit import FitResult, fit_plan
from cldfast.info import info
from cldfast.kernels import BackendWarning, NoiseAddress, stage
from cldfast.lab.compare import compare
from cldfast.model.model import Model
from cldfast.planner.data_forms import Preconditioned
from cldfast.planner.error_budget import ErrorBudget
from cldfast.planner.grid_search import optimise_grid
from cldfast.planner.grids import make_grid
from cldfast.planner.make_plan import make_plan
from cldfast.planner.plan import Plan
from cldfast.planner.stage import Stage
from cldfast.process.schedules import (
    CallableBeta,
    ConstantBeta,
    CosineBeta,
    ExponentialBeta,
    LinearBeta,
)
from cldfast.process.sde import CLD, PSLD, LinearPhaseSDE, sde_from_config
from cldfast.sampling.callbacks import StepInfo
from cldfast.sampling.graphs import GraphWarning
from cldfast.sampling.inpainting import Inpainting
from cldfast.sampling.likelihood import Likelihood, likelihood
from cldfast.sampling.probability_flow import pflow
from cldfast.sampling.run import StopSampling, initial_state, run, sample
from cldfast.sampling.trajectory import Trajectory
from cldfast.training.data_scale import DataScale
from cldfast.training.losses import BlindLossWarning, dsm_loss, hsm_loss, perturb
from cldfast.training.times import sample_times
from cldfast.training.uncertainty import Uncertainty
from cldfast.version import __version__

__all__ = [
    "CLD",
    "PSLD",
    "BackendWarning",
    "BlindLossWarning",
    "CallableBeta",
    "ConstantBeta",
    "CosineBeta",
    "DataScale",
    "ErrorBudget",
    "ExponentialBeta",
    "FitResult",
    "GraphWarning",
    "Inpainting",
    "Likelihood",
    "LinearBeta",
    "LinearPhaseSDE",
    "Model",
    "NoiseAddress",
    "Plan",
    "Preconditioned",
    "Stage",
    "StepInfo",
    "StopSampling",
    "Trajectory",
    "Uncertainty",
    "__version__",
    "classical",
    "compare",
    "dsm_loss",
    "fit_plan",
    "from_denoiser",
    "from_diffusers",
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
