"""The pair of outputs that classifier-free guidance reads."""

from __future__ import annotations

import pytest
import torch

import cldfast
from cldfast.lab.models import MLPScore
from cldfast.network import ClassifierFree


def network() -> MLPScore:
    net = MLPScore(2, width=16, classes=3).double().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return net


@pytest.mark.parametrize("labels", [1, torch.tensor([2, 0, 1, 1, 3])])
@pytest.mark.parametrize("shared", [True, False])
def test_both_outputs_come_from_one_call(labels: torch.Tensor | int, shared: bool) -> None:
    net, u = network(), torch.randn(5, 4, dtype=torch.float64)
    t = torch.rand(1 if shared else 5, dtype=torch.float64).expand(5)
    seen: list[torch.Tensor] = []
    net.register_forward_hook(lambda _, inputs, __: seen.append(inputs[1]))
    conditional, unconditional = ClassifierFree(net, labels)(u, t)
    assert len(seen) == 1 and (seen[0].stride(0) == 0) == shared
    rows = torch.full((5,), labels) if isinstance(labels, int) else labels
    torch.testing.assert_close(conditional, net(u, t, rows))
    torch.testing.assert_close(unconditional, net(u, t))


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5])
def test_guided_samples_are_those_of_the_combined_network(scale: float) -> None:
    net, labels = network(), torch.tensor([0, 1, 2, 0])

    def combined(u: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return scale * net(u, t, labels) + (1.0 - scale) * net(u, t)

    sde, options = cldfast.CLD(), {"parameterization": "noise", "dtype": torch.float64, "seed": 0}
    guided = ClassifierFree(net, labels)
    found = cldfast.sample(guided, sde, (4, 2), "em", 5, guidance_scale=scale, **options)
    wanted = cldfast.sample(combined, sde, (4, 2), "em", 5, **options)
    torch.testing.assert_close(found, wanted)


def test_a_null_label_of_ones_own() -> None:
    def net(u: torch.Tensor, t: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return u * labels[:, None]

    u = torch.randn(3, 2)
    conditional, unconditional = ClassifierFree(net, 2, null=-1)(u, torch.rand(3))
    assert torch.equal(conditional, 2 * u) and torch.equal(unconditional, -u)


def test_what_does_not_fit_is_refused() -> None:
    net = network()
    with pytest.raises(ValueError, match="expected a network of classes, or the label"):
        ClassifierFree(MLPScore(2), 1)
    for labels in (torch.zeros(3), 1.0, True, [1, 2]):
        with pytest.raises(
            TypeError, match=r"labels: expected int64 \(B,\) or a whole number, got"
        ):
            ClassifierFree(net, labels)
    with pytest.raises(ValueError, match=r"labels: expected shape \(B,\) or \(\), got \(2, 1\)"):
        ClassifierFree(net, torch.zeros(2, 1, dtype=torch.int64))
    guided = ClassifierFree(net, torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="one for each of the 3 rows of this call, got 2"):
        guided(torch.zeros(3, 4, dtype=torch.float64), torch.rand(3).double())
