"""What the compiled core writes for the network to see: dtypes, layouts, every level, refusals."""

from __future__ import annotations

import pytest
import torch
from backend_calls import at_level
from core_calls import LEVELS
from seen_planes import SEEN_DTYPES, SEEN_SHAPES, check_seen_planes

from cldfast import _core


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("seen_dtype", SEEN_DTYPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", SEEN_SHAPES, ids=str)
def test_seen_planes(
    shape: tuple[int, ...], dtype: torch.dtype, seen_dtype: torch.dtype, level: str
) -> None:
    check_seen_planes(at_level(level), shape, dtype, seen_dtype)


@pytest.mark.parametrize("level", LEVELS)
def test_a_large_stage_in_place_and_in_new_memory(level: str) -> None:
    """Past the caches, where states are streamed and seen planes are not."""
    cpu = at_level(level)
    u, output = torch.randn(3, 2 * 900_001), torch.randn(3, 900_001)
    weights = torch.randn(1, 3, 5, dtype=torch.float64)
    plain = cpu.stage(u, [output], [], weights)
    for out in (None, u):
        made = cpu.stage(
            u, [output], [], weights, out=out, seen_planes=1, seen_dtype=torch.bfloat16
        )
        assert torch.equal(made.state, plain.state)
        assert torch.equal(made.seen, plain.history.bfloat16())


def described(tensor: torch.Tensor, planes: int) -> tuple[int, ...]:
    width = tensor.shape[1] // planes
    return (tensor.data_ptr(), planes, 0, tensor.shape[1], width, 1, 1)


def test_calls_that_do_not_fit_are_refused() -> None:
    """By the core itself, which trusts nothing but the memory behind an address."""
    state, weights = torch.zeros(4, 6), torch.zeros(1, 2, 4, dtype=torch.float64)
    planes = described(state, 2)
    arguments = {
        "shape": (4, 3, 1, 0), "inputs": planes, "outputs": planes,
        "weights": (weights.data_ptr(), 1, 2, 4), "table": None, "times": 0, "noise": (1, 2, 3, 4),
        "threads": 1, "level": "",
    }  # fmt: skip
    assert _core.stage(*arguments.values())
    for changed, words in [
        ({"shape": (0, 3, 1, 0)}, "a call needs rows, channels and positions"),
        ({"shape": (4, 0, 1, 0)}, "a call needs rows, channels and positions"),
        ({"shape": (4, 3, 0, 0)}, "a call needs rows, channels and positions"),
        ({"shape": (4, 3, 1, 2)}, "the state must be float32 or float64"),
        ({"shape": (4, 3, 1)}, "a shape, .* are 4 integers"),
        ({"inputs": planes[:6]}, "a tensor is described by 7 integers"),
        ({"outputs": (*planes[:2], 9, *planes[3:])}, "unknown dtype code"),
        ({"outputs": planes * 2}, "the weights do not fit the planes"),
        ({"noise": None}, "the weights do not fit the planes"),
        ({"noise": (1, 2, 3)}, "a noise address .* 4 integers"),
        ({"weights": (weights.data_ptr(), 2, 2, 4)}, "weights must hold 1 matrix, or one for each row"),
        ({"weights": (weights.data_ptr(), 1, 3, 4)}, "the weights do not fit the planes"),
        ({"level": "mmx"}, "level must be one of portable.*got mmx"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=words):
            _core.stage(*{**arguments, **changed}.values())
    with pytest.raises(TypeError):
        _core.stage(*{**arguments, "inputs": (*planes[:6], "text")}.values())
