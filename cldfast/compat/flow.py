"""The probability flow of a codebase's process and network."""

from __future__ import annotations

import numpy as np

from cldfast.compat.steps import OutputMap
from cldfast.network import Network
from cldfast.planner.parameterization import LinearMap
from cldfast.process.sde import LinearPhaseSDE
from cldfast.sampling import probability_flow


class Flow(probability_flow.Flow):
    """`cldfast.sampling.probability_flow.Flow` for networks whose outputs `output_map` explains."""

    def __init__(self, net: Network, sde: LinearPhaseSDE, output_map: OutputMap) -> None:
        super().__init__(net, sde, "full_score")  # which `score` takes from the map
        self.output_map = output_map

    def score(self, times: np.ndarray) -> LinearMap:
        return self.output_map(times)
