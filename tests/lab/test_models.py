"""Score networks: shapes, the shared-time path, configuration and learning."""

from __future__ import annotations

import json

import pytest
import torch

from cldfast.lab.models import MLPScore, TimeEmbedding, UNetScore, build_model

torch.set_num_threads(1)


def awake(model, seed=0):
    """Random weights everywhere, the zero-initialised last layers included."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def mlp():
    return awake(MLPScore(3, width=32, time_width=16)), torch.randn(5, 6)


def unet():
    return awake(UNetScore(2, width=8, time_width=16)), torch.randn(5, 4, 8, 8)


CASES = pytest.mark.parametrize("case", [mlp, unet])


@pytest.mark.parametrize("out_dim", [None, 6, 1])
def test_mlp_shapes(out_dim):
    net = awake(MLPScore(3, out_dim, width=16, depth=2))
    assert net(torch.randn(7, 6), torch.rand(7)).shape == (7, 3 if out_dim is None else out_dim)


@pytest.mark.parametrize("size", [(8, 8), (12, 20), (28, 28), (64, 64), (4, 4)])
@pytest.mark.parametrize(("channels", "out_channels"), [(1, None), (3, 6)])
def test_unet_shapes(size, channels, out_channels):
    net = awake(UNetScore(channels, out_channels, width=8))
    out = net(torch.randn(2, 2 * channels, *size), torch.rand(2))
    assert out.shape == (2, out_channels or channels, *size)
    assert torch.isfinite(out).all()


@pytest.mark.parametrize("multipliers", [(1,), (1, 2), (1, 2, 4, 4)])
def test_unet_levels(multipliers):
    net = UNetScore(width=16, multipliers=multipliers)
    factor = 2 ** (len(multipliers) - 1)
    assert net(torch.randn(2, 2, 3 * factor, factor), torch.rand(2)).shape[2:] == (
        3 * factor,
        factor,
    )


def test_default_unet_is_small():
    assert 0.3e6 < sum(p.numel() for p in UNetScore().parameters()) < 1.0e6


@pytest.mark.parametrize("net", [MLPScore(2), UNetScore()])
def test_a_fresh_network_returns_zero(net):
    u = torch.randn(3, 4) if isinstance(net, MLPScore) else torch.randn(3, 2, 8, 8)
    assert (net(u, torch.rand(3)) == 0).all()


@CASES
def test_shared_time_equals_time_per_row(case):
    net, u = case()
    rows: list[int] = []
    net.time.register_forward_hook(lambda _, inputs, __: rows.append(len(inputs[0])))
    shared = net(u, torch.tensor([0.3]).expand(5))
    each = net(u, torch.full((5,), 0.3))
    one = net(u[:1], torch.tensor([0.3]))
    assert rows == [1, 5, 1]
    # Matrix products over 1 and over 5 rows may round differently in float32.
    torch.testing.assert_close(shared, each, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(shared[:1], one, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(shared, net(u, torch.full((5,), 0.6)), atol=1e-3)


@CASES
def test_shared_time_has_the_same_gradients(case):
    net, u = case()
    gradients = []
    for t in (torch.tensor([0.3]).expand(5), torch.full((5,), 0.3)):
        net.zero_grad()
        net.double()(u.double(), t.double().expand_as(t)).square().sum().backward()
        gradients.append([p.grad.clone() for p in net.parameters()])
    for shared, each in zip(*gradients, strict=True):
        torch.testing.assert_close(shared, each, rtol=1e-8, atol=1e-8)


@CASES
def test_rows_do_not_mix(case):
    net, u = case()
    t = torch.rand(5)
    changed = u.clone()
    changed[3:] += 1.0
    out, other = net(u, t), net(changed, t)
    torch.testing.assert_close(out[:3], other[:3], rtol=1e-4, atol=1e-5)
    assert (out[3:] - other[3:]).abs().max() > 1e-2


@CASES
def test_inputs_are_left_alone(case):
    net, u = case()
    before = u.clone()
    net(u, torch.rand(5))
    assert torch.equal(u, before)


@CASES
def test_networks_compile_without_graph_breaks(case):
    net, u = case()
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    for t in (torch.rand(5), torch.tensor([0.2]).expand(5)):
        torch.testing.assert_close(compiled(u, t), net(u, t), rtol=1e-4, atol=1e-5)


def test_double_precision():
    net, u = mlp()
    assert net.double()(u.double(), torch.rand(5)).dtype == torch.float64


def test_time_embedding_tells_small_times_apart():
    """Every octave of time down to 1e-6 moves the features as much as late times do."""
    embedding = TimeEmbedding(8)
    features: list[torch.Tensor] = []
    embedding.layers.register_forward_hook(lambda _, inputs, __: features.append(inputs[0]))
    t = torch.logspace(-6, 0, 40)
    embedding(t)
    gaps = features[0].diff(dim=0).norm(dim=1)
    assert gaps.min() > 0.5
    assert features[0].abs().max() < 2.0
    assert torch.isfinite(embedding(torch.zeros(1))).all()


@pytest.mark.parametrize(
    "model",
    [
        MLPScore(3),
        MLPScore(2, 4, width=48, depth=1, time_width=20),
        UNetScore(),
        UNetScore(3, 6, width=16, multipliers=(1, 3), time_width=24),
    ],
)
def test_config_round_trip(model):
    config = json.loads(json.dumps(model.config()))
    again = build_model(config)
    assert type(again) is type(model) and again.config() == model.config()
    again.load_state_dict(model.state_dict())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "expected kind one of mlp, unet, got None"),
        ({"kind": "transformer"}, "got 'transformer'"),
        ({"kind": ["mlp"]}, "expected kind one of"),
        ({"kind": "mlp", "dim": 2, "heads": 3}, "unknown heads; mlp takes dim, out_dim, width"),
        ({"kind": "mlp"}, "missing a required argument: 'dim'"),
        ({"kind": "mlp", "dim": 0}, "dim: expected a whole number >= 1, got 0"),
        ({"kind": "mlp", "dim": 2.5}, "dim: expected a whole number >= 1, got 2.5"),
        ({"kind": "unet", "width": 20}, "width: expected a multiple of 8, got 20"),
        ({"kind": "unet", "multipliers": []}, "multipliers: expected whole numbers"),
        ({"kind": "unet", "multipliers": [1, 0]}, "multipliers: expected whole numbers"),
        ({"kind": "unet", "multipliers": 3}, "multipliers: expected whole numbers"),
    ],
)
def test_bad_configs_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        build_model(config)


def test_a_config_is_a_dictionary():
    with pytest.raises(TypeError, match="expected a dict, got str"):
        build_model("mlp")


def test_bad_calls_are_refused():
    vector, image = MLPScore(3), UNetScore(1)
    with pytest.raises(ValueError, match=r"u: expected shape \(B, 6\), got \(5, 3\)"):
        vector(torch.zeros(5, 3), torch.zeros(5))
    with pytest.raises(ValueError, match=r"t: expected shape \(5,\), got \(4,\)"):
        vector(torch.zeros(5, 6), torch.zeros(4))
    with pytest.raises(ValueError, match=r"t: expected shape \(5,\), got \(\)"):
        vector(torch.zeros(5, 6), torch.tensor(0.5))
    with pytest.raises(TypeError, match="t: expected a tensor, got float"):
        vector(torch.zeros(5, 6), 0.5)
    with pytest.raises(ValueError, match=r"u: expected shape \(B, 2, H, W\), got \(5, 1, 8, 8\)"):
        image(torch.zeros(5, 1, 8, 8), torch.zeros(5))
    with pytest.raises(ValueError, match=r"multiples of 4, got \(8, 10\)"):
        image(torch.zeros(5, 2, 8, 10), torch.zeros(5))


@pytest.mark.parametrize("kind", ["mlp", "unet"])
def test_networks_learn(kind):
    """Predict -v / (1 + 5 t), a state- and time-dependent rule: the error falls 20-fold."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = MLPScore(2, width=64) if kind == "mlp" else UNetScore(width=8, multipliers=(1, 2))
    optimiser = torch.optim.Adam(net.parameters(), lr=3e-3)
    shape = (64, 4) if kind == "mlp" else (16, 2, 4, 4)
    losses = []
    for _ in range(250):
        u, t = torch.randn(shape, generator=generator), torch.rand(shape[0], generator=generator)
        v = u.chunk(2, dim=1)[1]
        target = -v / (1 + 5 * t).view(-1, *[1] * (v.ndim - 1))
        loss = (net(u, t) - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-10:]) < sum(losses[:10]) / 20
