"""The running average of weights."""

import pytest
import torch
from torch import nn

from cldfast.training.ema import EMA


def _net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def _move(net, by):
    with torch.no_grad():
        for p in net.parameters():
            p.add_(by)


def test_average_follows_the_recursion_with_warm_up():
    net = _net()
    ema = EMA(net, decay=0.5)
    expected = [p.detach().clone() for p in net.parameters()]
    for n in range(20):
        _move(net, 0.1 * (n + 1))
        decay = min(0.5, (1 + n) / (10 + n))
        assert ema.next_decay == decay
        ema.update(net)
        expected = [
            decay * e + (1 - decay) * p.detach()
            for e, p in zip(expected, net.parameters(), strict=True)
        ]
    assert ema.updates == 20
    for got, want in zip(ema.model.parameters(), expected, strict=True):
        torch.testing.assert_close(got, want)


def test_an_update_can_be_left_out_on_the_device():
    net = _net()
    ema, plain = EMA(net), EMA(net)
    before = [p.clone() for p in ema.model.parameters()]
    _move(net, 1.0)
    ema.update(net, torch.ones(()))
    for p, q in zip(ema.model.parameters(), before, strict=True):
        assert torch.equal(p, q)
    ema.updates = 0
    for average, skip in ((ema, torch.zeros(())), (plain, None)):
        average.update(net, skip)
    for p, q in zip(ema.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(p, q)


def test_buffers_are_copied_and_the_average_is_for_evaluation():
    net = _net()
    ema = EMA(net)
    net(torch.randn(8, 3))
    ema.update(net)
    for name, buffer in net.named_buffers():
        torch.testing.assert_close(dict(ema.model.named_buffers())[name], buffer)
    assert not ema.model.training
    assert not any(p.requires_grad for p in ema.model.parameters())
    # A copy: the trained network is neither frozen nor shared.
    assert net.training and all(p.requires_grad for p in net.parameters())


def test_swapping_in_and_copying():
    net = _net()
    ema = EMA(net)
    own = [p.detach().clone() for p in net.parameters()]
    _move(net, 1.0)
    with pytest.raises(KeyError), ema.swapped_into(net) as inside:
        assert inside is net
        for p, q in zip(net.parameters(), own, strict=True):
            assert torch.equal(p, q)
        raise KeyError
    for p, q in zip(net.parameters(), own, strict=True):
        assert torch.equal(p, q + 1.0)
    ema.copy_to(net)
    for p, q in zip(net.parameters(), own, strict=True):
        assert torch.equal(p, q)


def test_state_goes_round():
    net = _net()
    ema = EMA(net, 0.9)
    for _ in range(3):
        _move(net, 1.0)
        ema.update(net)
    other = EMA(_net(1), 0.9)
    other.load_state_dict(ema.state_dict())
    assert other.updates == 3 and other.next_decay == ema.next_decay
    for p, q in zip(other.model.parameters(), ema.model.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("decay", [-0.1, 1.0, float("nan")])
def test_bad_decay(decay):
    with pytest.raises(ValueError, match=r"\[0, 1\)"):
        EMA(_net(), decay)


def test_other_network_is_refused():
    with pytest.raises(ValueError, match="averaged network"):
        EMA(_net()).update(nn.Linear(3, 5))
