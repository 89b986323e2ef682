"""Guidance folded into a plan: the same stages read more outputs, at the cost of reading them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from cldfast.planner.parameterization import Parameterization, score_map
from cldfast.planner.stage import Stage
from cldfast.process.path import Process


def classifier_free(stages: Sequence[Stage], scale: float) -> tuple[Stage, ...]:
    """Stages for a network that returns (conditional, unconditional) outputs.

    Every use of the output o becomes `scale * o_conditional + (1 - scale) * o_unconditional`; the
    parameterisations are affine in o, so this is the same combination of scores. scale 1 is the
    conditional model, 0 the unconditional one, above 1 guidance.
    Source: Ho and Salimans (2022), eq. 6, with `scale = 1 + w`.
    """
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not math.isfinite(scale):
        raise ValueError(f"guidance_scale must be a finite number, got {scale!r}")
    return _map_blocks(stages, lambda stage, block: (scale * block, (1.0 - scale) * block))


def added_score(
    stages: Sequence[Stage], sde: Process, parameterization: Parameterization
) -> tuple[Stage, ...]:
    """Stages that read one more output: a term that is added to the network's score.

    For parameterisations of one plane the term is added to the velocity score, (B, C, ...); for
    full ones to both rows, (B, 2C, ...).
    Source: Dhariwal and Nichol (2021), eq. 10, for classifiers; any `grad log p(y | u)` serves.
    """

    def with_term(stage: Stage, block: np.ndarray) -> tuple[np.ndarray, ...]:
        back = score_map(sde, np.array([stage.t]), parameterization).left_inverse()[0]
        # The term has as many planes as the output: the last, of v, where that is one.
        own = back[:, -len(back) :]
        if not np.any(own):
            raise ValueError(
                f"a term on the velocity score moves no output of {str(parameterization)!r}, for "
                "x and v do not interact: use a parameterization 'full_...'"
            )
        return (block, block @ own)

    return _map_blocks(stages, with_term)


def _map_blocks(
    stages: Sequence[Stage], expand: Callable[[Stage, np.ndarray], tuple[np.ndarray, ...]]
) -> tuple[Stage, ...]:
    """Replace the first output's blocks in E and A by several; later outputs stay behind them."""
    result = []
    for stage in stages:
        if stage.evaluates:
            first = expand(stage, stage.E[0])
            rows = None if stage.A is None else (*expand(stage, stage.A[0]), *stage.A[1:])
            stage = replace(stage, E=(*first, *stage.E[1:]), A=rows)
        result.append(stage)
    return tuple(result)
