"""The two modes of every codebase served here, and what turns published steps into a plan.

"exact" has the right times, no jitter and our own noise. "published" repeats the codebase's
arithmetic, slips included. Published steps are affine too, so they are stages like any other: they
are written down for a network that returns the full score, `fold` replaces the score by what the
network does return, and `merge` joins steps that call no network to the one before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from cldfast.planner.stage import Stage

MODES = ("exact", "published")

# Times (n,) -> (from_output (n, 2, r), from_state (n, 2, 2)): score = from_output o + from_state u.
OutputMap = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def check_mode(mode: object) -> str:
    """The mode itself, or ValueError."""
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
    return str(mode)


def fold(stages: Sequence[Stage], output_map: OutputMap) -> tuple[Stage, ...]:
    """Stages for the full score, rewritten for a network whose output `output_map` explains.

    stages: without history, E one (2, 2) block on the full score.
    """
    times = np.array([stage.t for stage in stages if stage.t is not None], dtype=np.float64)
    maps = iter(zip(*output_map(times), strict=True)) if times.size else iter(())
    result = []
    for stage in stages:
        if stage.t is not None:
            from_output, from_state = next(maps)
            (E,) = stage.E
            stage = replace(stage, P=stage.P + E @ from_state, E=(E @ from_output,))
        result.append(stage)
    return tuple(result)


def merge(stages: Sequence[Stage]) -> tuple[Stage, ...]:
    """Each stage that calls no network is joined to the one before it; the law is unchanged.

    stages: without history.
    """
    result: list[Stage] = []
    for stage in stages:
        if stage.evaluates or not result:
            result.append(stage)
            continue
        last = result[-1]
        # The two noises add up as L L^T = (P L1)(P L1)^T + L2 L2^T: a triangular factor of the
        # wide matrix (P L1, L2), without squaring it.
        _, upper = np.linalg.qr(np.concatenate([stage.P @ last.L, stage.L], axis=1).T)
        L = np.tril(upper.T * np.where(np.diag(upper) < 0.0, -1.0, 1.0))
        result[-1] = replace(
            last,
            t_next=stage.t_next,
            P=stage.P @ last.P,
            E=tuple(stage.P @ block for block in last.E),
            L=L,
        )
    return tuple(result)
