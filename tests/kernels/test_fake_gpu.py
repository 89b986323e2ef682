"""Losses and samplers on a device that is none: tensors there have shapes and no values.

An operation between devices raises, and so does one that looks at a value, for which the host would
wait on a real device. A PyTorch with CUDA fakes a GPU; another has its meta device.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

import cldfast
from cldfast import kernels
from cldfast.kernels.backends.reference import ReferenceBackend
from cldfast.planner.solvers import SOLVERS
from cldfast.training.row_weights import WEIGHTINGS, loss_tables
from cldfast.training.times import TIME_SAMPLING, _density_table

SDE = cldfast.CLD(beta=cldfast.LinearBeta(1.0, 6.0), x_noise=0.2)
CUDA = torch.version.cuda is not None
DEVICE = torch.device("cuda", 0) if CUDA else torch.device("meta")
T_MIN = 1e-3


class Nowhere(ReferenceBackend):
    """The reference with a kernel's view of a stage: everything on one device, but for a matrix of
    all rows, which may be anywhere."""

    def stage(  # type: ignore[no-untyped-def, override]
        self, u, outputs, history, weights, noise, *, out=None, seen_planes=0, seen_dtype=None,
        **more: Any,
    ):  # fmt: skip
        like = outputs[0] if u is None else u
        per_row = [weights] if weights.shape[0] > 1 else []
        for tensor in (like, *outputs, *history, *per_row):
            assert tensor.device == DEVICE
        channels = like.shape[1] if u is None else like.shape[1] // 2

        def planes(count: int) -> torch.Tensor:
            return like.new_empty(like.shape[0], count * channels, *like.shape[2:])

        kept = weights.shape[1] - 2 - seen_planes
        return kernels.StageResult(
            planes(2) if out is None else out,
            planes(kept) if kept else None,
            planes(seen_planes).to(seen_dtype or like.dtype) if seen_planes else None,
        )


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No values from here on, but for what is kept from earlier calls."""
    tables = [
        table
        for weighting in WEIGHTINGS
        for parameterization in ("data_noise", "edm", "score", "full_score")
        for table in loss_tables(SDE, "hsm", weighting, parameterization)
    ]
    for table in tables:
        assert table is not None and table.used
    methods = ("importance", "log_snr", "edm")
    densities = [_density_table(SDE, T_MIN, method, 1.0) for method in methods]
    # Where there is a GPU its kernels must not be asked for words.
    monkeypatch.setattr(kernels, "automatic_backend", lambda device_type: Nowhere("nowhere"))
    kernels.register_backend("nowhere", lambda: Nowhere("nowhere"), (DEVICE.type,))
    with FakeTensorMode(allow_non_fake_inputs=True) if CUDA else nullcontext():
        yield
    kernels.unregister_backend("nowhere")
    for table in (*tables, *densities):
        table.copies.pop(str(DEVICE), None)


@pytest.mark.parametrize("times", TIME_SAMPLING)
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_a_loss_does_not_wait(fake: None, weighting: str, times: str) -> None:
    x0 = torch.zeros(5, 3, device=DEVICE)
    for parameterization, planes in (
        ("score", 3),
        ("data_noise", 3),
        ("edm", 3),
        ("full_score", 6),
    ):
        loss = cldfast.hsm_loss(
            lambda u, t, n=planes: u[:, :n] * t[:, None], SDE, x0, weighting, parameterization,
            seed=3, t_min=T_MIN, times=times, backend="nowhere",
        )  # fmt: skip
        assert loss.device == DEVICE


def test_a_batch_of_one_row(fake: None) -> None:
    x0 = torch.zeros(1, 3, device=DEVICE)
    loss = cldfast.hsm_loss(lambda u, t: u[:, :3], SDE, x0, seed=3, t_min=T_MIN, backend="nowhere")
    assert loss.device == DEVICE


def test_times_of_the_callers_do_not_make_it_wait(fake: None) -> None:
    t = torch.full((5,), 0.3, device=DEVICE)
    x0 = torch.zeros(5, 3, device=DEVICE)
    loss = cldfast.hsm_loss(lambda u, t: u[:, :3], SDE, x0, seed=3, t=t, backend="nowhere")
    assert loss.device == DEVICE


def test_a_look_at_a_value_is_noticed(fake: None) -> None:
    with pytest.raises(DataDependentOutputException if CUDA else RuntimeError):
        bool(torch.zeros((), device=DEVICE) > 0)


@pytest.mark.parametrize("parameterization", ["x0", "edm"])
@pytest.mark.parametrize("shape", [(4, 3), (2, 3, 8, 8)], ids=str)
@pytest.mark.parametrize("solver", SOLVERS)
def test_sampling_does_not_wait(
    fake: None, solver: str, shape: tuple[int, ...], parameterization: str
) -> None:
    half = shape[1]
    x = cldfast.sample(
        lambda u, t: u[:, :half] * t.reshape(-1, *[1] * (len(shape) - 1)), SDE, shape,
        solver=solver, steps=4, seed=1, parameterization=parameterization, device=DEVICE, backend="nowhere",
        nonfinite="return",  # the look at the samples waits for them, after the last step
    )  # fmt: skip
    assert x.device == DEVICE and x.shape == shape
