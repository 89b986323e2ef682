"""The warning about losses on the velocity score that are blind at small times."""

from __future__ import annotations

import warnings

import pytest
import torch

from cldfast import CLD, PSLD, BlindLossWarning, hsm_loss


def test_a_blind_loss_warns_once_with_its_numbers() -> None:
    sde = CLD(a=1.0, sigma=2.0**0.5, x_noise=0.25, v0_var=0.01)

    def loss(parameterization: str | None, process: CLD = sde) -> None:
        hsm_loss(lambda u, t: u[:, :2] * 0.5, process, torch.randn(4, 2),
                 parameterization=parameterization, seed=1)  # fmt: skip

    numbers = r"0\.07\d* % at t = 0\.001, 1\.7 % at t = 0\.01, 33 % at t = 0\.1"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for quiet in (None, "data_noise", "x0", "edm"):
            loss(quiet)
        loss("score", CLD())
    with pytest.warns(BlindLossWarning, match=numbers) as caught:
        loss("score")
    assert len(caught) == 1 and caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss("mixed")
    with pytest.warns(BlindLossWarning):
        loss("noise", PSLD())  # another process, another warning
