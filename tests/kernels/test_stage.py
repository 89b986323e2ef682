"""The public stage operation: meaning, checks, gradients, registration."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest
import torch

from cldfast import kernels
from cldfast.kernels import NoiseAddress
from cldfast.kernels.philox import pair_normals, pair_words

F64 = torch.float64


def dense(weights, planes):
    """The specification as one einsum over stacked planes: (R, out, in) x (B, in, ...)."""
    stacked = torch.stack([p.to(F64) for p in planes], 1)
    matrix = weights.expand(stacked.shape[0], -1, -1)
    return torch.einsum("bij,bj...->bi...", matrix, stacked)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.parametrize("shape", [(5, 3), (2, 1), (3, 2, 4, 5)])
def test_stage_is_the_matrix_of_planes(backend, dtype, per_row, shape):
    rows, channels, *rest = shape
    u = torch.randn(rows, 2 * channels, *rest, dtype=dtype)
    full = torch.randn(rows, 2 * channels, *rest, dtype=dtype)
    half = torch.randn(rows, channels, *rest, dtype=dtype)
    kept = torch.randn(rows, channels, *rest, dtype=dtype)
    noise = torch.randn(rows, 2 * channels, *rest, dtype=dtype)
    weights = torch.randn(rows if per_row else 1, 3, 8, dtype=F64)
    state, row, none = kernels.stage(
        u, (full, half), (kept,), weights, noise=noise, backend=backend
    )
    assert none is None
    planes = [*u.chunk(2, 1), *full.chunk(2, 1), half, kept, *noise.chunk(2, 1)]
    expected = dense(weights, planes)
    # Eight terms of size about 1 to 10 in the state's precision: 8 roundings each.
    tolerance = 64 * torch.finfo(dtype).eps * 10
    assert torch.allclose(
        torch.cat(state.chunk(2, 1), 1).to(F64), expected[:, :2].flatten(1, 2), atol=tolerance
    )
    assert torch.allclose(row.to(F64), expected[:, 2], atol=tolerance)


@pytest.mark.parametrize("seen_dtype", [None, torch.float32, torch.bfloat16, torch.float16, F64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(5, 3), (2, 1), (3, 2, 4, 5)])
def test_what_the_network_sees_is_the_last_rows(backend, shape, dtype, seen_dtype):
    rows, channels, *rest = shape
    u = torch.randn(rows, 2 * channels, *rest, dtype=dtype)
    o = torch.randn(rows, channels, *rest, dtype=dtype)
    for per_row in (False, True):
        for history, seen in ((0, 1), (0, 2), (1, 1), (2, 2)):
            weights = torch.randn(rows if per_row else 1, 2 + history + seen, 5, dtype=F64)
            call = {"noise": NoiseAddress(3, 1), "backend": backend}
            made = kernels.stage(
                u, (o,), (), weights, seen_planes=seen, seen_dtype=seen_dtype, **call
            )
            state, row, none = kernels.stage(u, (o,), (), weights, **call)
            assert none is None and torch.equal(made.state, state)
            kept, wanted = row.split([history * channels, seen * channels], dim=1)
            assert torch.equal(kept, made.history) if history else made.history is None
            assert made.seen.shape == wanted.shape
            assert made.seen.dtype == (seen_dtype or dtype)
            assert torch.equal(made.seen, wanted.to(seen_dtype or dtype))


def test_noise_is_addressed_by_seed_and_sample(backend):
    weights = torch.tensor([[[0.0, 0, 1, 0], [0, 0, 0, 1]]], dtype=F64)
    u = torch.zeros(7, 6)
    state, _, _ = kernels.stage(
        u, weights=weights, noise=NoiseAddress(2**63 + 5, 11, 3, 1), backend=backend
    )
    z_x, z_v = pair_normals(NoiseAddress(2**63 + 5, 11 * 3, 3, 1), 21, torch.float32)
    expected = torch.cat([z_x.reshape(7, 3), z_v.reshape(7, 3)], 1).to(state.device)
    # Two units in the last place of numbers up to 6.76.
    assert torch.allclose(state, expected, rtol=2.5e-7, atol=1e-7)


def test_a_plane_behind_zeros_is_not_read(backend):
    u = torch.full((2, 4), float("nan"))
    o = torch.ones(2, 2)
    weights = torch.tensor([[[0.0, 0, 2, 0, 0], [0, 0, 3, 0, 0]]], dtype=F64)
    state, _, _ = kernels.stage(u, (o,), weights=weights, backend=backend)
    assert torch.equal(state, torch.tensor([[2.0, 2, 3, 3]] * 2))


@pytest.mark.parametrize("rows", [1, 7])
def test_weights_may_be_any_view(backend, rows):
    u, o = torch.randn(7, 6), torch.randn(7, 3)
    weights = torch.randn(rows, 5, 2, dtype=F64).transpose(1, 2)
    state, _, _ = kernels.stage(u, (o,), weights=weights, noise=NoiseAddress(1), backend=backend)
    wanted, _, _ = kernels.stage(
        u, (o,), weights=weights.contiguous(), noise=NoiseAddress(1), backend=backend
    )
    assert torch.equal(state, wanted)
    if rows > 1:
        every = torch.randn(2 * rows, 2, 3, dtype=F64)
        views = (every[::2], every[:1].expand(rows, 2, 3))
        for view in views:
            made, _ = kernels.perturb((o,), view, noise=NoiseAddress(1), backend=backend)
            assert torch.equal(
                made,
                kernels.perturb((o,), view.contiguous(), noise=NoiseAddress(1), backend=backend)[0],
            )


def test_out_may_be_the_state_itself(backend):
    u, o = torch.randn(33, 10), torch.randn(33, 5)
    weights = torch.randn(1, 2, 5, dtype=F64)
    expected, _, _ = kernels.stage(u, (o,), weights=weights, backend=backend)
    state, _, _ = kernels.stage(u, (o,), weights=weights, out=u, backend=backend)
    assert state.data_ptr() == u.data_ptr()
    assert torch.equal(state, expected)


def test_words_are_the_specification():
    for first, count in ((0, 1), (7, 100), (2**40 + 1, 33)):
        address = NoiseAddress(2**64 - 2, first, 3, 4)
        made, wanted = kernels.pair_words(address, count), pair_words(address, count)
        assert all(map(torch.equal, made, wanted)) and made[0].dtype == torch.int64


def test_inputs_are_not_changed(backend):
    u, o = torch.randn(3, 4), torch.randn(3, 2)
    before = u.clone(), o.clone()
    kernels.stage(u, (o,), weights=torch.randn(1, 2, 5, dtype=F64), backend=backend)
    assert torch.equal(u, before[0]) and torch.equal(o, before[1])


def test_backends_agree_on_addressed_noise():
    if kernels.missing_backend("cpu"):
        pytest.skip(f"compiled core missing: {kernels.missing_backend('cpu')}")
    u, o = torch.randn(50, 34), torch.randn(50, 17)
    weights = torch.randn(1, 2, 5, dtype=F64)
    a, _, _ = kernels.stage(u, (o,), weights=weights, noise=NoiseAddress(9), backend="cpu")
    b, _, _ = kernels.stage(u, (o,), weights=weights, noise=NoiseAddress(9), backend="reference")
    # Five terms of size up to about 20, rounded in another order.
    assert torch.allclose(a, b, atol=5e-6)


W5 = torch.zeros(1, 2, 5, dtype=F64)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"u": torch.zeros(2, 4, dtype=torch.int64)}, TypeError, "u must be float32 or float64, got (2, 4) int64"),
        ({"u": torch.zeros(2, 4, dtype=torch.float16)}, TypeError, "float16"),
        ({"u": torch.zeros(2, 3)}, ValueError, "x half then v half, got (2, 3)"),
        ({"u": torch.zeros(0, 4)}, ValueError, "must not be empty, got (0, 4)"),
        ({"u": "text"}, TypeError, "u must be a tensor, got str"),
        ({"outputs": (torch.zeros(2, 3),)}, ValueError, "outputs[0] must be (2, r * 2)"),
        ({"outputs": (torch.zeros(3, 2),)}, ValueError, "got (3, 2)"),
        ({"outputs": (torch.zeros(2, 2, dtype=torch.int32),)}, TypeError, "int32"),
        ({"outputs": (torch.zeros(2, 2, device="meta"),)}, ValueError, "must be on cpu"),
        ({"weights": torch.zeros(1, 2, 4, dtype=F64)}, ValueError, "weights must be (1 or 2, 2 + q, 5)"),
        ({"weights": torch.zeros(1, 2, 5)}, TypeError, "weights must be float64"),
        ({"weights": torch.full((1, 2, 5), float("nan"), dtype=F64)}, ValueError, "finite"),
        ({"weights": None}, TypeError, "weights must be a tensor, got NoneType"),
        ({"noise": 3}, TypeError, "noise must be a NoiseAddress or a tensor, got int"),
        ({"noise": torch.zeros(2, 2)}, ValueError, "noise must be (2, 4) float32 on cpu, got (2, 2)"),
        ({"out": torch.zeros(2, 4, dtype=F64)}, ValueError, "out must be (2, 4) float32"),
        ({"seen_planes": 3}, ValueError, "seen_planes must be 0, 1 or 2, got 3"),
        ({"seen_planes": True}, ValueError, "seen_planes must be 0, 1 or 2, got True"),
        ({"seen_planes": 1}, ValueError, "weights must be (1 or 2, 2 + q + 1, 5)"),
        ({"seen_planes": 1, "seen_dtype": torch.int8}, TypeError, "seen_dtype must be a float dtype"),
        ({"seen_dtype": torch.float32}, TypeError, "got torch.float32 of 0"),
        ({"backend": "gpu"}, ValueError, "unknown backend 'gpu'; expected one of auto, cpu"),
    ],
)  # fmt: skip
def test_bad_arguments_are_refused(arguments, error, words):
    call = {"u": torch.zeros(2, 4), "outputs": (torch.zeros(2, 2),), "weights": W5, **arguments}
    with pytest.raises(error) as caught:
        kernels.stage(call.pop("u"), call.pop("outputs"), **call)
    assert words in str(caught.value)


def test_overlapping_out_is_refused():
    memory = torch.zeros(100)
    u, out = memory[:40].view(10, 4), memory[8:48].view(10, 4)
    with pytest.raises(ValueError, match="overlaps"):
        kernels.stage(u, weights=torch.zeros(1, 2, 4, dtype=F64), out=out)
    output = out[:, :2]
    with pytest.raises(ValueError, match="overlaps"):
        kernels.stage(torch.zeros(10, 4), (output,), weights=W5, out=out)


def test_state_of_another_device_needs_the_reference():
    if kernels.missing_backend("cpu"):
        pytest.skip(f"compiled core missing: {kernels.missing_backend('cpu')}")
    with pytest.raises(ValueError, match="needs tensors on a device of type cpu, got device meta"):
        kernels.resolve_backend("cpu", torch.device("meta"))


@pytest.mark.parametrize("per_row", [False, True])
def test_gradients_of_both_orders(backend, per_row):
    u = torch.randn(3, 4, dtype=F64, requires_grad=True)
    o = torch.randn(3, 4, dtype=F64, requires_grad=True)
    h = torch.randn(3, 2, dtype=F64, requires_grad=True)
    weights = torch.randn(3 if per_row else 1, 3, 7, dtype=F64)

    for seen in (0, 1):  # the third row is a history row's, or what the network sees

        def function(u, o, h, seen=seen):
            made = kernels.stage(u, (o,), (h,), weights, seen_planes=seen, backend=backend)
            assert made[2 - seen] is None
            return made[0], made[1 + seen]

        assert torch.autograd.gradcheck(function, (u, o, h))
        assert torch.autograd.gradgradcheck(function, (u, o, h))


def test_gradient_without_state(backend):
    x0 = torch.randn(3, 2, dtype=F64, requires_grad=True)
    weights = torch.randn(3, 4, 3, dtype=F64)
    assert torch.autograd.gradcheck(
        lambda x: kernels.stage(None, (x,), (), weights, backend=backend)[:2], (x0,)
    )


def test_gradients_keep_the_output_dtype(backend):
    u = torch.randn(3, 4)
    o = torch.randn(3, 2, dtype=torch.bfloat16, requires_grad=True)
    weights = torch.randn(1, 4, 5, dtype=F64)
    state, _, seen = kernels.stage(
        u, (o,), weights=weights, seen_planes=2, seen_dtype=torch.bfloat16, backend=backend
    )
    (state.sum() + seen.float().sum()).backward()
    assert o.grad.dtype == torch.bfloat16
    # A sum of four numbers of size 1, rounded to 8 bits.
    wanted = weights[0, :, 2].sum()
    assert torch.allclose(o.grad.to(F64), wanted.expand(3, 2), rtol=2.0**-7, atol=2.0**-7)


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("per_row", [False, True])
def test_gradients_of_the_weights(backend, per_row, given):
    """`dW = sum g p`, the normals among the planes p, also where only the weights need gradients."""
    u = torch.randn(3, 4, dtype=F64, requires_grad=True)
    o, h = torch.randn(3, 4, dtype=F64), torch.randn(3, 2, dtype=F64)
    weights = torch.randn(3 if per_row else 1, 4, 7, dtype=F64, requires_grad=True)
    noise = torch.randn(3, 4, dtype=F64) if given else NoiseAddress(5, 7, 3)

    def function(u, weights):
        made = kernels.stage(u, (o,), (h,), weights, noise=noise, seen_planes=1, backend=backend)
        return tuple(made)

    assert torch.autograd.gradcheck(function, (u, weights))
    assert torch.autograd.gradgradcheck(function, (u, weights))
    (alone,) = torch.autograd.grad(function(u.detach(), weights)[0].sum(), weights)
    unit = kernels.normals((3, 2), NoiseAddress(5, 7, 3), dtype=F64)
    planes = torch.cat([u.detach(), o, h, noise if given else unit], 1).reshape(3, 7, 2)
    wanted = torch.zeros_like(weights)
    wanted[:, :2] = (planes if per_row else planes.sum(0, keepdim=True)).sum(2)[:, None]
    torch.testing.assert_close(alone, wanted, rtol=1e-12, atol=1e-12)


def test_gradients_of_the_weights_for_images(backend):
    """The specification, differentiated by autograd, on float32 images in another layout."""
    u = torch.randn(2, 4, 3, 5).contiguous(memory_format=torch.channels_last)
    o = torch.randn(2, 2, 3, 5).bfloat16()
    z = kernels.normals((2, 2, 3, 5), NoiseAddress(2))
    weights = torch.arange(15.0, dtype=F64).reshape(1, 3, 5).requires_grad_()
    state, row, _ = kernels.stage(u, (o,), (), weights, noise=NoiseAddress(2), backend=backend)
    (made,) = torch.autograd.grad(state.square().sum() + row.sum(), weights)
    planes = dense(weights, [*u.chunk(2, 1), o, *z.chunk(2, 1)])
    (wanted,) = torch.autograd.grad(planes[:, :2].square().sum() + planes[:, 2].sum(), weights)
    # Sums of 60 products of float32 numbers.
    torch.testing.assert_close(made, wanted, rtol=1e-5, atol=1e-3)


def test_opcheck(backend):
    u = torch.randn(3, 4, requires_grad=True)
    o = torch.randn(3, 2, requires_grad=True)
    h = torch.randn(3, 2)
    weights = torch.randn(1, 3, 6, dtype=F64)
    free = torch.randn(1, 3, 6, dtype=F64, requires_grad=True)
    without_state = (None, [torch.randn(3, 2)], [], torch.randn(3, 2, 3, dtype=F64))
    for tensors, seen, dtype in (
        ((u, [o], [h], weights), 0, torch.float32),
        ((u, [o], [h], free), 0, torch.float32),
        (
            (u.detach(), [], [], torch.randn(3, 2, 4, dtype=F64, requires_grad=True)),
            0,
            torch.float32,
        ),
        ((u, [o], [h], weights), 1, torch.bfloat16),
        (without_state, 0, torch.float32),
    ):
        torch.library.opcheck(
            torch.ops.cldfast.stage, (*tensors, 1, 0, 0, 0, None, seen, dtype, backend)
        )


def test_compiles_without_graph_breaks():
    weights = torch.randn(1, 2, 5, dtype=F64)

    def step(u, o):
        return kernels.stage(u * 1.0, (o,), weights=weights, noise=NoiseAddress(4))[0] + 1.0

    def seen(u, o):
        made = kernels.stage(
            u * 1.0, (o,), weights=torch.cat([weights, weights], 1), noise=NoiseAddress(4),
            seen_planes=2, seen_dtype=torch.bfloat16,
        )  # fmt: skip
        return made.seen + 1.0

    u, o = torch.randn(3, 4), torch.randn(3, 2, requires_grad=True)
    for function in (step, seen):
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        made, wanted = compiled(u, o), function(u, o)
        assert torch.equal(made, wanted)
        gradients = [torch.autograd.grad(y.float().sum(), o)[0] for y in (made, wanted)]
        assert torch.equal(*gradients)


def test_missing_core_falls_back_with_one_warning():
    script = textwrap.dedent(
        """
        import sys, warnings
        sys.modules["cldfast._core"] = None  # an import of it now fails
        import torch, cldfast
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(2):
                cldfast.stage(torch.zeros(1, 2), weights=torch.zeros(1, 2, 4, dtype=torch.float64))
        assert len(caught) == 1, caught
        assert issubclass(caught[0].category, cldfast.BackendWarning)
        assert "kernels for cpu are missing" in str(caught[0].message)
        assert cldfast.info()["auto"]["cpu"] == "reference"
        assert "not available" in cldfast.info()["backends"]["cpu"]
        try:
            cldfast.stage(
                torch.zeros(1, 2), weights=torch.zeros(1, 2, 4, dtype=torch.float64), backend="cpu"
            )
        except ValueError as error:
            assert "not available" in str(error)
        else:
            raise AssertionError("backend='cpu' must be refused")
        """
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_noise_that_needs_gradients_is_refused(backend):
    u, noise = torch.zeros(2, 4), torch.zeros(2, 4, requires_grad=True)
    with pytest.raises(NotImplementedError, match="gradients with respect to noise"):
        kernels.stage(u, weights=torch.zeros(1, 2, 4, dtype=F64), noise=noise, backend=backend)
