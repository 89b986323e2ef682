"""How far samples are from data: Wasserstein distances and class fractions.

Samples are tensors or arrays of floating point, (n, d), or images, which are flattened. Every
function raises ValueError for shapes that do not fit and for empty or non-finite samples, TypeError
for what is no such tensor or array, and ImportError where a package of the demo extra is missing.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cldfast.extras import extra_module
from cldfast.lab.arrays import as_float64, as_numpy

Points = NDArray[np.float64]

# Projections go through in blocks of at most this many projected numbers (32 MiB) at a time.
_BLOCK_ENTRIES = 1 << 22


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
    ot = extra_module("ot", "sliced_w2 needs POT")
    directions = np.random.default_rng(seed).standard_normal((a.shape[1], n_projections))
    directions /= np.linalg.norm(directions, axis=0)
    block = max(1, _BLOCK_ENTRIES // max(len(a), len(b)))
    total = 0.0
    for start in range(0, n_projections, block):
        part = directions[:, start : start + block]
        distance = ot.sliced_wasserstein_distance(a, b, projections=part, p=2)
        total += part.shape[1] * float(distance) ** 2
    return math.sqrt(total / n_projections)


def class_fractions(samples: Any, train_x: Any, train_y: Any) -> Points:
    """Fraction of samples that a classifier trained on labelled data puts in each class.

    The classifier is a support vector machine with a Gaussian kernel (about 99 % right on the
    held-out handwritten digits).

    samples: (n, d). train_x, train_y: data (m, d), and its labels (m,), whole numbers from 0 to the
    number of classes - 1. Returns fractions (number of classes,) that sum to 1.
    """
    points, known = _pair(samples, train_x, ("samples", "train_x"))
    labels = as_numpy(train_y, "train_y")
    if labels.dtype.kind not in "iu":
        raise TypeError(f"train_y: expected whole numbers, got {labels.dtype}")
    if labels.shape != (len(known),) or labels.min() < 0:
        raise ValueError(
            f"train_y: expected shape ({len(known)},) and labels from 0 on, got {labels.shape}"
        )
    svm = extra_module("sklearn.svm", "class_fractions needs scikit-learn")
    found = svm.SVC().fit(known, labels).predict(points)
    return np.bincount(found, minlength=int(labels.max()) + 1) / len(points)


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
