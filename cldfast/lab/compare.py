"""CLD beside the processes it grew out of: how near samples are to the data for each evaluation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cldfast.classical import (
    VE,
    VP,
    FlowMatching,
    GaussianPath,
    KineticLangevin,
    Langevin,
    dsm_loss,
)
from cldfast.extras import extra_module
from cldfast.lab.data import Dataset
from cldfast.lab.metrics import sliced_w2
from cldfast.lab.mixture import GaussianMixture
from cldfast.lab.models import MLPScore
from cldfast.network import Network
from cldfast.planner.data_forms import Preconditioned
from cldfast.process.sde import CLD, LinearPhaseSDE
from cldfast.sampling.run import sample
from cldfast.training.losses import hsm_loss

# Both the exact and the learned networks of all processes are of this form: D(y, sigma), scaled.
FORM = Preconditioned()
# With more directions the spread of the samples decides.
_PROJECTIONS = 100


@dataclass(frozen=True)
class Contender:
    """A process with the sampler that it is compared by.

    options: of `cldfast.sample`. more: evaluations of a run beyond its steps. learned: whether a
    network of `FORM` serves; Langevin dynamics asks for the score of the data themselves.
    """

    process: LinearPhaseSDE | GaussianPath
    solver: str = "multistep"
    grid: str = "logistic"
    options: Mapping[str, Any] = field(default_factory=dict)
    more: int = 0
    learned: bool = True


def contenders() -> dict[str, Contender]:
    """CLD, VP, VE, flow matching and kinetic Langevin, each by a good sampler for few evaluations.

    At t = 1 the level of the noise is infinite, so flow matching ends at 0.999 here.
    The step of Langevin dynamics, 0.1, is the deviation of the narrowest Gaussians here; it starts
    at N(0, 1), the others from their priors.
    """
    return {
        "CLD": Contender(CLD()),
        "VP": Contender(VP()),
        "VE": Contender(VE(0.01, 50.0)),
        "flow matching": Contender(FlowMatching(0.999)),
        "kinetic Langevin": Contender(
            KineticLangevin(0.1), "baoab", "linear", {"t_min": 0.0}, more=1, learned=False
        ),
    }


def compare(
    data: GaussianMixture,
    evaluations: Sequence[int] = (8, 12, 20, 50),
    processes: Mapping[str, Contender] | None = None,
    *,
    networks: Mapping[str, Network] | None = None,
    samples: int = 5_000,
    repeats: int = 4,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """How far samples by each process are from the data, for each number of evaluations.

    data: a mixture, whose networks are exact. processes: None is `contenders()`.
    networks: by name of a process, those to use instead, of the form `FORM`; processes without one
        are then left out.
    samples: how many are drawn, and how many of the data they are compared with.
    repeats: how often, with other seeds each time.

    Rows have process, solver, evaluations, distance (sliced W2), its standard error over the
    repeats, and floor, the distance of two samples of the data. Raises ImportError without POT,
    ValueError for `repeats < 2`.
    """
    if repeats < 2:
        raise ValueError(f"repeats must be at least 2, got {repeats}")
    references = [data.sample(samples, seed + 2 * k) for k in range(repeats)]
    fresh = [data.sample(samples, seed + 2 * k + 1) for k in range(repeats)]
    floor, _ = _distance(fresh, references)
    rows = []
    for name, one in (contenders() if processes is None else processes).items():
        if networks is not None and name not in networks:
            continue
        langevin = isinstance(one.process, Langevin)
        form = "score" if langevin else FORM
        net = data.network(one.process, form) if networks is None else networks[name]
        for count in evaluations:
            process, steps = one.process, count - one.more
            if isinstance(process, KineticLangevin):
                process = KineticLangevin(process.T * steps, process.friction)
            drawn: Any = sample(
                net, process, (samples * repeats, data.dim), one.solver, steps, one.grid, seed=seed,
                parameterization=form, nonfinite="return", **one.options,
            )  # fmt: skip
            distance, error = _distance(drawn.chunk(repeats), references)
            rows.append(
                {"process": name, "solver": one.solver, "evaluations": count,
                 "distance": distance, "error": error, "floor": floor}
            )  # fmt: skip
    return rows


def _distance(samples: Sequence[Tensor], references: Sequence[Tensor]) -> tuple[float, float]:
    """The mean sliced W2 of pairs and its standard error; NaN for samples that ran away."""
    if not all(bool(x.isfinite().all()) for x in samples):
        return math.nan, math.nan
    found = np.array([
        sliced_w2(x, reference, _PROJECTIONS)
        for x, reference in zip(samples, references, strict=True)
    ])  # fmt: skip
    return float(found.mean()), float(found.std(ddof=1) / math.sqrt(len(found)))


def learned_networks(
    data: Dataset,
    processes: Mapping[str, Contender] | None = None,
    *,
    steps: int = 3000,
    batch: int = 512,
    width: int = 128,
    seed: int = 0,
) -> dict[str, Network]:
    """A network for each process that can have one: of one size, trained alike on 50,000 samples.

    Losses count errors in units of the noise of y; times are uniform on [1e-3, T]. Adam, step size
    1e-3 falling to 0.
    """
    rows = data.sample(50_000, seed)
    made: dict[str, Network] = {}
    for name, one in (contenders() if processes is None else processes).items():
        if not one.learned:
            continue
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = MLPScore(data.dim, width=width, in_planes=1, conditioning="c_noise")
            optimiser = torch.optim.Adam(net.parameters(), 1e-3)
            decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
            for step in range(steps):
                x0 = rows[torch.randint(len(rows), (batch,), device="cpu")]
                if isinstance(one.process, GaussianPath):
                    loss = dsm_loss(net, one.process, x0, parameterization=FORM, seed=step)
                else:
                    loss = hsm_loss(net, one.process, x0, "reweighted", FORM, step, times="uniform")
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                decay.step()
        made[name] = net.eval()
    return made


def fitted_mixture(data: Dataset, components: int = 30, seed: int = 0) -> GaussianMixture:
    """A mixture fitted to samples of data whose blurred score is unknown; needs scikit-learn."""
    mixture = extra_module("sklearn.mixture", "fitting a mixture needs scikit-learn")
    fit = mixture.GaussianMixture(components, random_state=seed).fit(data.sample(20_000, seed))
    return GaussianMixture(
        fit.weights_, fit.means_, 0.5 * (fit.covariances_ + fit.covariances_.transpose(0, 2, 1))
    )
