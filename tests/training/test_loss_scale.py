"""Float16: the loss is scaled, and a step that overflows is left out, counted, and no end."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from cldfast import CLD
from cldfast.files import read_tensors
from cldfast.lab.models import MLPScore
from cldfast.training import CHECKPOINT, NonFiniteLoss, TrainConfig, Trainer
from cldfast.training.loss_scale import LossScale

CONFIG = TrainConfig(steps=12, batch_size=8, autocast="float16", warmup=3, checkpoint_every=4)


def _rows(step):
    rows = torch.randn(8, 2, generator=torch.Generator().manual_seed(step))
    # The error is 1,000 as large: its gradient, scaled up, is beyond 65,504.
    return rows * 1e3 if step == 6 else rows


def _trainer(data=_rows, config=CONFIG, **options):
    torch.manual_seed(0)
    net = MLPScore(2, width=8, depth=1, time_width=8)
    return Trainer(net, CLD(), data, config, **options)


def test_the_rule_is_that_of_pytorch():
    """Against `torch.amp.GradScaler` on random overflows, long enough for the scale to grow."""
    parameter = torch.nn.Parameter(torch.zeros(()))
    optimizer = torch.optim.SGD([parameter], lr=0.0)
    theirs, ours = torch.amp.GradScaler("cpu"), LossScale(torch.device("cpu"))
    overflows = torch.rand(6_500, generator=torch.Generator().manual_seed(0)) < 5e-4
    for overflow in overflows.tolist():
        parameter.grad = torch.full((), float("inf") if overflow else 1.0)
        theirs.scale(torch.zeros(()))
        theirs.step(optimizer)
        theirs.update()
        ours.update(torch.tensor(float(overflow)))
        assert theirs.get_scale() == ours.value.item()
    assert overflows.any() and ours.value.item() != 2.0**16


@pytest.mark.parametrize("ahead", [False, True])
def test_a_step_that_overflows_is_left_out_and_counted(tmp_path, ahead):
    trainer = _trainer(folder=tmp_path)
    if ahead:  # as on a device that the host runs ahead of
        trainer._most_unread, trainer._update.waits = 3, False
    trainer._update.scale.value.fill_(2.0**10)
    trainer.fit(steps=6)
    before = [p.detach().clone() for p in trainer.net.parameters()]
    trainer.fit(steps=7)
    assert trainer.skipped == 1 and trainer.step == 7
    assert trainer._update.scale.value.item() == 2.0**9
    for p, q in zip(trainer.net.parameters(), before, strict=True):
        assert torch.equal(p, q)
    trainer.fit()
    assert trainer.skipped == 1 and trainer.step == 12
    assert all(bool(p.isfinite().all()) for p in trainer.net.parameters())
    # The scale and the count are part of the state.
    again = _trainer(folder=tmp_path, resume=True, config=replace(CONFIG, steps=16))
    assert again.skipped == 1 and again._update.scale.value.item() == 2.0**9
    assert read_tensors(tmp_path / CHECKPOINT)[1]["skipped"] == 1


@pytest.mark.parametrize("ahead", [False, True])
def test_what_no_scale_can_help_is_an_error(ahead):
    """A loss that is infinite by itself halves the scale to its end."""
    trainer = _trainer(
        lambda step: _rows(step) * (1e30 if step > 2 else 1.0), replace(CONFIG, steps=99)
    )
    if ahead:
        trainer._most_unread, trainer._update.waits = 5, False
    trainer._update.scale.value.fill_(4.0)
    with pytest.raises(NonFiniteLoss, match="step 6: loss"):
        trainer.fit()
    # 4 -> 2 -> 1 in two steps that are left out; at 1/2 there is nothing left.
    assert trainer.skipped == 2 and trainer.step == 5
