"""Noise addresses: what is a valid one, the ways from one to another, and who owns the streams."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from dataclasses import FrozenInstanceError
from enum import IntEnum, unique
from pathlib import Path

import numpy as np
import pytest
import torch

import cldfast
from cldfast import kernels
from cldfast.kernels import NoiseAddress, Stream
from cldfast.kernels.address import check_seed, signed_seed
from cldfast.kernels.philox import pair_words

PACKAGE = Path(cldfast.__file__).parent
PARTS = ("seed", "first_index", "stage_index", "stream")


def parts(address: NoiseAddress) -> tuple[int, ...]:
    return tuple(getattr(address, name) for name in PARTS)


def test_the_default_is_the_first_draw_of_a_sampler() -> None:
    assert parts(NoiseAddress()) == (0, 0, 0, Stream.SAMPLER) == (0, 0, 0, 0)


def test_the_ends_of_the_ranges() -> None:
    highest = (2**64 - 1, 2**63 - 1, 2**32 - 1, 2**32 - 1)
    assert parts(NoiseAddress(*highest)) == highest


@pytest.mark.parametrize(
    ("name", "value", "error", "words"),
    [
        ("seed", -1, ValueError, "seed must be in [0, 2^64), got -1"),
        ("seed", 2**64, ValueError, "seed must be in [0, 2^64), got 18446744073709551616"),
        ("first_index", -1, ValueError, "first_index must be in [0, 2^63), got -1"),
        ("stage_index", -1, ValueError, "stage_index must be in [0, 2^32), got -1"),
        ("stage_index", 2**32, ValueError, "stage_index must be in [0, 2^32), got 4294967296"),
        ("stream", -1, ValueError, "stream must be in [0, 2^32), got -1"),
        ("stream", 2**32, ValueError, "stream must be in [0, 2^32), got 4294967296"),
        *[(name, value, TypeError, f"{name} must be an integer, got {type(value).__name__}")
          for name in PARTS for value in (1.0, True, "1", None, np.float64(2.0), [1])],
    ],
)  # fmt: skip
def test_bad_parts_are_refused(
    name: str, value: object, error: type[Exception], words: str
) -> None:
    with pytest.raises(error) as caught:
        NoiseAddress(**{name: value})  # type: ignore[arg-type]
    assert str(caught.value) == words


@pytest.mark.parametrize("kind", [np.int64, np.uint64, np.int32, torch.tensor])
def test_other_integers_become_plain_ones(kind: type) -> None:
    address = NoiseAddress(*(kind(number) for number in (7, 5, 3, 2)))
    assert address == NoiseAddress(7, 5, 3, 2)
    assert all(type(part) is int for part in parts(address))


def test_it_is_immutable_and_compared_by_value() -> None:
    address = NoiseAddress(7, 5, 3, Stream.TIMES)
    with pytest.raises(FrozenInstanceError):
        address.seed = 8  # type: ignore[misc]
    assert not hasattr(address, "__dict__")
    assert address == NoiseAddress(7, 5, 3, 3) != NoiseAddress(7, 5, 3, 4)
    assert len({address, NoiseAddress(7, 5, 3, 3), NoiseAddress(8, 5, 3, 3)}) == 2


def test_from_one_address_to_another() -> None:
    address = NoiseAddress(7, 5, 3, 2)
    assert address.at_stage(9) == NoiseAddress(7, 5, 9, 2)
    assert address.in_stream(Stream.VELOCITY) == NoiseAddress(7, 5, 3, Stream.VELOCITY)
    assert address.in_pairs(10) == NoiseAddress(7, 50, 3, 2)
    with pytest.raises(ValueError, match="stream must be in"):
        address.in_stream(-1)
    with pytest.raises(ValueError, match="first_index must be in"):
        address.in_pairs(2**62)


def test_rows_and_pairs_are_those_of_the_whole_draw() -> None:
    width, address = 3, NoiseAddress(7, 5, 3, Stream.DATA_ORDER)
    whole = pair_words(address.in_pairs(width), 4 * width)
    for row in range(4):
        part = pair_words(NoiseAddress(7, 5 + row, 3, Stream.DATA_ORDER).in_pairs(width), width)
        for word, of_all in zip(part, whole, strict=True):
            assert torch.equal(word, of_all[row * width : (row + 1) * width])


def test_stages_and_streams_are_draws_of_their_own() -> None:
    address = NoiseAddress(7, 5, 3)
    others = [address.at_stage(k) for k in (0, 1)] + [address.in_stream(s) for s in Stream]
    draws = {tuple(pair_words(other, 4)[0].tolist()) for other in others}
    assert len(draws) == len(others)


def test_seeds() -> None:
    assert check_seed(np.uint64(2**64 - 1)) == 2**64 - 1
    for seed in (0, 1, 2**63 - 1, 2**63, 2**64 - 1):
        signed = signed_seed(seed)
        assert -(2**63) <= signed < 2**63 and signed % 2**64 == seed


# --- the streams have one owner ------------------------------------------------------------------


def test_no_two_streams_share_a_number() -> None:
    numbers = [member.value for member in Stream.__members__.values()]  # aliases too
    assert len(set(numbers)) == len(numbers)


def test_a_shared_number_is_refused_where_streams_are_named() -> None:
    source = inspect.getsource(Stream)
    for number in (0, max(Stream) + 1):
        text = f"{source}    PLANTED = {number}\n"
        if number in list(Stream):
            with pytest.raises(ValueError, match="PLANTED -> SAMPLER"):
                exec(text, {"IntEnum": IntEnum, "unique": unique})
        else:
            exec(text, {"IntEnum": IntEnum, "unique": unique})


def foreign_streams(source: str) -> Iterator[str]:
    """Streams that a source gives to an address other than by a name of `Stream`.

    One that a function has been given as `stream` may be passed on.
    """
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func).split(".")[-1]
        given = [keyword.value for keyword in node.keywords if keyword.arg == "stream"]
        if called == "NoiseAddress":
            given += node.args[len(PARTS) - 1 :]
        elif called == "in_stream":
            given += node.args
        for value in given:
            text = ast.unparse(value)
            if not re.fullmatch(r"(\w+\.)*Stream\.[A-Z_]+|(\w+\.)*stream", text):
                yield f"line {node.lineno}: {text}"


def test_nobody_else_numbers_a_stream() -> None:
    found = {
        str(path.relative_to(PACKAGE)): list(foreign_streams(path.read_text(encoding="utf-8")))
        for path in PACKAGE.rglob("*.py")
    }
    assert "compat/diffusers.py" in found  # the folder is read whole
    assert {name: lines for name, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    "planted",
    [
        "NoiseAddress(seed, stream=7)", "NoiseAddress(seed, 0, 0, 7)", "address.in_stream(7)",
        "kernels.NoiseAddress(seed, stream=_MINE)", "draw(u, stream=int(Stream.TIMES) + 1)",
    ],
)  # fmt: skip
def test_a_planted_number_is_found(planted: str) -> None:
    assert len(list(foreign_streams(planted))) == 1


def test_what_is_no_number_of_ones_own() -> None:
    for line in (
        "NoiseAddress(seed, first_index, stage, stream)", "address.in_stream(kernels.Stream.TIMES)",
        "NoiseAddress(seed, stream=other.stream)",
    ):  # fmt: skip
        assert not list(foreign_streams(line))


def test_a_seed_has_normals_for_so_many_pairs(backend: str) -> None:
    """The last sample before 2^63 pairs is drawn, and none beyond: its normals would be another's."""
    last = 2**62 - 3
    normals = kernels.normals((2, 2), NoiseAddress(1, last), backend=backend)
    assert torch.equal(
        normals[1:], kernels.normals((1, 2), NoiseAddress(1, last + 1), backend=backend)
    )
    with pytest.raises(ValueError, match="2 samples of 1 pairs must not begin at first_index"):
        pair_words(NoiseAddress(1, 2**63 - 2), 2)
    for call in (
        lambda first: kernels.normals((2, 2), NoiseAddress(1, first), backend=backend),
        lambda first: cldfast.sample(
            lambda u, t: u[:, 2:], cldfast.CLD(), (2, 2), seed=1, first_index=first, backend=backend
        ),
    ):
        with pytest.raises(ValueError, match="2 samples of 2 pairs must not begin at first_index"):
            call(last + 1)
