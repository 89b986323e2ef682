"""Score networks: shapes, the shared-time path, configuration and learning."""

from __future__ import annotations

import json

import pytest
import torch
from network_time import Plain
from torch import nn

from cldfast.lab.models import MLPScore, TimeEmbedding, UNetScore, build_model

torch.set_num_threads(1)


def awake(model, seed=0):
    """Random weights everywhere, the zero-initialised last layers included."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def mlp(**options):
    return awake(MLPScore(3, width=32, time_width=16, **options)), torch.randn(5, 6)


def unet(**options):
    return awake(UNetScore(2, width=8, time_width=16, **options)), torch.randn(5, 4, 8, 8)


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


@CASES
@pytest.mark.parametrize("conditioning", ["time", "sigma", "c_noise"])
def test_the_plain_form_is_the_same(case, conditioning):
    """All that a layer of the time adds, added by a kernel of its own, in float64."""
    net, u = case(conditioning=conditioning)
    net, u = net.double(), u.double()
    for t in (torch.rand(5), torch.tensor([0.3]).expand(5)):
        t = t.double()
        wanted = Plain(net)(u, t)
        with torch.no_grad():
            torch.testing.assert_close(net(u, t), wanted, rtol=0, atol=1e-12)
        torch.testing.assert_close(net(u, t), wanted, rtol=0, atol=1e-12)
        parameters = [p for p in net.parameters()]
        found, plain = (
            torch.autograd.grad(out.square().sum(), parameters) for out in (net(u, t), wanted)
        )
        torch.testing.assert_close(found, plain, rtol=1e-11, atol=1e-11)


@CASES
def test_calls_with_other_times_are_their_own(case):
    net, u = case()
    times = torch.tensor([0.3, 0.7, 0.3])
    with torch.no_grad():
        first, second, third = (net(u, t.expand(5)) for t in times)
    assert torch.equal(first, third) and not torch.allclose(first, second, atol=1e-3)


@CASES
@pytest.mark.parametrize("options", [{}, {"classes": 3, "conditioning": "sigma"}])
def test_the_network_at_its_times(case, options):
    """Prepared for several times at once, and called in any order."""
    net, u = case(**options)
    net, u, times = net.double(), u.double(), torch.tensor([0.3, 0.01, 0.9]).double()
    prepared = net.at_times(times)
    assert len(prepared) == 3
    with torch.no_grad():
        for k in (1, 0, 2, 1):
            wanted = net(u, times[k].expand(5))
            torch.testing.assert_close(
                prepared[k](u, times[k].expand(5)), wanted, rtol=0, atol=1e-12
            )
    with pytest.raises(ValueError, match="u: expected shape"):
        prepared[0](u[:, :1], times[:1].expand(5))


@CASES
def test_without_gradients_nothing_given_is_written_to(case):
    net, u = case()
    before, weights = u.clone(), [p.clone() for p in net.parameters()]
    with torch.no_grad():
        net(u, torch.rand(5))
        net(u, torch.tensor([0.3]).expand(5))
    assert torch.equal(u, before)
    assert all(torch.equal(p, w) for p, w in zip(net.parameters(), weights, strict=True))


@CASES
@pytest.mark.parametrize("gradients", [True, False])
def test_half_precision_by_autocast(case, gradients):
    net, u = case()
    with torch.set_grad_enabled(gradients):
        for t in (torch.rand(5), torch.tensor([0.3]).expand(5)):
            wanted = net(u, t)
            with torch.autocast("cpu", torch.bfloat16):
                found = net(u, t)
            # A dozen roundings to 8 bits.
            error = (found.float() - wanted).norm() / wanted.norm()
            assert found.dtype == torch.bfloat16 and error < 0.1


@CASES
def test_gradients_in_the_state_of_a_frozen_network(case):
    net, u = case()
    net, u, t = net.double(), u.double(), torch.tensor([0.3], dtype=torch.float64).expand(5)
    wanted = torch.autograd.functional.jacobian(lambda x: net(x, t).square().sum(), u)
    net.requires_grad_(False)
    state = u.clone().requires_grad_()
    (found,) = torch.autograd.grad(net(state, t).square().sum(), state)
    torch.testing.assert_close(found, wanted)
    if u.ndim == 4:
        return  # PyTorch has no forward derivative of attention on the CPU
    _, along = torch.func.jvp(lambda x: net(x, t).square().sum(), (u,), (torch.ones_like(u),))
    torch.testing.assert_close(along, wanted.sum())


@CASES
@pytest.mark.parametrize("in_planes", [1, 2])
def test_planes_that_the_network_sees(case, in_planes):
    net, u = case(in_planes=in_planes)
    planes = u.shape[1] // 2
    assert net(u[:, : in_planes * planes], torch.rand(5)).shape == (5, planes, *u.shape[2:])
    with pytest.raises(ValueError, match=rf"u: expected shape \(B, {in_planes * planes}"):
        net(u[:, : (3 - in_planes) * planes], torch.rand(5))


@pytest.mark.parametrize(("in_planes", "out_planes"), [(1, 1), (2, 1), (2, 2), (1, 2)])
def test_gates_multiply_the_input(in_planes, out_planes):
    """A gate of g adds `g u` to each plane of outputs, from each plane of the input."""
    net = MLPScore(3, 3 * out_planes, width=8, in_planes=in_planes, gated=True)
    u, t = torch.randn(5, 3 * in_planes), torch.rand(5)
    assert not net(u, t).any()  # the gates of a fresh network are closed
    gates = torch.randn(out_planes, in_planes, 3)
    with torch.no_grad():
        net.gate.bias.copy_(gates.flatten())
    expected = torch.einsum("oid,bid->bod", gates, u.view(5, in_planes, 3)).flatten(1)
    torch.testing.assert_close(net(u, t), expected)
    shared = t[:1].expand(5)
    torch.testing.assert_close(awake(net)(u, shared), net(u, shared.clone()))
    assert build_model(net.config()).gated


def test_gates_need_whole_planes():
    with pytest.raises(ValueError, match="gated: expected out_dim a multiple of 3, got 4"):
        MLPScore(3, 4, gated=True)


@CASES
def test_labels(case):
    net, u = case(classes=3, label_dropout=0.5)
    net.eval()
    t, labels = torch.tensor([0.3]).expand(5), torch.tensor([0, 1, 2, 3, 0])
    out = net(u, t, labels)
    # Row by row with labels of their own; the label after the last is no label.
    for row, label in enumerate(labels):
        one = net(u[row : row + 1], t[:1], None if label == 3 else label[None])
        torch.testing.assert_close(out[row : row + 1], one, rtol=1e-4, atol=1e-5)
    assert (net(u, t, (labels + 1) % 4) - out).flatten(1).norm(dim=1).min() > 1e-2
    torch.testing.assert_close(net(u, t), net(u, t, torch.full((5,), 3)), rtol=1e-4, atol=1e-5)


@CASES
def test_labels_are_dropped_in_training_at_their_rate(case):
    net, u = case(classes=3, label_dropout=0.25)
    u, t = u[:1].expand(400, *u.shape[1:]), torch.tensor([0.3]).expand(400)
    labels = torch.ones(400, dtype=torch.int64)
    with torch.no_grad():
        kept, dropped = net.eval()(u[:1], t[:1], labels[:1]), net(u[:1], t[:1])
        torch.manual_seed(0)
        out = net.train()(u, t, labels)
    near = [(out - one).flatten(1).norm(dim=1) < 1e-2 for one in (kept, dropped)]
    assert torch.equal(near[0], ~near[1])
    # Three standard deviations of 400 draws.
    assert abs(near[1].double().mean() - 0.25) < 3 * (0.25 * 0.75 / 400) ** 0.5
    assert torch.equal(labels, torch.ones(400, dtype=torch.int64))


def test_a_network_without_training_knows_no_classes():
    net = MLPScore(3, classes=4)
    nn.init.ones_(net.last.weight)
    u, t = torch.randn(5, 6), torch.rand(5)
    assert torch.equal(net(u, t), net(u, t, torch.arange(5)))


@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_unet_depth(blocks):
    net = awake(UNetScore(width=8, multipliers=(1, 2), blocks=blocks))
    assert len(net.down) == len(net.up) == 2 * blocks
    u = torch.randn(2, 2, 4, 4)
    out = net(u, torch.rand(2))
    assert out.shape == (2, 1, 4, 4)
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in net.parameters())


def test_old_descriptions_and_weights_are_read():
    """What was written before the later arguments existed."""
    old = {
        "kind": "unet",
        "channels": 1,
        "width": 8,
        "multipliers": [1, 2],
        "time_width": 16,
        "out_channels": 1,
    }
    net = build_model(old)
    assert (net.in_planes, net.conditioning, net.classes, net.blocks) == (2, "time", None, 1)
    names = set(net.state_dict())
    assert {
        "time.layers.0.weight",
        "down.1.time.bias",
        "up.0.skip.weight",
        "middle.conv1.bias",
    } <= names
    assert not any("label" in name or "of_t" in name for name in names)
    names = set(build_model({"kind": "mlp", "dim": 2, "depth": 1}).state_dict())
    layers = [
        "time.layers.0",
        "time.layers.2",
        "first",
        "blocks.0.first",
        "blocks.0.second",
        "blocks.0.time",
        "last",
    ]
    assert names == {f"{layer}.{part}" for layer in layers for part in ("weight", "bias")}


def test_double_precision():
    net, u = mlp()
    assert net.double()(u.double(), torch.rand(5)).dtype == torch.float64


def test_time_embedding_tells_small_times_apart():
    """Every octave of time down to 1e-6 moves the features as much as late times do."""
    embedding = TimeEmbedding(8)
    features = embedding.features(torch.logspace(-6, 0, 40))
    gaps = features.diff(dim=0).norm(dim=1)
    assert gaps.min() > 0.5
    assert features.abs().max() < 2.0
    assert torch.isfinite(embedding(torch.zeros(1))).all()


def test_noise_levels_are_told_apart():
    """Every factor of 2 in sigma from 1e-3 to 1e3 moves the features; sigma says what c_noise does."""
    by_sigma, by_c_noise = TimeEmbedding(8, "sigma").double(), TimeEmbedding(8, "c_noise").double()
    sigma = torch.logspace(-3, 3, 21, dtype=torch.float64)
    features = by_sigma.features(sigma)
    assert features.diff(dim=0).norm(dim=1).min() > 0.5
    assert features.abs().max() < 2.0
    c_noise = sigma.log() / 4
    torch.testing.assert_close(by_c_noise.features(c_noise), features, rtol=0, atol=1e-12)
    octaves = 2.0 ** torch.arange(6) * torch.pi / 4
    angles = c_noise[:, None] * octaves
    wanted = torch.cat([c_noise[:, None], angles.sin(), angles.cos()], dim=1)
    torch.testing.assert_close(features, wanted, rtol=0, atol=1e-5)  # frequencies are float32


@pytest.mark.parametrize(
    "model",
    [
        MLPScore(3),
        MLPScore(2, 4, width=48, depth=1, time_width=20),
        UNetScore(),
        MLPScore(2, in_planes=1, conditioning="c_noise", classes=3, label_dropout=0.1),
        UNetScore(3, 6, width=16, multipliers=(1, 3), time_width=24),
        UNetScore(3, in_planes=1, conditioning="sigma", classes=10, label_dropout=0.2, blocks=2),
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
        ({"kind": "mlp", "dim": 2, "in_planes": 3}, "in_planes: expected 1 or 2, got 3"),
        (
            {"kind": "mlp", "dim": 2, "conditioning": "log"},
            "conditioning: expected one of time, sigma, c_noise, got 'log'",
        ),
        ({"kind": "mlp", "dim": 2, "classes": 0}, "classes: expected a whole number >= 1, got 0"),
        (
            {"kind": "mlp", "dim": 2, "label_dropout": 0.1},
            "label_dropout: expected classes with it",
        ),
        (
            {"kind": "mlp", "dim": 2, "classes": 2, "label_dropout": 1.0},
            r"label_dropout: expected a number in \[0, 1\), got 1.0",
        ),
        (
            {"kind": "mlp", "dim": 2, "classes": 2, "label_dropout": "0.1"},
            "label_dropout: expected a number in",
        ),
        ({"kind": "unet", "blocks": 0}, "blocks: expected a whole number >= 1, got 0"),
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


def test_bad_labels_are_refused():
    net, u, t = MLPScore(3, classes=4), torch.zeros(5, 6), torch.rand(5)
    with pytest.raises(ValueError, match="built without classes, expected None"):
        MLPScore(3)(u, t, torch.zeros(5, dtype=torch.int64))
    with pytest.raises(TypeError, match="labels: expected an int64 tensor, got torch.float32"):
        net(u, t, torch.zeros(5))
    with pytest.raises(TypeError, match="labels: expected an int64 tensor, got int"):
        net(u, t, 3)
    with pytest.raises(
        ValueError, match=r"labels: expected shape \(5,\) on cpu, got \(4,\) on cpu"
    ):
        net(u, t, torch.zeros(4, dtype=torch.int64))
    for labels in ([0, 1, 2, 3, 5], [0, -1, 2, 3, 4]):
        with pytest.raises(ValueError, match="labels: expected 0 to 3, or 4 for none, got"):
            net(u, t, torch.tensor(labels))


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
