"""Conditions by name reach the network with the rows of each call, wherever a network is called."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import cldfast
from cldfast.classical import VP
from cldfast.classical import dsm_loss as position_loss
from cldfast.conditions import Conditioned, condition_rows
from cldfast.lab.models import MLPScore

F64 = torch.float64
SDE = cldfast.CLD()
LABELS = torch.tensor([3, 0, 2, 1, 1, 2, 0])
OPTIONS: dict[str, Any] = {"parameterization": "noise", "dtype": F64, "seed": 5}


def net(u: torch.Tensor, t: torch.Tensor, y: torch.Tensor, size: Any = None) -> torch.Tensor:
    """Row by row, so that a batch is the same bits as its rows."""
    made = -torch.tanh(u[:, :2]) * (1.0 + y.reshape(-1, 1))
    return made if size is None else made * size["a"][0]


def fixed(u: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """`net` with the conditions of all seven rows."""
    return net(u, t, LABELS)


def test_samples_have_their_own_conditions_in_any_batch() -> None:
    expected = cldfast.sample(fixed, SDE, (7, 2), "em", 5, **OPTIONS)
    for batch in (None, 1, 3, 7):
        found = cldfast.sample(
            net, SDE, (7, 2), "em", 5, batch_size=batch, conditions={"y": LABELS}, **OPTIONS
        )
        assert torch.equal(found, expected)
    plan = cldfast.make_plan(SDE, "em", 5, parameterization="noise")
    u = cldfast.initial_state(SDE, (7, 2), seed=5, dtype=F64)
    u = cldfast.run(plan, net, u, seed=5, conditions={"y": LABELS.tolist()})
    assert torch.equal(
        u.chunk(2, 1)[0], cldfast.sample(fixed, SDE, (7, 2), "em", 5, "quadratic", **OPTIONS)
    )


def test_shared_and_nested_conditions() -> None:
    one = cldfast.sample(
        lambda u, t: 0.5 * net(u, t, torch.tensor(2)), SDE, (5, 2), "em", 4, **OPTIONS
    )
    for y in (2, torch.tensor(2), torch.tensor([2]), np.array([2]), [2] * 5):
        size = {"a": (torch.full((5, 1), 0.5, dtype=F64), "text", None)}
        found = cldfast.sample(
            net, SDE, (5, 2), "em", 4, batch_size=2, conditions={"y": y, "size": size}, **OPTIONS
        )
        assert torch.equal(found, one)


@pytest.mark.parametrize("batch", [None, 2])
def test_guidance_takes_one_call_with_the_null(batch: int | None) -> None:
    calls: list[int] = []

    def counted(u: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        calls.append(len(u))
        return net(u, t, y)

    def combined(u: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return 3.0 * net(u, t, LABELS) - 2.0 * net(u, t, torch.tensor(9))

    found = cldfast.sample(
        counted, SDE, (7, 2), "em", 4, batch_size=batch, conditions={"y": LABELS}, null={"y": 9},
        guidance_scale=3.0, **OPTIONS,
    )  # fmt: skip
    torch.testing.assert_close(found, cldfast.sample(combined, SDE, (7, 2), "em", 4, **OPTIONS))
    assert calls == ([14] * 4 if batch is None else [4] * 12 + [2] * 4)


def test_a_network_of_classes_knows_its_null() -> None:
    mlp = MLPScore(2, width=8, classes=4).double().eval()
    for parameter in mlp.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    guided = cldfast.network.ClassifierFree(mlp, LABELS)
    expected = cldfast.sample(guided, SDE, (7, 2), "em", 3, guidance_scale=2.0, **OPTIONS)
    found = cldfast.sample(
        mlp, SDE, (7, 2), "em", 3, conditions={"labels": LABELS}, guidance_scale=2.0, **OPTIONS
    )
    assert torch.equal(found, expected)


def test_losses_flow_and_likelihood_take_the_same_conditions() -> None:
    x0, given = torch.randn(7, 2, dtype=F64), {"conditions": {"y": LABELS}}
    for loss in (cldfast.hsm_loss, cldfast.dsm_loss):
        assert torch.equal(
            loss(net, SDE, x0, parameterization="noise", seed=1, **given),
            loss(fixed, SDE, x0, parameterization="noise", seed=1),
        )
    flow = {"init": torch.randn(7, 4, dtype=F64), "parameterization": "noise"}
    assert torch.equal(
        cldfast.pflow(net, SDE, **flow, **given)[0], cldfast.pflow(fixed, SDE, **flow)[0]
    )
    bound = {"parameterization": "noise", "seed": 1, "rtol": 1e-3, "atol": 1e-3}
    assert torch.equal(
        cldfast.likelihood(net, SDE, x0, **bound, **given).nll,
        cldfast.likelihood(fixed, SDE, x0, **bound).nll,
    )
    assert torch.equal(
        position_loss(net, VP(), x0, seed=1, **given), position_loss(fixed, VP(), x0, seed=1)
    )


def test_paths_pack_their_samples_and_not_their_conditions() -> None:
    def of_samples(x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        assert x.shape[1:] == (3,)
        return -x * (1.0 + y.reshape(-1, 1))

    found = cldfast.sample(
        of_samples, VP(), (7, 3), "em", 4, batch_size=3, conditions={"y": LABELS}, seed=1
    )
    assert torch.equal(
        found, cldfast.sample(lambda x, t: of_samples(x, t, LABELS), VP(), (7, 3), "em", 4, seed=1)
    )


def test_what_does_not_fit_is_refused() -> None:
    def draw(conditions: Any, **options: Any) -> None:
        cldfast.sample(net, SDE, (7, 2), "em", 3, conditions=conditions, **options, **OPTIONS)

    with pytest.raises(ValueError, match="condition 'y': expected one row for each of 7 samples"):
        draw({"y": LABELS[:3]})
    with pytest.raises(TypeError, match="the network takes no labels: .* arguments are y, size"):
        draw({"labels": LABELS})
    with pytest.raises(TypeError, match="conditions: expected values by name, as"):
        draw(LABELS)
    with pytest.raises(ValueError, match=r"takes for no condition: null=\{'y': ...\}"):
        draw({"y": LABELS}, guidance_scale=2.0)
    with pytest.raises(ValueError, match="null of 'y': expected what broadcasts to"):
        draw({"y": LABELS}, guidance_scale=2.0, null={"y": torch.zeros(2, 2)})
    with pytest.raises(ValueError, match="condition 'a.b': expected one row"):
        condition_rows({"a": {"b": torch.zeros(2)}}, 3)


def test_a_conditioned_network_keeps_the_dtype_of_its_input() -> None:
    assert Conditioned(MLPScore(2, classes=2).half(), {"labels": 1}).input_dtype == torch.float16
