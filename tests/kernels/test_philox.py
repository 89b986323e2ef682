"""Words and normals of addressed noise: the generator's known answers, and all levels alike."""

from __future__ import annotations

import math

import pytest
import torch
from core_calls import LEVELS, normals, normals_from_words, ulps, words
from core_calls import philox4x32 as scalar_philox4x32
from hypothesis import given, settings
from hypothesis import strategies as st

from cldfast import NoiseAddress
from cldfast.kernels.philox import normals_from_words as reference_normals_from_words
from cldfast.kernels.philox import pair_normals, pair_words, philox4x32

# philox4x32 with 10 rounds, of Random123's tests/kat_vectors: counter, key, answer.
KNOWN_ANSWERS = [
    (
        (0x00000000, 0x00000000, 0x00000000, 0x00000000),
        (0x00000000, 0x00000000),
        (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
    ),
    (
        (0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF),
        (0xFFFFFFFF, 0xFFFFFFFF),
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]

# Units in the last place between kernels and reference. In float32 the reference is rounded once
# from float64, and a kernel stays within 2.1 units of the exact value. In float64 the reference's
# own logarithm, sine and products each err by up to a unit.
ULPS = {torch.float32: 2, torch.float64: 5}


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_known_answers(
    counter: tuple[int, ...], key: tuple[int, int], answer: tuple[int, ...]
) -> None:
    c0, c1, c2, c3 = (torch.tensor(word) for word in counter)
    assert tuple(int(word) for word in philox4x32((c0, c1, c2, c3), key)) == answer
    assert scalar_philox4x32(counter, key[0] | key[1] << 32) == answer


@pytest.mark.parametrize("level", LEVELS)
def test_known_answer_as_words_of_pairs(level: str) -> None:
    # The zero counter is that of pairs 0 and 1; the other two lie past the last flat pair.
    radius, angle = words(0, 0, 2, 0, 0, level)
    made = (int(radius[0]), int(angle[0]), int(radius[1]), int(angle[1]))
    assert made == KNOWN_ANSWERS[0][2]


@pytest.mark.parametrize("level", LEVELS)
@given(
    seed=st.integers(0, 2**64 - 1),
    first_pair=st.integers(0, 2**63 - 1000),
    count=st.integers(1, 300),
    stage_index=st.integers(0, 2**32 - 1),
    stream=st.integers(0, 2**32 - 1),
)
@settings(deadline=None, max_examples=60)
def test_words_equal_the_reference(
    level: str, seed: int, first_pair: int, count: int, stage_index: int, stream: int
) -> None:
    expected = pair_words(NoiseAddress(seed, first_pair, stage_index, stream), count)
    for word, reference in zip(
        words(seed, first_pair, count, stage_index, stream, level), expected, strict=True
    ):
        assert torch.equal(word, reference)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normals_of_all_levels_agree(dtype: torch.dtype) -> None:
    count, address = 1_000_001, NoiseAddress(7, 5, 3, 1)
    expected = pair_normals(address, count, dtype)
    made = [normals(7, 5, count, 3, 1, dtype, level) for level in LEVELS]
    made.append(normals_from_words(*pair_words(address, count), dtype))
    for z in made:
        for axis in range(2):
            assert ulps(z[axis], expected[axis]) <= ULPS[dtype]
            for other in made:
                assert ulps(z[axis], other[axis]) <= 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normals_at_the_edges_of_the_words(dtype: torch.dtype) -> None:
    edges = [0, 1, 2, 127, 2**24 - 1, 2**29 - 1, 2**29, 2**30, 2**31 - 1, 2**31, 2**31 + 1]
    edges += [2**32 - 1 - e for e in edges] + [3 * 2**29 - 1, 3 * 2**29, 0xB504F333, 0xB504F334]
    radius, angle = (grid.reshape(-1) for grid in torch.meshgrid(
        torch.tensor(edges), torch.tensor(edges), indexing="ij"
    ))  # fmt: skip
    z = normals_from_words(radius, angle, dtype)
    expected = reference_normals_from_words(radius, angle, dtype)
    for axis in range(2):
        assert torch.isfinite(z[axis]).all()
        # Zero has either sign: the radius of the largest word is zero in float32.
        assert ulps(z[axis].abs(), expected[axis].abs()) <= ULPS[dtype]
    # The smallest word gives the largest normal, sqrt(66 ln 2).
    assert float(torch.stack(z).abs().max()) == pytest.approx(math.sqrt(66 * math.log(2)), rel=1e-6)


@pytest.mark.parametrize("level", LEVELS)
def test_a_pair_does_not_depend_on_its_run(level: str) -> None:
    whole = normals(3, 1_000, 400, level=level)
    for start, count in [(0, 1), (1, 1), (1, 3), (7, 100), (63, 337), (399, 1)]:
        part = normals(3, 1_000 + start, count, level=level)
        for axis in range(2):
            assert torch.equal(part[axis], whole[axis][start : start + count])


def test_an_unknown_level_is_named() -> None:
    with pytest.raises(ValueError, match="level must be one of portable.*got mmx"):
        normals(0, 0, 1, level="mmx")
