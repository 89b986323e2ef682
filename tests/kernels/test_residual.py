"""The public residual operation: meaning, checks, gradients, reductions, registration."""

from __future__ import annotations

import pytest
import torch

from cldfast import kernels
from cldfast.kernels.backends.reference import ReferenceBackend
from cldfast.kernels.time_tables import make_table

F64 = torch.float64
CPU = kernels.get_backend("cpu", "cpu")


def case(rows=5, channels=3, planes=1, dtype=F64, rest=()):
    """An output of some planes, an offset of two, and matrices of as many residuals as outputs."""
    output = torch.randn(rows, planes * channels, *rest, dtype=dtype)
    offset = torch.randn(rows, 2 * channels, *rest, dtype=dtype)
    return output, offset, torch.randn(rows, planes, planes + 2, dtype=F64)


@pytest.mark.parametrize("planes", [1, 2])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_gradients(backend, planes, reduction):
    output, offset, weights = case(planes=planes, rest=(2, 2))
    scale = torch.rand(5, dtype=F64)

    def function(output):
        return kernels.residual(
            output, offset, weights, scale=scale, reduction=reduction, backend=backend
        )

    output.requires_grad_()
    assert torch.autograd.gradcheck(function, (output,))


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, F64])
def test_backends_agree(backend, reduction, dtype):
    output, offset, weights = case(40, 10, dtype=torch.float32)
    scale = torch.rand(40, dtype=F64)
    seen = []
    for name in ("reference", backend):
        leaf = output.to(dtype).detach().requires_grad_()
        loss = kernels.residual(
            leaf, offset, weights, scale=scale, reduction=reduction, backend=name
        )
        (loss * 3.0).sum().backward()
        assert leaf.grad.dtype == dtype and loss.dtype == torch.float32
        seen.append((loss.detach(), leaf.grad.float()))
    # Sums of 5 terms in another order; a mean's gradient is rounded to the output's dtype twice.
    assert torch.allclose(seen[0][0], seen[1][0], rtol=1e-5)
    eps = max(torch.finfo(dtype).eps, 1e-6)
    assert float((seen[0][1] - seen[1][1]).abs().max()) < 2 * eps * float(seen[0][1].abs().max())


def test_backward_scales_rows_in_one_rounding():
    """Against float64: the factor of a row is not itself rounded to half precision."""
    output, offset, weights = case(dtype=torch.float32)
    _, stored = CPU.residual(output.bfloat16(), offset, weights)
    incoming = torch.rand(5)
    leaf = output.bfloat16().requires_grad_()
    kernels.residual(leaf, offset, weights, backend="cpu").backward(incoming)
    assert torch.equal(leaf.grad, (stored.double() * incoming[:, None].double()).bfloat16())


def test_float16_means_are_scaled_after_the_loss_scale():
    """Gradients below the smallest float16 come back through a loss scale, as in mixed precision."""
    output, offset, weights = case(3000, 2, dtype=torch.float32)
    weights *= 1e-3
    seen = []
    for dtype in (torch.float16, torch.float32):
        leaf = output.half().to(dtype).detach().requires_grad_()
        loss = kernels.residual(leaf, offset, weights, reduction="mean")
        (loss * 2.0**24).backward()
        seen.append(leaf.grad.float())
    # The stored gradient, of size 1e-6, is a float16 of 2^-24 steps.
    assert torch.allclose(seen[0], seen[1], rtol=2e-3, atol=2.0**-24 * 2.0**24 / 3000)
    assert float((seen[0] == 0).float().mean()) < 0.2


def test_a_graph_may_be_run_twice(backend):
    output, offset, weights = case()
    output.requires_grad_()
    for factor in (1.0, 2.0):
        loss = factor * kernels.residual(output, offset, weights, reduction="mean", backend=backend)
        (first,) = torch.autograd.grad(loss, output, retain_graph=True)
        kept = first.clone()
        first.mul_(3.0)  # what autograd gave out is the caller's
        if factor != 1.0:
            (second,) = torch.autograd.grad(loss, output)
            assert torch.equal(second, kept)


