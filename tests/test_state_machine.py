"""Any calls in any order: a right answer, or a ValueError or TypeError; never anything else.

Processes, plans and tensors are made at random and used by what comes later. A tensor is a view of
shared memory by any strides, so that tensors overlap. `make fuzz` makes many more calls.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, multiple, rule

import cldfast
from cldfast import NoiseAddress, kernels
from cldfast.planner.parameterization import PARAMETERIZATIONS, output_planes
from cldfast.planner.solvers import SOLVERS
from cldfast.training.row_weights import WEIGHTINGS

Tensor = torch.Tensor
BACKEND = "reference" if kernels.missing_backend("cpu") else "cpu"
REFUSALS = (ValueError, TypeError)
STATES = (torch.float32, torch.float64)
FLOATS = (*STATES, torch.float16, torch.bfloat16)
# Numbers of each dtype that all tensors are views of.
ROOM = 1 << 12

examples = int(os.environ.get("CLDFAST_FUZZ_EXAMPLES", "0"))
profile = settings(
    max_examples=examples or 15, stateful_step_count=20, deadline=None, derandomize=not examples,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip

moderate = st.floats(1e-3, 10.0)
sizes = st.sampled_from([1, 2, 3, 4, 5, 17])
small, words = st.integers(0, 9), st.sampled_from([0, 1, 7, 2**31, 2**32 - 1])
huge = st.sampled_from([2**53 + 1, 2**62, 2**63 - 20, 2**63 - 1, 2**63, 2**64 - 1, 2**64, -1])
indexes = st.one_of(small, small, small, huge)
strange = st.sampled_from([None, "x", 1, float("nan"), (), torch.ones(2), torch.ones(0, 2)])


@contextmanager
def refused() -> Iterator[None]:
    """A call that may say in a sentence what it does not take."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            yield
    except REFUSALS as error:
        assert str(error)


def strides_of(data: Any, shape: tuple[int, ...]) -> list[int]:
    """Of a dense tensor in any order of dimensions, with gaps, or anything at all."""
    kind = data.draw(st.sampled_from(["dense", "permuted", "gaps", "expanded", "any"]))
    if kind == "any":
        return data.draw(st.lists(st.integers(0, 9), min_size=len(shape), max_size=len(shape)))
    places = list(range(len(shape)))
    if kind != "dense":
        places = data.draw(st.permutations(places))
    strides, step = [0] * len(shape), 1
    for place in reversed(places):
        strides[place] = step
        step *= max(shape[place], 1) + (data.draw(st.integers(0, 2)) if kind == "gaps" else 0)
    if kind == "expanded":
        strides[places[0]] = 0
    return strides


