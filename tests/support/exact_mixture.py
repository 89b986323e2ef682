"""A mixture of two normals in one dimension, from densities in arbitrary precision."""

from __future__ import annotations

import exact
import mpmath as mp
import numpy as np

from cldfast.process.sde import LinearPhaseSDE

WEIGHTS, MEANS, VARIANCES = (0.3, 0.7), (-1.0, 1.5), (0.04, 0.25)


def mixture_in_one_dimension(
    sde: LinearPhaseSDE, t: float, u: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Full score (n, 2), E[x0 | u] (n,) and E[nu | u] (n,), nu the unit noise of y.

    In high precision: near t = 0 the position score is 1/t times more sensitive than the velocity
    score is accurate, if that comes out of a float64 matrix inverse.
    """
    step = exact.transition(sde.A, sde.D, float(sde.tau(t)))
    score, posterior, noise = np.empty_like(u), np.empty(len(u)), np.empty(len(u))
    with mp.workdps(60):
        m, sigma = step.phi[:, 0], step.sigma(sde.v0_var)
        pull = sigma**-1 * m
        snr = (m.T * pull)[0]
        parts = []
        for weight, mean, variance in zip(WEIGHTS, MEANS, VARIANCES, strict=True):
            cov = sigma + mp.mpf(variance) * (m * m.T)
            parts.append((mp.mpf(weight) / mp.sqrt(mp.det(cov)), mean, variance, cov**-1))
        for i, (x, v) in enumerate(u):
            total, gradient, mean_x0 = mp.mpf(0), mp.zeros(2, 1), mp.mpf(0)
            for weight, mean, variance, precision in parts:
                centred = mp.matrix([mp.mpf(float(x)), mp.mpf(float(v))]) - mp.mpf(mean) * m
                own = precision * centred
                share = weight * mp.exp(-(centred.T * own)[0] / 2)
                total += share
                gradient -= share * own
                mean_x0 += share * (mean + mp.mpf(variance) * (m.T * own)[0])
            score[i] = [float(gradient[0] / total), float(gradient[1] / total)]
            posterior[i] = float(mean_x0 / total)
            y = (pull[0] * mp.mpf(float(x)) + pull[1] * mp.mpf(float(v))) / snr
            noise[i] = float((y - mean_x0 / total) * mp.sqrt(snr))
    return score, posterior, noise