def test_gradients_accumulate(backend):
    output, offset, weights = case(8)
    leaf = output.clone().requires_grad_()
    kernels.residual(leaf, offset, weights, reduction="sum", backend=backend).backward()
    parts = output.clone().requires_grad_()
    for i in range(0, 8, 4):
        rows = slice(i, i + 4)
        kernels.residual(
            parts[rows], offset[rows], weights[rows], reduction="sum", backend=backend
        ).backward()
    assert torch.allclose(leaf.grad, parts.grad)
    # Into a gradient that is there already.
    whole = leaf.grad.clone()
    kernels.residual(leaf, offset, weights, reduction="sum", backend=backend).backward()
    assert torch.allclose(leaf.grad, 2 * whole)


def test_works_under_autocast(backend):
    layer = torch.nn.Linear(6, 3)
    u, weights = torch.randn(50, 6), torch.randn(50, 1, 3, dtype=F64)
    seen = []
    for enabled in (False, True):
        layer.zero_grad()
        with torch.autocast(u.device.type, torch.bfloat16, enabled=enabled):
            output = layer(u)
            assert output.dtype == (torch.bfloat16 if enabled else torch.float32)
            loss = kernels.residual(output, u, weights, reduction="mean", backend=backend)
        assert loss.dtype == torch.float32
        loss.backward()
        seen.append(layer.weight.grad.clone())
    # bfloat16 has 8 bits: outputs, gradients and products err by 2^-9 each.
    assert float((seen[0] - seen[1]).norm()) < 0.02 * float(seen[0].norm())


def test_channels_last_outputs_get_such_gradients(backend):
    output, offset, weights = case(rest=(4, 4), dtype=torch.float32)
    output = output.contiguous(memory_format=torch.channels_last).requires_grad_()
    offset = offset.contiguous(memory_format=torch.channels_last)
    kernels.residual(output, offset, weights, reduction="mean", backend=backend).backward()
    assert output.grad.is_contiguous(memory_format=torch.channels_last)


def test_inputs_are_not_changed(backend):
    tensors = case()
    before = [tensor.clone() for tensor in tensors]
    kernels.residual(tensors[0].requires_grad_(), *tensors[1:], backend=backend).sum().backward()
    assert all(map(torch.equal, tensors, before))


def test_no_gradient_is_made_where_none_is_needed(monkeypatch):
    output, offset, weights = case()
    asked = []
    run = CPU.residual

    def spy(*arguments, gradient, **more):
        asked.append(gradient)
        return run(*arguments, gradient=gradient, **more)

    monkeypatch.setattr(CPU, "residual", spy)
    kernels.residual(output, offset, weights)
    with torch.no_grad():
        kernels.residual(output.requires_grad_(), offset, weights)
    kernels.residual(output, offset, weights)
    assert asked == [False, False, True]


def test_what_is_not_supported_says_so():
    output, offset, weights = case()
    output.requires_grad_()
    loss = kernels.residual(output, offset, weights, reduction="sum", backend="cpu")
    with pytest.raises(NotImplementedError, match=r"no second derivative.*backend='reference'"):
        torch.autograd.grad(loss, output, create_graph=True)
    with pytest.raises(NotImplementedError, match="output only, and offset, weights"):
        kernels.residual(output, offset.clone().requires_grad_(), weights, backend="cpu")
    with pytest.raises(NotImplementedError, match="detach them"):
        kernels.residual(output, offset, weights.clone().requires_grad_(), backend="cpu")
    for transform in (torch.func.vmap, torch.func.grad):
        with pytest.raises(NotImplementedError, match=r"torch.func .* backend='reference'"):
            transform(
                lambda o: kernels.residual(
                    o.reshape(1, 3), offset[:1], weights[:1], reduction="sum", backend="cpu"
                )
            )(output.detach()[:1])
    with torch.no_grad():  # nothing is asked for here
        kernels.residual(output, offset.clone().requires_grad_(), weights, backend="cpu")


