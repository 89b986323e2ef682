"""Standardised data: there and back, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cldfast.training.data_scale import DataScale

F64 = torch.float64


@pytest.mark.parametrize("shape", [(50, 3), (50, 3, 4, 5)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_scale_and_back(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    size = torch.tensor([0.5, 2.0, 30.0]).reshape(1, 3, *[1] * (len(shape) - 2))
    rows = (torch.randn(shape) * size + 7.0 * size).to(dtype)
    scale = DataScale.fit(rows)
    made = scale.standardise(rows)
    assert made.dtype == dtype and made.shape == rows.shape
    columns = made.double().transpose(0, 1).flatten(1)
    eps = torch.finfo(dtype).eps
    # Means are 7 deviations from 0, and sums of up to 1,000 such numbers have been rounded.
    assert float(columns.mean(1).abs().max()) < 100 * eps
    assert float((columns.std(1) - 1.0).abs().max()) < 100 * eps
    torch.testing.assert_close(scale.restore(made), rows, rtol=10 * eps, atol=0.0)
    want = np.std(rows.double().numpy().swapaxes(0, 1).reshape(3, -1), axis=1, ddof=1)
    assert scale.std == pytest.approx(want, rel=1e-10)


def test_a_constant_entry_keeps_its_unit() -> None:
    rows = torch.tensor([[1.0, 3.0], [2.0, 3.0]])
    scale = DataScale.fit(rows)
    assert scale.mean == (1.5, 3.0) and scale.std[1] == 1.0
    assert torch.equal(scale.standardise(rows)[:, 1], torch.zeros(2))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: DataScale((0.0,), (0.0,)), "std: expected finite numbers > 0"),
        (lambda: DataScale((float("nan"),), (1.0,)), "mean: expected finite numbers"),
        (lambda: DataScale((0.0, 1.0), (1.0,)), "expected one mean and one std each, got 2 and 1"),
        (lambda: DataScale((), ()), "got 0 and 0"),
        (lambda: DataScale((0.0,), (True,)), "std: expected finite numbers > 0"),
        (lambda: DataScale.fit(torch.zeros(1, 2)), "with n >= 2"),
        (lambda: DataScale.fit(torch.zeros(4)), r"expected \(n, d\) or \(n, C, H, W\)"),
        (lambda: DataScale.fit(torch.full((3, 2), float("inf"))), "expected finite numbers"),
        (lambda: DataScale((0.0,), (1.0,)).standardise(torch.zeros(2, 3)), "expected 1 entries"),
        (lambda: DataScale((0.0,), (1.0,)).restore(torch.zeros(2)), "expected 1 entries"),
    ],
)
def test_scales_that_do_not_fit_are_refused(make, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()
