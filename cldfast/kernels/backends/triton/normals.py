"""Addressed normals in Triton: the words of `kernels.philox`, by csrc/shared/philox.h's arithmetic.

`tl.randn` is another function: its clamp cuts the tails at 5.68, and the layout of its counter has
changed between versions.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl

from cldfast.kernels.backends.triton import polynomials

# The numbers of csrc/shared/philox.h for float32, explained there.
SQRT_HALF = tl.constexpr(0x3F3504F3)
LN4_HIGH = tl.constexpr(float.fromhex("0x1.62e4p+0"))
LN4_LOW = tl.constexpr(float.fromhex("0x1.7f7d1cp-19"))
TURN_HIGH = tl.constexpr(float.fromhex("0x1.921fb6p-30"))
TURN_LOW = tl.constexpr(float.fromhex("-0x1.777a5cp-55"))
LOG = tl.constexpr(polynomials.LOG_SERIES)
SINE = tl.constexpr(polynomials.SINE_SERIES)
COSINE = tl.constexpr(polynomials.COSINE_SERIES)
TURN = tl.constexpr(2.0 * math.pi * 2.0**-32)


@triton.jit
def _same(x, value: tl.constexpr):
    return tl.full(x.shape, value, x.dtype)


@triton.jit
def _horner(x, series: tl.constexpr, COUNT: tl.constexpr):
    total = _same(x, series[COUNT - 1])
    for i in tl.static_range(1, COUNT):
        total = tl.fma(total, x, _same(x, series[COUNT - 1 - i]))
    return total


@triton.jit
def _radius(word):
    """sqrt(-2 ln(w / 2^32)) as high + low, with w = round(round(word) + 1/2)."""
    w = word.to(tl.float32) + 0.5
    bits = w.to(tl.uint32, bitcast=True)
    one = _same(bits, 1 << 23)
    octave = (bits - _same(bits, SQRT_HALF) + one) >> 23
    f = (bits - (octave << 23) + one).to(tl.float32, bitcast=True) - 1.0
    halvings = (33 - octave.to(tl.int32)).to(tl.float32)
    base = halvings * _same(f, LN4_HIGH)
    total = base - (f + f)
    error = (base - total) - (f + f)
    rest = tl.fma(f * f, _horner(f, LOG, 9), tl.fma(halvings, _same(f, LN4_LOW), error))
    log = tl.maximum(total + rest, _same(f, 1e-30))
    inverse = tl.rsqrt(log)
    root = log * inverse
    step = (tl.fma(-root, root, total) + rest) * (inverse * 0.5)
    high = root + step
    return high, (root - high) + step


@triton.jit
def _polar(radius_word, offset):
    """radius (cos, sin)(2 pi offset / 2^32), |offset| <= 2^29, in float32."""
    radius, radius_low = _radius(radius_word)
    rounded = offset.to(tl.float32)
    turn = _same(rounded, TURN_HIGH)
    remainder = (offset - rounded.to(tl.int32)).to(tl.float32)
    angle = rounded * turn
    low = tl.fma(rounded, _same(rounded, TURN_LOW), tl.fma(rounded, turn, -angle))
    angle_low = tl.fma(remainder, turn, low)
    square = angle * angle
    t = tl.fma(square, _horner(square, COSINE, 4), -(angle * angle_low))
    s = tl.fma(angle * square, _horner(square, SINE, 3), tl.fma(angle_low, t, angle_low))
    cosine = radius + tl.fma(radius, t, radius_low)
    return cosine, tl.fma(radius, angle, tl.fma(radius, s, radius_low * angle))


@triton.jit
def box_muller(radius_word, angle_word, WIDE: tl.constexpr):
    """Standard normals from two blocks of uint32 words; float64 if WIDE, else float32."""
    eighth = _same(angle_word, 1 << 29)
    shifted = angle_word + eighth
    offset = (shifted & _same(shifted, (1 << 30) - 1)).to(tl.int32) - (1 << 29)
    if WIDE:
        # The formula of `kernels.philox`: a word and its half are exact in float64.
        uniform = (radius_word.to(tl.float64) + 0.5) * 2.0**-32
        radius = tl.sqrt(-2.0 * tl.log(uniform))
        angle = offset.to(tl.float64)
        angle = angle * _same(angle, TURN)
        cosine, sine = radius * tl.cos(angle), radius * tl.sin(angle)
    else:
        cosine, sine = _polar(radius_word, offset)
    # Quarter turns 0, 1, 2, 3 send (cos, sin) to (c, s), (-s, c), (-c, -s), (s, -c).
    quarter = shifted >> 30
    swap = (quarter & 1) == 1
    z_cos = tl.where(swap, sine, cosine)
    z_sin = tl.where(swap, cosine, sine)
    z_cos = tl.where((quarter == 1) | (quarter == 2), -z_cos, z_cos)
    z_sin = tl.where(quarter >= 2, -z_sin, z_sin)
    return z_cos, z_sin


@triton.jit
def words(seed, half, stage_index, stream):
    """The four words of the calls at `half`, a block of int64: for pairs 2 half, 2 half + 1."""
    low = (half & 0xFFFFFFFF).to(tl.uint32)
    high = ((half >> 32) & 0xFFFFFFFF).to(tl.uint32)
    third = tl.full(half.shape, 0, tl.uint32) + stage_index.to(tl.uint32)
    fourth = tl.full(half.shape, 0, tl.uint32) + stream.to(tl.uint32)
    return tl.philox(seed, low, high, third, fourth)


@triton.jit
def normals(seed, first_half, stage_index, stream, BLOCK: tl.constexpr, WIDE: tl.constexpr):
    """(z_x, z_v) of BLOCK pairs from pair 2 `first_half` on; all words of each call are used."""
    half = first_half + tl.arange(0, BLOCK // 2)
    w0, w1, w2, w3 = words(seed, half, stage_index, stream)
    radius = tl.interleave(w0, w2)
    angle = tl.interleave(w1, w3)
    return box_muller(radius, angle, WIDE)
