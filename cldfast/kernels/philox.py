"""Philox4x32-10 words and the normals made from them: the specification every kernel repeats.

Source of the generator: Salmon, Moraes, Dror, Shaw (2011), "Parallel random numbers: as easy as
1, 2, 3", SC'11. Source of the normals: Box and Muller (1958).
"""

from __future__ import annotations

import math

import torch

from cldfast.kernels.address import NoiseAddress

# Multipliers and Weyl key increments of philox4x32 (Salmon et al. 2011, table 2 and section 3.3).
MULTIPLIER_0 = 0xD2511F53
MULTIPLIER_1 = 0xCD9E8D57
WEYL_0 = 0x9E3779B9
WEYL_1 = 0xBB67AE85
ROUNDS = 10
_MASK = 0xFFFFFFFF

Words = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def philox4x32(counter: Words, key: tuple[int, int]) -> Words:
    """Four 32-bit words per counter, held in int64 tensors.

    counter: four int64 tensors (broadcastable), each value in [0, 2^32).
    key: the two 32-bit key words.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        # An int64 product wraps modulo 2^64, so its bit pattern is that of the unsigned product.
        p0 = c0 * MULTIPLIER_0
        p1 = c2 * MULTIPLIER_1
        high0, low0 = (p0 >> 32) & _MASK, p0 & _MASK
        high1, low1 = (p1 >> 32) & _MASK, p1 & _MASK
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0 = (k0 + WEYL_0) & _MASK
        k1 = (k1 + WEYL_1) & _MASK
    return c0, c1, c2, c3


def pair_words(
    address: NoiseAddress, count: int, device: torch.device | str = "cpu"
) -> tuple[torch.Tensor, torch.Tensor]:
    """The two words of each of `count` coordinate pairs from an address on, int64 (count,).

    address: its `first_index` is the number of the first pair.

    A call of the generator serves two neighbouring pairs: counter = (pair // 2 as two
    words, stage_index, stream), key = the 64-bit seed; an even pair takes words 0 and 1, an odd one
    words 2 and 3.
    """
    address.check_room(count, 1)
    first, seed = address.first_index, address.seed
    pair = torch.arange(first, first + count, dtype=torch.int64, device=device)
    half = pair >> 1
    zero = torch.zeros((), dtype=torch.int64, device=device)
    low, high = half & _MASK, (half >> 32) & _MASK
    counter = low, high, zero + address.stage_index, zero + int(address.stream)
    words = philox4x32(counter, (seed & _MASK, (seed >> 32) & _MASK))
    odd = (pair & 1).bool()
    return torch.where(odd, words[2], words[0]), torch.where(odd, words[3], words[1])


def normals_from_words(
    radius_word: torch.Tensor, angle_word: torch.Tensor, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Two independent standard normals per pair of words, by Box and Muller (1958).

    With `w = round_dtype(round_dtype(radius_word) + 1/2)` the radius is `sqrt(-2 ln(w / 2^32))` and
    the angle `2 pi angle_word / 2^32`; both in float64, the product rounded once to `dtype`. The
    half keeps the logarithm finite, so the largest normal is sqrt(66 ln 2) = 6.76; the angle
    lattice is symmetric, so the mean is zero exactly. Kernels agree to 2 units in the last place.
    """
    uniform = (radius_word.to(dtype) + 0.5).to(torch.float64) * 2.0**-32
    radius = torch.sqrt(-2.0 * torch.log(uniform))
    # Exact reduction to an eighth of a turn keeps full accuracy near the zeros of sine and cosine.
    quadrant = ((angle_word + 2**29) >> 30) & 3
    offset = ((angle_word + 2**29) & (2**30 - 1)) - 2**29
    angle = offset.to(torch.float64) * (2.0 * math.pi * 2.0**-32)
    sine, cosine = torch.sin(angle), torch.cos(angle)
    swap = (quadrant & 1).bool()
    cosine, sine = torch.where(swap, sine, cosine), torch.where(swap, cosine, sine)
    # Quarter turns 0, 1, 2, 3 send (cos, sin) to (c, s), (-s, c), (-c, -s), (s, -c).
    cosine = torch.where((quadrant == 1) | (quadrant == 2), -cosine, cosine)
    sine = torch.where(quadrant >= 2, -sine, sine)
    return (radius * cosine).to(dtype), (radius * sine).to(dtype)


def pair_normals(
    address: NoiseAddress, count: int, dtype: torch.dtype, device: torch.device | str = "cpu"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Addressed normals (z_x, z_v), each (count,), of the pairs of `pair_words`."""
    return normals_from_words(*pair_words(address, count, device), dtype)
