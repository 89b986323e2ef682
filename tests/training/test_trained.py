"""What a network was trained with is remembered, and a run that is told otherwise is refused."""

from __future__ import annotations

import copy
import gc
from pathlib import Path

import pytest
import torch
from torch import nn

import cldfast
from cldfast import Preconditioned, classical
from cldfast.lab.models import MLPScore
from cldfast.model.run_folder import RunConfig, load_run, save_run
from cldfast.training import TrainConfig, Trainer, trained

SDE, X = cldfast.CLD(), torch.linspace(-1.0, 1.0, 8).reshape(4, 2)
REFUSED = "trained with parameterization '{}', and this run is for '{}': pass parameterization='{}'"


def refused(net: nn.Module, known: str, asked: str | None = None, sde: object = SDE) -> None:
    options = {} if asked is None else {"parameterization": asked}
    with pytest.raises(ValueError, match=REFUSED.format(known, asked or "score", known)):
        cldfast.sample(net, sde, (4, 2), "em", 2, **options)  # type: ignore[call-overload]
    cldfast.sample(net, sde, (4, 2), "em", 2, parameterization=known)  # type: ignore[call-overload]


def test_the_last_loss_counts_through_wrappers() -> None:
    net = MLPScore(2, width=8)
    cldfast.sample(net, SDE, (4, 2), "em", 2)  # nothing is known of an untrained network
    cldfast.hsm_loss(torch.optim.swa_utils.AveragedModel(net).module, SDE, X, parameterization="x0")
    cldfast.sample(net, SDE, (4, 2), "em", 2)  # a copy is another network
    cldfast.dsm_loss(nn.DataParallel(net), SDE, X, parameterization="mixed")
    refused(net, "mixed", "noise")
    cldfast.hsm_loss(net, SDE, X, parameterization="noise")
    refused(nn.DataParallel(net), "noise")
    # A function is taken at its word, and so is a copy of which nothing is known.
    cldfast.sample(lambda u, t: net(u, t), SDE, (4, 2), "em", 2)
    cldfast.sample(copy.deepcopy(net), SDE, (4, 2), "em", 2)


def test_forms_are_compared_by_what_they_mean() -> None:
    net = MLPScore(2, width=8, in_planes=1, conditioning="c_noise")
    cldfast.hsm_loss(net, SDE, X, parameterization="edm")
    cldfast.sample(net, SDE, (4, 2), "em", 2, parameterization=Preconditioned(1.0))
    refused(net, "edm", "denoiser")


def test_losses_of_positions_and_trainers_and_folders(tmp_path: Path) -> None:
    net = MLPScore(2, width=8, in_planes=1)
    classical.dsm_loss(net, classical.VP(), X, parameterization="epsilon")
    refused(net, "epsilon", sde=classical.VP())
    config = TrainConfig(steps=1, batch_size=4, parameterization="renormalised")
    average = Trainer(MLPScore(2, width=8), SDE, X, config).fit()
    refused(average, "renormalised")
    own = RunConfig(SDE.config(), average.config(), (2,), "renormalised")
    refused(load_run(save_run(tmp_path / "run", average, own))[0], "renormalised")


def test_networks_are_not_kept_alive() -> None:
    gc.collect()
    before = len(trained._trained)
    cldfast.hsm_loss(MLPScore(2, width=8), SDE, X, parameterization="noise")
    gc.collect()
    assert len(trained._trained) <= before