def test_the_reference_does_what_the_kernels_do_not():
    output, offset, weights = case()
    inputs = (output.requires_grad_(), offset.requires_grad_())
    assert torch.autograd.gradgradcheck(
        lambda o, offset: kernels.residual(o, offset, weights, backend="reference"), inputs
    )
    gradient = torch.func.grad(
        lambda o: kernels.residual(
            o, offset.detach(), weights, reduction="sum", backend="reference"
        )
    )(output.detach())
    assert gradient.shape == output.shape


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"offset": torch.zeros(0, 4)}, ValueError, "offset must be (B, p C, ...) and not be empty, got (0, 4)"),
        ({"offset": torch.zeros(2, 4, dtype=torch.float16)}, TypeError, "offset must be float32 or float64, got (2, 4) float16"),
        ({"offset": None}, TypeError, "offset must be a tensor"),
        ({"offset": torch.zeros(2)}, ValueError, "offset must be (B, p C, ...)"),
        ({"offset": torch.zeros(2, 3)}, ValueError, "a column for each plane of output (2, 2) float32 on cpu and offset (2, 3)"),
        ({"offset": torch.zeros(2, 1), "output": torch.zeros(2, 8)}, ValueError, "output (2, 8) float32 on cpu and offset (2, 1)"),
        ({"output": torch.zeros(2, 3)}, ValueError, "a column for each plane of output (2, 3)"),
        ({"output": torch.zeros(3, 2)}, ValueError, "output must be (2, r * 2)"),
        ({"output": torch.zeros(2, 10)}, ValueError, "output (2, 10) float32 on cpu and offset (2, 4) float32 on cpu; got (2, 1, 3)"),
        ({"output": torch.zeros(2, 2, 1)}, ValueError, "a column for each plane of output (2, 2, 1)"),
        ({"output": torch.zeros(2, 2, 1), "weights": torch.zeros(2, 1, 2, dtype=F64)}, ValueError, "output must be (2, r * 2)"),
        ({"output": torch.zeros(2, 2, device="meta")}, ValueError, "output must be on cpu"),
        ({"output": None}, TypeError, "output must be a tensor"),
        ({"weights": torch.zeros(2, 1, 3)}, TypeError, "weights must be float64 (B, q, r + p)"),
        ({"weights": None}, TypeError, "weights must be a tensor"),
        ({"weights": torch.zeros(1, 1, 3, dtype=F64)}, ValueError, "weights must be (2, q, r + p) on cpu"),
        ({"weights": torch.zeros(2, 0, 3, dtype=F64)}, ValueError, "weights must be (2, q, r + p) on cpu"),
        ({"weights": torch.zeros(2, 1, 0, dtype=F64)}, ValueError, "weights must be (2, q, r + p) on cpu"),
        ({"weights": torch.zeros(2, 1, 4, dtype=F64)}, ValueError, "weights must be (2, q, r + p) on cpu"),
        ({"weights": torch.zeros(2, 1, 3, dtype=F64, device="meta")}, ValueError, "got (2, 1, 3) on meta"),
        ({"scale": torch.zeros(2)}, ValueError, "scale must be (2,) float64"),
        ({"scale": torch.zeros(3, dtype=F64)}, ValueError, "scale must be (2,) float64"),
        ({"reduction": "best"}, ValueError, "reduction must be one of mean, sum, none, got 'best'"),
        ({"backend": "gpu"}, ValueError, "unknown backend 'gpu'"),
    ],
)  # fmt: skip
def test_bad_arguments_are_refused(arguments, error, words):
    call = {
        "output": torch.zeros(2, 2), "offset": torch.zeros(2, 4),
        "weights": torch.zeros(2, 1, 3, dtype=F64), **arguments,
    }  # fmt: skip
    with pytest.raises(error) as caught:
        kernels.residual(**call)
    assert words in str(caught.value)


@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(reduction, dtype):
    output, offset, weights = case(dtype=torch.float32)
    for gradient in (True, False):
        output = output.to(dtype).requires_grad_(gradient)
        torch.library.opcheck(
            torch.ops.cldfast.residual,
            (output, offset, weights, torch.rand(5, dtype=F64), reduction, gradient, "cpu"),
        )


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_compiles_without_graph_breaks(backend, reduction):
    layer = torch.nn.Linear(6, 3)
    u, weights = torch.randn(7, 6), torch.randn(7, 1, 3, dtype=F64)

    def step(u):
        rows = kernels.residual(layer(u), u, weights, reduction=reduction, backend=backend)
        return rows.sum()

    step(u).backward()
    wanted = layer.weight.grad.clone()
    layer.zero_grad()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    loss = compiled(u)
    loss.backward()
    assert torch.allclose(loss, step(u)) and torch.allclose(layer.weight.grad, wanted)


