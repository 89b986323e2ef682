"""How well Markov chains have mixed, by ArviZ."""

from __future__ import annotations

from typing import Any

import numpy as np

from cldfast.extras import extra_module
from cldfast.lab.arrays import as_float64


def chain_diagnostics(states: Any) -> dict[str, np.ndarray]:
    """Effective sample sizes "ess" and potential scale reductions "rhat", each (...).

    states: draws of chains, (draws, chains, ...), as `cldfast.Trajectory().states` of a run with a
        chain in each row has them. The bulk effective sample size and the rank-normalised split
        R-hat of Vehtari, Gelman, Simpson, Carpenter, Buerkner (2021), over all chains.

    Raises ImportError without ArviZ, ValueError for fewer than 4 draws or 2 chains.
    """
    array = as_float64(states, "states")
    if array.ndim < 3 or array.shape[0] < 4 or array.shape[1] < 2:
        raise ValueError(
            "states: expected (draws, chains, ...) with at least 4 draws of 2 chains, "
            f"got {array.shape}"
        )
    arviz = extra_module("arviz", "chain_diagnostics needs ArviZ")
    chains = arviz.convert_to_dataset({"x": np.swapaxes(array, 0, 1)})
    return {
        "ess": np.asarray(arviz.ess(chains)["x"]), "rhat": np.asarray(arviz.rhat(chains)["x"])
    }  # fmt: skip
