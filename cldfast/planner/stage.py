"""One step of a sampler as data: an affine update of every coordinate.

    u' = P u + sum_j E_j o_j + sum_k H_k h_k + L z         u = (x, v) per coordinate, z ~ N(0, I_2)
    h  = sum_j A_j o_j + B u                                history row kept for later stages

o_j are network outputs at (u, t), h_k earlier history rows, newest first.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True, slots=True, eq=False)
class Stage:
    """One affine update, per coordinate.

    t: time at which the network is evaluated, None for a stage without evaluation.
    t_next: time of the state that the stage makes.
    P: (2, 2). E: one (2, r) per network output. H: one (2, q) per history entry that is read.
    L: (2, 2) lower noise factor.
    A: one (q, r) per network output, and B: (q, 2): the history row to keep; None for none.
    seen: (s, 2), the planes of the state at t that the network sees; None: it sees the state.
    argument: the network's second argument, t if it is None.
    """

    t: float | None
    t_next: float
    P: np.ndarray
    E: tuple[np.ndarray, ...] = ()
    H: tuple[np.ndarray, ...] = ()
    L: np.ndarray = field(default_factory=lambda: np.zeros((2, 2)))
    A: tuple[np.ndarray, ...] | None = None
    B: np.ndarray | None = None
    seen: np.ndarray | None = None
    argument: float | None = None

    @property
    def evaluates(self) -> bool:
        """Whether the stage calls the network."""
        return self.t is not None

    @property
    def history_planes(self) -> int:
        """Planes of the history row that the stage makes, 0 for none."""
        return 0 if self.B is None else int(self.B.shape[0])

    def matrix(self, look: np.ndarray | None = None) -> np.ndarray:
        """All blocks as one float64 matrix (2 + q + s, n) on the planes (u, outputs, history, z).

        look: (s, 2), of the state that the stage makes the planes that the next network sees.
        """
        rows = [np.concatenate([self.P, *self.E, *self.H, self.L], axis=1)]
        if self.B is not None and self.A is not None:
            q = self.B.shape[0]
            unread = [np.zeros((q, h.shape[1])) for h in self.H]
            rows.append(np.concatenate([self.B, *self.A, *unread, np.zeros((q, 2))], axis=1))
        if look is not None:
            rows.append(look @ rows[0])
        # Kernels read float64 from memory, whatever a solver has made its blocks of.
        return np.concatenate(rows, axis=0, dtype=np.float64)


def affine_stages(
    t: Iterable[float],
    t_next: Iterable[float],
    P: Iterable[np.ndarray],
    E: Iterable[np.ndarray],
    L: Iterable[np.ndarray],
) -> list[Stage]:
    """A stage with one network output and no history for each entry of the arguments."""
    rows = zip(t, t_next, P, E, L, strict=True)
    return [Stage(t=float(a), t_next=float(b), P=p, E=(e,), L=noise) for a, b, p, e, noise in rows]
