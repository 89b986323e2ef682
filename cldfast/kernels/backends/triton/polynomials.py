"""Minimax polynomials of the normals. Written by csrc/tools/fit_polynomials.py; do not edit.

Those of csrc/shared/polynomials.h for float32, lowest order first; that file says what they
approximate.
"""

LOG_SERIES = (
    0.999999863,
    -0.666665198,
    0.500028576,
    -0.400097019,
    0.332243849,
    -0.282805446,
    0.263848017,
    -0.262097802,
    0.158790814,
)

SINE_SERIES = (
    -0.166666546,
    0.00833216079,
    -0.000195152867,
)

COSINE_SERIES = (
    -0.499999997,
    0.0416666204,
    -0.00138866817,
    2.43835682e-5,
)
