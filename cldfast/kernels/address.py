"""Where a draw of random numbers stands: noise is addressed, not drawn from a state.

The generator is a function of a key and a counter (`cldfast.kernels.philox`). The key is the seed;
the counter is (the number of a coordinate pair, the stage of a run, the stream). A sample's noise
therefore depends on the seed and on the sample's global index alone, on every device and for every
batch size.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, replace
from enum import IntEnum, unique

SEED_LIMIT = 2**64
_WORD_LIMIT = 2**32
# Flat indices are signed 64-bit integers in PyTorch.
_INDEX_LIMIT = 2**63
_set = object.__setattr__


@unique
class Stream(IntEnum):
    """What a draw is for: the fourth counter word, which keeps draws under one seed apart."""

    SAMPLER = 0
    INITIAL_STATE = 1
    PERTURBATION = 2
    TIMES = 3
    INPAINTING = 4
    VELOCITY = 5
    DATA_ORDER = 6
    PROBE = 7
    BROWNIAN = 8
    ACCEPTANCE = 9
    LABELS = 10
    MIRRORS = 11


@dataclass(frozen=True, slots=True)
class NoiseAddress:
    """The address of the normals (or words) of consecutive samples; made and checked once.

    seed: key of the generator, in [0, 2^64). first_index: global index of the first sample, in
    [0, 2^63).
    stage_index: number of the stage of a run, in [0, 2^32). stream: a `Stream`, or another number
    in [0, 2^32) for draws of one's own.

    Integers of numpy are taken too. Raises TypeError for what is no integer, ValueError for one out
    of range.
    """

    seed: int = 0
    first_index: int = 0
    stage_index: int = 0
    stream: int = Stream.SAMPLER

    def __post_init__(self) -> None:
        # Plain integers in range, the usual case, are settled by one comparison each.
        if not (type(self.seed) is int and 0 <= self.seed < SEED_LIMIT):
            _set(self, "seed", check_seed(self.seed))
        if not (type(self.first_index) is int and 0 <= self.first_index < _INDEX_LIMIT):
            _set(self, "first_index", _whole("first_index", self.first_index, _INDEX_LIMIT))
        if not (type(self.stage_index) is int and 0 <= self.stage_index < _WORD_LIMIT):
            _set(self, "stage_index", _whole("stage_index", self.stage_index, _WORD_LIMIT))
        if type(self.stream) is not Stream:
            _set(self, "stream", _whole("stream", self.stream, _WORD_LIMIT))

    def at_stage(self, stage_index: int) -> NoiseAddress:
        """The same samples in another stage of the run, which is taken as valid."""
        # Once for each stage of a run: the other parts are checked already.
        made = object.__new__(NoiseAddress)
        _set(made, "seed", self.seed)
        _set(made, "first_index", self.first_index)
        _set(made, "stage_index", stage_index)
        _set(made, "stream", self.stream)
        return made

    def in_stream(self, stream: int) -> NoiseAddress:
        """The same samples in another stream."""
        return replace(self, stream=stream)

    def in_pairs(self, width: int) -> NoiseAddress:
        """The same draw with samples of one coordinate pair each, where a sample has `width`."""
        return replace(self, first_index=self.first_index * width)

    def check_room(self, samples: int, pairs: int) -> None:
        """ValueError where so many samples of so many pairs go beyond the numbers of a seed."""
        if (self.first_index + samples) * pairs >= _INDEX_LIMIT:
            raise ValueError(
                f"a seed has normals for 2^63 pairs: {samples} samples of {pairs} pairs must not "
                f"begin at first_index = {self.first_index}"
            )


def check_seed(seed: object) -> int:
    """The seed as an int in [0, 2^64); TypeError or ValueError for anything else."""
    return _whole("seed", seed, SEED_LIMIT)


def signed_seed(seed: int) -> int:
    """The seed as a signed 64-bit integer, which is what an operator's schema carries."""
    return seed - SEED_LIMIT if seed >= SEED_LIMIT // 2 else seed


def _whole(name: str, value: object, limit: int) -> int:
    """A value as an int in [0, limit)."""
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise TypeError(f"{name} must be an integer, got {type(value).__name__}")
    if not 0 <= number < limit:
        raise ValueError(f"{name} must be in [0, 2^{limit.bit_length() - 1}), got {number}")
    return number