@pytest.mark.parametrize("planes", [1, 2, 3])
@pytest.mark.parametrize("outputs", [1, 2])
def test_rows_are_products_of_matrices(backend, outputs, planes):
    """A residual of `outputs` planes of an output and `planes` others."""
    output = torch.randn(4, outputs * 3, 2, 2, dtype=F64)
    offset = torch.randn(4, planes * 3, 2, 2, dtype=F64)
    weights = torch.randn(4, 2, outputs + planes, dtype=F64)
    every = torch.cat([output, offset], 1).reshape(4, outputs + planes, 12)
    wanted = (weights @ every).square().sum((1, 2))
    assert torch.allclose(ReferenceBackend().residual(output, offset, weights)[0], wanted)
    made = kernels.residual(output.requires_grad_(), offset, weights, backend=backend)
    assert torch.allclose(made, wanted)
    (gradient,) = torch.autograd.grad(made.sum(), output)
    by_hand = 2 * weights[:, :, :outputs].mT @ weights @ every
    assert torch.allclose(gradient.reshape(4, outputs, 12), by_hand)


@pytest.mark.parametrize("q", [1, 2])
@pytest.mark.parametrize(
    "shape", [(40, 3), (5, 1), (9, 70), (3, 1031), (4, 3, 5, 7), (2, 24, 5, 5)], ids=str
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, F64])
def test_the_gradient_may_take_the_memory_of_the_other_planes(shape, q, dtype):
    """Where they are like the output; elsewhere they stay as they are. The numbers are the same."""
    for layout in (torch.contiguous_format, torch.channels_last):
        if layout == torch.channels_last and len(shape) != 4:
            continue
        output = torch.randn(shape[0], q * shape[1], *shape[2:]).to(dtype)
        offset = torch.randn_like(output, dtype=torch.promote_types(dtype, torch.float32))
        output = output.contiguous(memory_format=layout).requires_grad_()
        offset = offset.contiguous(memory_format=layout)
        weights = torch.randn(shape[0], q, 2 * q, dtype=F64)
        before = offset.clone()
        seen = []
        for overwrite in (False, True):
            loss = kernels.residual(output, offset, weights, reduction="sum", overwrite=overwrite)
            (gradient,) = torch.autograd.grad(loss, output)
            seen.append((loss.detach(), gradient.clone()))
            same = gradient.data_ptr() == offset.data_ptr()
            assert same == (overwrite and output.dtype == offset.dtype)
            assert same or torch.equal(offset, before)
        assert torch.equal(seen[0][0], seen[1][0]) and torch.equal(seen[0][1], seen[1][1])
        with torch.no_grad():  # without a gradient nothing is written
            offset = before.clone()
            kernels.residual(output, offset, weights, overwrite=True)
            assert torch.equal(offset, before)


def test_what_was_saved_of_an_overwritten_plane_is_refused():
    offset, p = torch.randn(4, 3), torch.randn(4, 3, requires_grad=True)
    weights = torch.randn(4, 1, 2, dtype=F64)
    loss = kernels.residual(p * offset, offset, weights, reduction="sum", overwrite=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    with torch.inference_mode():
        offset = torch.randn(4, 3)
    loss = kernels.residual(p * 2, offset, weights, reduction="sum", overwrite=True)
    loss.backward()


def test_a_tables_rows(backend):
    """Weights by a table at rows' times, with a scale, on every backend."""
    table = make_table(
        lambda t: torch.stack([torch.exp(-k * t) for k in range(3)], 1)[:, None], 1.0
    )
    output, offset, _ = case()
    t, scale = torch.rand(5, dtype=F64) + 1e-3, torch.rand(5, dtype=F64)
    t = t.clamp(max=1.0)
    made = kernels.residual(output, offset, table.at(t), scale=scale, backend=backend)
    wanted = kernels.residual(output, offset, table(t), scale=scale, backend="reference")
    assert torch.allclose(made, wanted)
    with pytest.raises(kernels.OutsideTableError):
        kernels.residual(output, offset, table.at(t + 1.0), backend=backend)
