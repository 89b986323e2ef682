"""Interleaved timing: in each round every contestant takes one sample, so drift hits all alike."""

from __future__ import annotations

import timeit
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch

_FEWEST_ROUNDS = 3
_MOST_CALLS = 2000


@dataclass(frozen=True, slots=True)
class Effort:
    """How much time is spent.

    rounds: samples of a contestant. sample: seconds that a sample lasts at least, by repeated
    calls. budget: seconds for all samples of a contestant at one thread count; slow ones take part
    in fewer rounds, evenly spread, three at least.
    """

    rounds: int = 15
    sample: float = 0.01
    budget: float = 0.8


FULL = Effort()
QUICK = Effort(rounds=3, sample=0.001, budget=0.05)


@dataclass(slots=True)
class Timing:
    """Seconds per call of one contestant at one thread count, a value per sample."""

    threads: int
    calls: int
    rounds: int
    samples: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return float(np.median(self.samples))

    def quartiles(self) -> tuple[float, float]:
        """First and third quartile."""
        low, high = np.quantile(self.samples, (0.25, 0.75))
        return float(low), float(high)


@contextmanager
def threads_set(count: int) -> Iterator[None]:
    """PyTorch's thread count for the duration of a block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def calibrate(call: Callable[[], object], threads: int, effort: Effort) -> Timing:
    """Warm up (compilation included) and choose how often to call and to take part."""
    call()
    seconds = timeit.timeit(call, number=1)
    if seconds < effort.sample:
        seconds = min(seconds, timeit.timeit(call, number=1))
    calls = int(np.clip(np.ceil(effort.sample / max(seconds, 1e-9)), 1, _MOST_CALLS))
    rounds = int(np.clip(effort.budget / (calls * seconds), _FEWEST_ROUNDS, effort.rounds))
    return Timing(threads, calls, rounds)


def takes_part(index: int, rounds: int, of: int) -> bool:
    """Whether a contestant of `rounds` samples takes part in round `index` of `of`."""
    return (index + 1) * rounds // of > index * rounds // of


def interleaved(
    calls: Sequence[Callable[[], object]],
    threads: Sequence[int],
    effort: Effort,
    reset: Callable[[], None] = lambda: None,
) -> list[list[Timing]]:
    """Time calls round-robin; a list per call with a `Timing` per thread count.

    reset: run before each sample, not timed.
    """
    results: list[list[Timing]] = []
    for call in calls:
        row = []
        for count in threads:
            with threads_set(count):
                reset()
                row.append(calibrate(call, count, effort))
        results.append(row)
    for index in range(effort.rounds):
        for call, row in zip(calls, results, strict=True):
            for timing in row:
                if takes_part(index, timing.rounds, effort.rounds):
                    with threads_set(timing.threads):
                        reset()
                        call()  # what the reset has moved out of the caches comes back
                        seconds = timeit.timeit(call, number=timing.calls)
                        timing.samples.append(seconds / timing.calls)
    return results
