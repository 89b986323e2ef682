"""Fits the minimax polynomials of the normals: `python csrc/tools/fit_polynomials.py` writes them.

To csrc/shared/polynomials.h, and those for float32 to
cldfast/kernels/backends/triton/polynomials.py.

Remez exchange in 60-digit arithmetic (mpmath). Each fit minimises the largest weighted error on its
interval; the weight turns an error of the polynomial into a relative error of the function that it
serves, and the degrees are the smallest whose error is below a tenth of the unit round-off.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from itertools import groupby
from pathlib import Path

import mpmath as mp

mp.mp.dps = 60
Function = Callable[[mp.mpf], mp.mpf]


def remez(
    function: Function, weight: Function, low: mp.mpf, high: mp.mpf, degree: int
) -> tuple[list[mp.mpf], mp.mpf]:
    """Coefficients (lowest first) and the largest weighted error of the minimax polynomial."""
    nodes = degree + 2

    def chebyshev(parts: int) -> list[mp.mpf]:
        angles = (mp.pi * i / parts for i in range(parts + 1))
        return [(low + high) / 2 - (high - low) / 2 * mp.cos(angle) for angle in angles]

    points = chebyshev(nodes - 1)
    values = [(x, function(x), weight(x)) for x in chebyshev(60 * nodes)]
    coefficients: list[mp.mpf] = []
    worst = mp.inf
    for _ in range(30):
        powers = [[x**power for power in range(degree + 1)] for x in points]
        signs = [[(-1) ** i / weight(x)] for i, x in enumerate(points)]
        system = mp.matrix([row + sign for row, sign in zip(powers, signs, strict=True)])
        solution = mp.lu_solve(system, mp.matrix([function(x) for x in points]))
        coefficients = [solution[i] for i in range(degree + 1)]
        errors = [(x, (mp.polyval(coefficients[::-1], x) - f) * w) for x, f, w in values]
        # One extremum for each run of equal sign.
        runs = groupby(errors, key=lambda pair: mp.sign(pair[1]))
        extrema = [max(run, key=lambda pair: abs(pair[1])) for _, run in runs]
        while len(extrema) > nodes:
            extrema.pop(0 if abs(extrema[0][1]) < abs(extrema[-1][1]) else -1)
        worst = max(abs(error) for _x, error in extrema)
        if len(extrema) < nodes or worst < (1 + mp.mpf("1e-6")) * min(abs(e) for _x, e in extrema):
            break
        points = [x for x, _error in extrema]
    return coefficients, worst


def log_series(f: mp.mpf) -> mp.mpf:
    """(2 f - 2 ln(1 + f)) / f^2 = 1 - 2 f / 3 + ..., by its series near zero."""
    if abs(f) < mp.mpf("1e-6"):
        return mp.fsum(2 * (-f) ** i / (i + 2) for i in range(12))
    return (2 * f - 2 * mp.log1p(f)) / f**2


def log_weight(f: mp.mpf) -> mp.mpf:
    """Error of the polynomial to relative error of -2 ln u in the worst octave."""
    log = -2 * mp.log1p(f)
    octave = log if f < 0 else log + mp.log(4)
    return f**2 / octave if f != 0 else mp.mpf(0)


def sine_series(q: mp.mpf) -> mp.mpf:
    """(sin t / t - 1) / t^2 with q = t^2."""
    return mp.fsum((-1) ** (i + 1) * q**i / mp.factorial(2 * i + 3) for i in range(25))


def cosine_series(q: mp.mpf) -> mp.mpf:
    """(cos t - 1) / t^2 with q = t^2."""
    return mp.fsum((-1) ** (i + 1) * q**i / mp.factorial(2 * i + 2) for i in range(25))


SQRT_HALF = mp.sqrt(mp.mpf(1) / 2)
NUDGE = mp.mpf("1e-9")  # Keeps the weights off zero at the origin.
QUARTER = (mp.pi / 4) ** 2
# name, function, weight, interval, the degree for float and for double, what it approximates
FITS = [
    (
        "log_series", log_series, lambda f: log_weight(f) + NUDGE,
        SQRT_HALF - 1, 2 * SQRT_HALF - 1, (8, 19),
        "(2 f - 2 ln(1 + f)) / f^2 for 1 + f in [sqrt(1/2), sqrt(2))",
    ),
    (
        "sine_series", sine_series, lambda q: (q + NUDGE) / (1 + q * sine_series(q)),
        mp.mpf(0), QUARTER, (2, 5),
        "(sin t / t - 1) / q for q = t^2, |t| <= pi / 4",
    ),
    (
        "cosine_series", cosine_series, lambda q: (q + NUDGE) / (1 + q * cosine_series(q)),
        mp.mpf(0), QUARTER, (3, 6),
        "(cos t - 1) / q for q = t^2, |t| <= pi / 4",
    ),
]  # fmt: skip

HEADER = """\
// Minimax polynomials of the normals. Written by csrc/tools/fit_polynomials.py; do not edit.
#pragma once

#include "shared/horner.h"

namespace cldfast::CLDFAST_LEVEL {
namespace {
"""


PYTHON_HEADER = """\
\"\"\"Minimax polynomials of the normals. Written by csrc/tools/fit_polynomials.py; do not edit.

Those of csrc/shared/polynomials.h for float32, lowest order first; that file says what they
approximate.
\"\"\"
"""


def main() -> None:
    """Write csrc/shared/polynomials.h and cldfast/kernels/backends/triton/polynomials.py."""
    text, python = HEADER, PYTHON_HEADER
    for name, function, weight, low, high, degrees, meaning in FITS:
        for scalar, degree, suffix, digits in zip(
            ("float", "double"), degrees, ("f", ""), (9, 17), strict=True
        ):
            coefficients, worst = remez(function, weight, low, high, degree)
            literals = ", ".join(mp.nstr(c, digits) + suffix for c in coefficients)
            code = f"return horner(x, {literals});"
            body = textwrap.fill(code, 98, initial_indent="  ", subsequent_indent="      ")
            text += (
                f"\n// {meaning}; relative error 2^{float(mp.log(worst, 2)):.1f}.\n"
                f"template <class F>\nCLDFAST_HD F {name}(F x, {scalar}) {{\n{body}\n}}\n"
            )
            if scalar == "float":
                numbers = "".join(f"    {mp.nstr(c, digits)},\n" for c in coefficients)
                python += f"\n{name.upper()} = (\n{numbers})\n"
            print(f"{name} {scalar} degree {degree}: 2^{float(mp.log(worst, 2)):.1f}")
    text += "\n}  // namespace\n}  // namespace cldfast::CLDFAST_LEVEL\n"
    root = Path(__file__).resolve().parents[2]
    (root / "csrc" / "shared" / "polynomials.h").write_text(text)
    (root / "cldfast/kernels/backends/triton/polynomials.py").write_text(python)


if __name__ == "__main__":
    main()