class Surface(RuleBasedStateMachine):
    processes, plans, tensors = Bundle("processes"), Bundle("plans"), Bundle("tensors")

    def __init__(self) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(1)
        normals = torch.randn(ROOM, dtype=torch.float64, generator=draw)
        self.memory = {dtype: normals.to(dtype) for dtype in FLOATS}

    def view(self, data: Any, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor somewhere in the memory; dense where its strides reach beyond."""
        strides = strides_of(data, shape)
        reach = 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True) if n)
        if reach > ROOM:
            return self.memory[dtype][: math.prod(shape)].view(shape)
        start = data.draw(st.integers(0, min(ROOM - reach, 64)))
        return self.memory[dtype].as_strided(shape, strides, start)

    def beside(self, data: Any, u: Tensor, channels: int, planes: int) -> Tensor:
        """A tensor of so many planes beside a state, most often."""
        shape = (u.shape[0], planes * channels, *u.shape[2:])
        return self.view(data, shape, data.draw(st.sampled_from(FLOATS)))

    @initialize(target=processes)
    def first_process(self) -> Any:
        return cldfast.CLD(x_noise=0.2, beta=cldfast.LinearBeta(0.1, 8.0))

    @initialize(target=tensors, data=st.data(), dtype=st.sampled_from(STATES))
    def first_tensor(self, data: Any, dtype: Any) -> Tensor:
        return self.view(data, (3, 4), dtype)

    @rule(
        target=tensors, data=st.data(), rows=st.sampled_from([0, 1, 2, 3, 5, 17]), channels=sizes,
        inner=st.sampled_from([(), (), (2,), (3, 2), (0,), (2, 2, 2)]),
        dtype=st.sampled_from(FLOATS),
    )  # fmt: skip
    def tensor(self, data: Any, rows: int, channels: int, inner: Any, dtype: Any) -> Tensor:
        return self.view(data, (rows, channels, *inner), dtype)

    @rule(
        target=processes, a=moderate, x_noise=st.sampled_from([0.0, 0.2, 1.0, -1.0]),
        v0_var=moderate, beta=st.one_of(moderate, st.just(cldfast.LinearBeta(0.1, 8.0))),
        T=st.sampled_from([1.0, 0.3, 2.0, 0.0]),
    )  # fmt: skip
    def cld(self, **numbers: Any) -> Any:
        with refused():
            return multiple(cldfast.CLD(**numbers))
        return multiple()

    @rule(target=processes, A=st.tuples(*[moderate] * 4), D=st.one_of(moderate, st.just(-1.0)))
    def linear(self, A: tuple[float, ...], D: float) -> Any:
        with refused():
            drift = [[-A[0], A[1]], [A[2] - 5.0, -A[3]]]
            return multiple(cldfast.LinearPhaseSDE(drift, (D, 1.0), 0.1))
        return multiple()

    @rule(
        target=plans, sde=processes, solver=st.sampled_from(["auto", *SOLVERS, "none"]),
        steps=st.sampled_from([1, 2, 3, 6, 0, 10**9]),
        grid=st.sampled_from([None, "linear", "log_snr", "auto", (0.3, 0.2), (0.2, 0.3)]),
        parameterization=st.sampled_from(PARAMETERIZATIONS),
        t_min=st.sampled_from([1e-3, 0.05, 0.0, 5.0]), denoise=st.booleans(),
    )  # fmt: skip
    def plan(self, sde: Any, solver: str, steps: int, **options: Any) -> Any:
        if isinstance(options["grid"], tuple):
            steps = None  # type: ignore[assignment]
        with refused(), np.errstate(all="ignore"):
            made = cldfast.make_plan(sde, solver, steps, **options)
            assert all(np.isfinite(m).all() for m in made.matrices())
            again = cldfast.Plan.from_config(made.config())
            pairs = zip(made.matrices(), again.matrices(), strict=True)
            assert all(np.array_equal(a, b) for a, b in pairs)
            return multiple(made)
        return multiple()

    @rule(data=st.data(), u=tensors, noise=st.tuples(indexes, indexes, words, words))
    def stage(self, data: Any, u: Tensor, noise: tuple[int, ...]) -> None:
        """Against the product with the matrix in float64, whatever overlaps."""
        channels = u.shape[1] // 2
        beside = st.lists(st.sampled_from([1, 2]), max_size=2)
        outputs, history = (
            [self.beside(data, u, channels, planes) for planes in data.draw(beside)]
            for _ in range(2)
        )
        out = data.draw(st.sampled_from([None, None, u, "other", "strange"]))
        if isinstance(out, str):
            out = self.view(data, tuple(u.shape), u.dtype) if out == "other" else data.draw(strange)
        row, seen = data.draw(st.integers(0, 2)), data.draw(st.integers(0, 2))
        columns = 4 + sum(t.shape[1] // max(channels, 1) for t in (*outputs, *history))
        weights = torch.randn(
            data.draw(st.sampled_from([1, u.shape[0]])), 2 + row + seen,
            columns + data.draw(st.sampled_from([0] * 9 + [1])), dtype=torch.float64,
        )  # fmt: skip
        # The memory stays finite: what is not would be read by later calls.
        if out is None and data.draw(st.integers(0, 9)) == 9 and weights.numel():
            weights.view(-1)[0] = math.nan
        before = {dtype: room.clone() for dtype, room in self.memory.items()}
        read = [t.double().clone() for t in (u, *outputs, *history)]
        with refused():
            address = NoiseAddress(*noise)
            made = kernels.stage(
                u, outputs, history, weights, noise=address, out=out, seen_planes=seen,
                seen_dtype=u.dtype if seen else None, backend=BACKEND,
            )  # fmt: skip
            if out is not None:
                assert made.state is out
                where = before[u.dtype].as_strided(out.shape, out.stride(), out.storage_offset())
                where.copy_(made.state)
            z = kernels.normals(
                (u.shape[0], channels, *u.shape[2:]), address, dtype=u.dtype, backend="reference"
            )
            planes = torch.cat([planes_of(t, channels) for t in (*read, z.double())], 1)
            results = [r for r in made if r is not None]
            got = torch.cat([planes_of(r.double(), channels) for r in results], 1)
            # Each product and each sum is rounded, and each normal by two units.
            most = (columns + 4) * torch.finfo(u.dtype).eps * (weights.abs() @ planes.abs())
            wanted = weights @ planes
            assert torch.equal(got.isnan(), wanted.isnan())
            assert (got.isnan() | ((got - wanted).abs() <= most + 1e-30)).all()
        assert all(torch.equal(before[dtype], room) for dtype, room in self.memory.items())

    @rule(data=st.data(), offset=tensors, planes=st.sampled_from([1, 2]), rows=st.integers(1, 2))
    def residual(self, data: Any, offset: Tensor, planes: int, rows: int) -> None:
        """Against the sum of squares in float64, and its gradient."""
        channels = offset.shape[1]
        output = self.beside(data, offset, channels, planes).detach()
        weights = torch.randn(len(offset), rows, planes + 1, dtype=torch.float64)
        exact = output.double().requires_grad_()
        read = torch.cat([planes_of(t, channels) for t in (exact, offset.double())], 1)
        terms = weights @ read
        wanted = terms.square().flatten(1).sum(1)
        with refused():
            loss = kernels.residual(output.requires_grad_(), offset, weights, backend=BACKEND)
            eps = torch.finfo(offset.dtype).eps
            most = 64.0 * eps * (weights.abs() @ read.abs()).square().flatten(1).sum(1)
            assert ((loss.double() - wanted).abs() <= most + 1e-30).all()
            loss.sum().backward()
            wanted.sum().backward()
            assert output.grad is not None and exact.grad is not None
            eps = max(eps, torch.finfo(output.dtype).eps)
            bound = 64.0 * eps * (1.0 + exact.grad.abs().max())
            assert ((output.grad.double() - exact.grad).abs() <= bound).all()

    @rule(
        sde=processes, x0=tensors, weighting=st.sampled_from([*WEIGHTINGS, "none"]),
        parameterization=st.sampled_from(PARAMETERIZATIONS), seed=indexes, first_index=indexes,
        objective=st.sampled_from(["hsm", "dsm"]), t_min=st.sampled_from([1e-3, 0.01, 0.1, 9.0]),
        times=st.sampled_from(["uniform", "log", "edm", "importance"]),
    )  # fmt: skip
    def loss(self, sde: Any, x0: Tensor, parameterization: str, **options: Any) -> None:
        """Against the reference backend in float64; float32 has 7 digits, and sums lose some."""
        net = linear_network(x0.shape[1], parameterization)
        with refused():
            loss = cldfast.hsm_loss(
                net, sde, x0, parameterization=parameterization, backend=BACKEND, **options
            )
            wanted = cldfast.hsm_loss(
                net, sde, x0.double(), parameterization=parameterization, backend="reference",
                **options,
            )  # fmt: skip
            assert loss.isfinite() or wanted > 1e30
            torch.testing.assert_close(loss.double(), wanted, rtol=2e-3, atol=1e-6)

    @rule(
        plan=plans, rows=st.sampled_from([1, 2, 5, 0]), inner=st.sampled_from([(1,), (3,), (2, 3)]),
        seed=indexes, first_index=indexes, batch_size=st.sampled_from([None, 1, 2, 0, 10**30]),
        dtype=st.sampled_from([*STATES, torch.float16]),
    )  # fmt: skip
    def sample(self, plan: Any, rows: int, inner: Any, dtype: Any, **options: Any) -> None:
        """Against the reference backend in float64, where the sampler itself stays moderate."""
        net = linear_network(inner[0], plan.parameterization)
        with refused():
            given = {"plan": plan, **options}
            exact = cldfast.sample(
                net, plan.sde, (rows, *inner), dtype=torch.float64, backend="reference", **given
            )
            made = cldfast.sample(
                net, plan.sde, (rows, *inner), dtype=dtype, backend=BACKEND, **given
            )
            assert made.isfinite().all() and made.shape == (rows, *inner)
            if dtype == torch.float64:
                size = max(abs(m).sum() for m in plan.matrices()) ** len(plan.stages)
                torch.testing.assert_close(made, exact, rtol=0, atol=1e-13 * size)

    @rule(u=tensors, plan=plans, backend=st.sampled_from(["auto", BACKEND]))
    def elsewhere(self, u: Tensor, plan: Any, backend: str) -> None:
        """On a device without memory: a result there, or a refusal; nothing meets another device."""
        meta = u.to("meta")
        for state, outputs, out in (
            (meta, (), None), (meta, (), meta), (u, (meta,), None), (u, (), meta), (meta, (u,), None),
        ):  # fmt: skip
            weights = torch.ones(1, 2, 4 + 2 * len(outputs), dtype=torch.float64)
            with refused():
                made = kernels.stage(state, outputs, weights=weights, out=out, backend=backend)
                assert state.is_meta and made.state.is_meta
        net = linear_network(3, plan.parameterization)
        with refused():
            drawn = cldfast.sample(
                net, plan.sde, (2, 3), plan=plan, device="meta", seed=1, backend=backend
            )
            assert drawn.is_meta and drawn.shape == (2, 3)


def planes_of(tensor: Tensor, channels: int) -> Tensor:
    """(B, planes, numbers of a plane)."""
    inner = channels * math.prod(tensor.shape[2:])
    return tensor.reshape(len(tensor), tensor.shape[1] // channels, inner)


def linear_network(channels: int, parameterization: str) -> Any:
    """A tenth of what the network sees, of as many planes as it has to return."""
    width = channels * output_planes(parameterization)
    return lambda u, t: 0.1 * u[:, -width:]


Surface.TestCase.settings = profile
TestSurface = Surface.TestCase
