"""How far samples are from data: Wasserstein distances and class fractions.

Samples are tensors or arrays of floating point, (n, d), or images, which are flattened. Every
function raises ValueError for shapes that do not fit and for empty or non-finite samples, TypeError
for what is no such tensor or array, and ImportError where a package of the demo extra is missing.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cldfast.extras import extra_module
from cldfast.lab.arrays import as_float64, as_numpy

Points = NDArray[np.float64]

# The exact distance holds an n x m cost matrix and takes cubic time.
EXACT_LIMIT = 5000

# Projections go through in blocks of at most this many projected numbers (32 MiB) at a time.
_BLOCK_ENTRIES = 1 << 22

# Rows whose distances to all others are in memory together.
_ROWS_AT_ONCE = 256

# Pivots for the exact solver: its own limit of 100,000 stops short at a few thousand points.
_MAX_PIVOTS = 100_000_000

# A covariance may miss symmetry or semi-definiteness by this much, in units of its variances.
_COVARIANCE_SLACK = 1e-10

_NEEDS_POT = "the sample distances need POT"


def sliced_w2(x: Any, y: Any, n_projections: int = 500, seed: int = 0) -> float:
    """Sliced Wasserstein-2 distance (not squared), in the units of the data.

    The root of the mean over random unit directions of the squared one-dimensional W2 distance.

    x, y: samples (n, d) and (m, d); n and m may differ. n_projections: number of directions, which
    `seed` chooses.

    Source: Bonneel, Rabin, Peyre and Pfister (2015).
    """
    a, b = _pair(x, y)
    if n_projections < 1:
        raise ValueError(f"n_projections: expected at least 1, got {n_projections}")
    ot = extra_module("ot", _NEEDS_POT)
    directions = np.random.default_rng(seed).standard_normal((a.shape[1], n_projections))
    directions /= np.linalg.norm(directions, axis=0)
    block = max(1, _BLOCK_ENTRIES // max(len(a), len(b)))
    total = 0.0
    for start in range(0, n_projections, block):
        part = directions[:, start : start + block]
        distance = ot.sliced_wasserstein_distance(a, b, projections=part, p=2)
        total += part.shape[1] * float(distance) ** 2
    return math.sqrt(total / n_projections)


def exact_w2(x: Any, y: Any) -> float:
    """Exact Wasserstein-2 distance (not squared) between two samples, in the units of the data.

    x, y: samples (n, d) and (m, d), at most 5,000 points each. Raises RuntimeError where the solver
    does not converge.
    """
    a, b = _pair(x, y)
    if max(len(a), len(b)) > EXACT_LIMIT:
        raise ValueError(
            f"exact_w2 takes at most {EXACT_LIMIT} points a side, got {len(a)} and {len(b)}; "
            "use sliced_w2"
        )
    ot = extra_module("ot", _NEEDS_POT)
    from scipy.spatial.distance import cdist

    # Differences first: the usual |x|^2 + |y|^2 - 2 x.y loses small distances to cancellation.
    cost = cdist(a, b, "sqeuclidean")
    squared, log = ot.emd2(ot.unif(len(a)), ot.unif(len(b)), cost, numItermax=_MAX_PIVOTS, log=True)
    if log["warning"] is not None:
        raise RuntimeError(f"exact_w2 did not converge: {log['warning']}")
    return math.sqrt(max(float(squared), 0.0))


def bures_w2(mean0: Any, cov0: Any, mean1: Any, cov1: Any) -> float:
    """Wasserstein-2 distance (not squared) between N(mean0, cov0) and N(mean1, cov1).

    mean0, mean1: (d,). cov0, cov1: (d, d), symmetric positive semi-definite; singular ones are
    fine. ValueError for what is not a covariance.

    With C = S S^T the squared distance is |mean0 - mean1|^2 + min over rotations U of
    |S0 - S1 U|^2, attained at U = A B^T for S1^T S0 = A diag B^T (Procrustes). Unlike
    tr C0 + tr C1 - 2 tr (C0^1/2 C1 C0^1/2)^1/2, nothing cancels where the two laws are close.

    Source: Bhatia, Jain and Lim (2019), "On the Bures-Wasserstein distance", theorem 1.
    """
    m0, m1 = as_float64(mean0, "mean0"), as_float64(mean1, "mean1")
    if m0.ndim != 1 or m0.size == 0 or m0.shape != m1.shape:
        raise ValueError(f"means: expected two of shape (d,), got {m0.shape} and {m1.shape}")
    s0, s1 = _factor(cov0, len(m0), "cov0"), _factor(cov1, len(m0), "cov1")
    left, _, right = np.linalg.svd(s1.T @ s0)
    return math.hypot(np.linalg.norm(m0 - m1), np.linalg.norm(s0 - s1 @ (left @ right)))


def class_fractions(samples: Any, train_x: Any, train_y: Any) -> Points:
    """Fractions (number of classes,) of samples that `classify` puts in each class; their sum is 1.

    samples, train_x, train_y: as for `classify`.
    """
    found = classify(samples, train_x, train_y)
    classes = int(as_numpy(train_y, "train_y").max()) + 1
    return np.bincount(found, minlength=classes) / len(found)


def classify(samples: Any, train_x: Any, train_y: Any) -> NDArray[np.int64]:
    """The classes (n,) of samples by a classifier trained on labelled data.

    The classifier is a support vector machine with a Gaussian kernel (about 99 % right on the
    held-out handwritten digits).

    samples: (n, d). train_x, train_y: data (m, d), and its labels (m,), whole numbers from 0 to the
    number of classes - 1.
    """
    points, known = _pair(samples, train_x, ("samples", "train_x"))
    labels = as_numpy(train_y, "train_y")
    if labels.dtype.kind not in "iu":
        raise TypeError(f"train_y: expected whole numbers, got {labels.dtype}")
    if labels.shape != (len(known),) or labels.min() < 0:
        raise ValueError(
            f"train_y: expected shape ({len(known)},) and labels from 0 on, got {labels.shape}"
        )
    svm = extra_module("sklearn.svm", "classes need scikit-learn")
    found: NDArray[np.int64] = svm.SVC().fit(known, labels).predict(points)
    return found


def nearest_ratio(samples: Any, train: Any, test: Any) -> float:
    """Median distance of samples to their nearest training row, over that of test rows.

    About 1 or more: new samples. Towards 0: copies of the training set.

    samples, train, test: (n, d), (m, d) and (k, d), or images.
    """
    medians = []
    for rows, name in ((samples, "samples"), (test, "test")):
        points, known = _pair(rows, train, (name, "train"))
        a, b = torch.from_numpy(points), torch.from_numpy(known)
        nearest = [torch.cdist(part, b).amin(1) for part in a.split(_ROWS_AT_ONCE)]
        medians.append(torch.cat(nearest).median())
    return float(medians[0] / medians[1])


def _factor(cov: Any, dim: int, name: str) -> Points:
    """A square root S (d, d) of a covariance, C = S S^T, accurate entry by entry.

    Pivoted Cholesky of the correlation matrix: a coordinate of tiny variance keeps its relative
    accuracy, which an eigenbasis (absolute errors, in units of the largest variance) would lose.
    """
    from scipy.linalg.lapack import dpstrf

    c = as_float64(cov, name)
    if c.shape != (dim, dim):
        raise ValueError(f"{name}: expected shape ({dim}, {dim}), got {c.shape}")
    variances = np.diag(c)
    if variances.min() < 0:
        raise ValueError(f"{name}: expected variances >= 0, got {variances.min():.3g}")
    scale = np.sqrt(variances)
    scale[scale == 0] = 1.0
    correlation = c / scale[:, None] / scale
    # Widest coordinate first where pivots tie: factors graded this way lose least in the SVD.
    order = np.argsort(-variances)
    packed, pivots, rank, _ = dpstrf(correlation[np.ix_(order, order)], lower=1)
    lower = np.tril(packed)
    lower[:, rank:] = 0.0
    root = np.empty_like(lower)
    root[order[pivots - 1]] = lower
    if np.abs(root @ root.T - correlation).max() > _COVARIANCE_SLACK:
        raise ValueError(f"{name}: expected a symmetric positive semi-definite matrix")
    return root * scale[:, None]


def _pair(x: Any, y: Any, names: tuple[str, str] = ("x", "y")) -> tuple[Points, Points]:
    rows = []
    for value, name in zip((x, y), names, strict=True):
        array = as_float64(value, name)
        if array.ndim < 2 or array.size == 0:
            raise ValueError(
                f"{name}: expected a non-empty (n, d) or images, got shape {array.shape}"
            )
        rows.append(array.reshape(len(array), -1))
    a, b = rows
    if a.shape[1] != b.shape[1]:
        raise ValueError(
            f"{names[0]} and {names[1]}: expected the same number of coordinates, "
            f"got {a.shape[1]} and {b.shape[1]}"
        )
    return a, b
