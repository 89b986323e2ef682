"""Mistakes that people make: each ends with a sentence that says what to do.

A row is the mistake in words, what is called, the error, and what its text must say. An error that
a network raised keeps its type; the library adds the sentence as a note.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import cldfast
from cldfast import classical, kernels
from cldfast.lab.models import MLPScore
from cldfast.model.run_folder import RunConfig, load_run, save_config
from cldfast.training import CHECKPOINT, TrainConfig

SDE = cldfast.CLD()
X = torch.linspace(-1.0, 1.0, 16).reshape(8, 2)


def score(u: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return -u[:, u.shape[1] // 2 :]


def sample(net: Any = score, **options: Any) -> Any:
    return cldfast.sample(net, SDE, (8, 2), **{"solver": "em", "steps": 5} | options)


def loss(net: Any = score, **options: Any) -> Any:
    return cldfast.hsm_loss(net, SDE, X, **options)


def mlp(**options: Any) -> MLPScore:
    net = MLPScore(2, width=8, **options)
    nn.init.normal_(net.last.weight)
    return net


def trained(**options: Any) -> MLPScore:
    net = mlp()
    loss(net, **options)
    return net


def like_diffusers(u: torch.Tensor, t: torch.Tensor) -> SimpleNamespace:
    return SimpleNamespace(sample=score(u, t))


def overflowing(u: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return score(u, t) * 1e30


def unfinished(folder: Path) -> Any:
    config = RunConfig(SDE.config(), mlp().config(), (2,))
    save_config(folder, config)
    (folder / CHECKPOINT).touch()
    return load_run(folder)


def other_scheduler(_: Path) -> Any:
    diffusers = pytest.importorskip("diffusers")
    from cldfast.compat.diffusers import CLDScheduler

    return CLDScheduler.from_config(diffusers.DDPMScheduler().config)


def stage_on(out: torch.Tensor) -> Any:
    u = torch.zeros(8, 4)
    return kernels.stage(u, weights=torch.eye(2, 4, dtype=torch.float64)[None], out=out)


Call = Callable[[Path], Any]
MISTAKES: dict[str, tuple[Call, type[Exception], str]] = {
    "integer times, as of DDPM": (
        lambda _: loss(t=torch.arange(8)), TypeError,
        "t must be float times in (0, 1], got torch.int64: for a step number k of N pass T * (k + 1) / N",
    ),
    "times in steps": (
        lambda _: loss(t=torch.linspace(1.0, 999.0, 8)), ValueError, "got 1 to 999: for a step number",
    ),
    "time 0": (
        lambda _: cldfast.perturb(SDE, X, torch.zeros(8)), ValueError, "t must lie in (0, 1]",
    ),
    "times of a path": (
        lambda _: classical.dsm_loss(score, classical.VP(), X, torch.full((8,), 2.0)), ValueError,
        "t must lie in (0, 1], got 2 to 2",
    ),
    "a weighting that is a number": (
        lambda _: loss(weighting=2.0), ValueError,
        "unknown weighting 2.0; expected a function of t or one of reweighted",
    ),
    "a misspelt weighting": (
        lambda _: loss(weighting="reweight"), ValueError, "or one of reweighted",
    ),
    "an expanded out": (
        lambda _: stage_on(torch.zeros(1, 4).expand(8, 4)), ValueError,
        "give memory of its own, such as torch.empty_like(u)",
    ),
    "the output object of a diffusers model, in sampling": (
        lambda _: sample(like_diffusers), TypeError, "return its .sample",
    ),
    "the output object of a diffusers model, in a loss": (
        lambda _: loss(like_diffusers), TypeError, "return its .sample",
    ),
    "guidance without a pair": (
        lambda _: sample(guidance_scale=2.0), ValueError,
        "guidance_scale needs the pair (conditional, unconditional), which cldfast.network.ClassifierFree",
    ),
    "a pair without guidance": (
        lambda _: sample(lambda u, t: (score(u, t), score(u, t))), ValueError,
        "return one, or ask for guidance_scale=",
    ),
    "a negative beta": (
        lambda _: cldfast.CLD(beta=-1.0), ValueError, "beta must be a finite number > 0, got -1.0",
    ),
    "a network of half precision, in sampling": (
        lambda _: sample(_First(nn.Linear(4, 2)).half()), RuntimeError,
        "the state is float32: cast with u.to(torch.float16)",
    ),
    "a network of half precision, in a loss": (
        lambda _: loss(mlp().half()), RuntimeError,
        "the state is float32: cast with u.to(torch.float16)",
    ),
    "an unfinished run folder": (
        unfinished, ValueError, "the training is unfinished, it has no model.safetensors yet: go on with",
    ),
    "the config of another scheduler": (
        other_scheduler, ValueError,
        "call CLDScheduler.from_scheduler(pipeline.scheduler)",
    ),
    "a network that diverges": (
        lambda _: sample(overflowing), ValueError,
        "of solver 'em', from t = 0.64",
    ),
    "a parameterization forgotten in sampling": (
        lambda _: sample(trained(parameterization="noise")), ValueError,
        "trained with parameterization 'noise', and this run is for 'score': pass parameterization='noise'",
    ),
    "a parameterization forgotten in the flow": (
        lambda _: cldfast.pflow(trained(parameterization="mixed"), SDE, (8, 2)), ValueError,
        "pass parameterization='mixed'",
    ),
    "a denoiser sampled as a score": (
        lambda _: sample(cldfast.from_denoiser(lambda y, s: y, predicts="x0")), ValueError,
        "pass parameterization='denoiser'",
    ),
    "a network of y given the state": (
        lambda _: sample(_First(nn.Linear(2, 2))), RuntimeError,
        "parameterization 'score' shows the network the state, x and v side by side",
    ),
    "a network of the state asked for both rows": (
        lambda _: sample(parameterization="full_score"), ValueError,
        "parameterization 'full_score' needs the network's output to have 4",
    ),
    "a seed and a generator": (
        lambda _: sample(seed=1, generator=torch.Generator()), ValueError, "not both",
    ),
    "a seed that is a float": (
        lambda _: sample(seed=1.0), TypeError, "seed must be an integer, got float",
    ),
    "steps and a budget": (
        lambda _: sample(nfe=20), ValueError, "give nfe= or steps=, not both",
    ),
    "a budget below one step": (
        lambda _: sample(solver="dpm3", steps=None, nfe=2), ValueError,
        "one step of solver 'dpm3' needs 3 evaluations, more than nfe = 2: give more",
    ),
    "an unknown solver": (
        lambda _: sample(solver="euler"), ValueError, "expected one of auto, em",
    ),
    "a grid that ascends": (
        lambda _: sample(steps=None, grid=[0.0, 0.5, 1.0]), ValueError, "must descend strictly",
    ),
    "known data of another size": (
        lambda _: sample(inpaint=cldfast.Inpainting(X[:3], X[:3] > 0)), ValueError, "one row per sample, 8, got 3",
    ),
    "a shape without rows": (
        lambda _: cldfast.sample(score, SDE, (8,)), ValueError, "shape must be (n, d) or (n, C, H, W)",
    ),
    "data of whole numbers": (
        lambda _: cldfast.hsm_loss(score, SDE, torch.ones(8, 2, dtype=torch.int64)), TypeError,
        "x0 must be float32 or float64",
    ),
    "times of training beyond T": (
        lambda _: cldfast.training.Trainer(mlp(), SDE, X, TrainConfig(steps=1, t_min=2.0)), ValueError,
        "t_min: expected below T = 1.0, got 2.0",
    ),
}  # fmt: skip


class _First(nn.Module):
    """A network of the first argument alone."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, u: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.net(u)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_each_mistake_is_answered(mistake: str, tmp_path: Path) -> None:
    call, kind, words = MISTAKES[mistake]
    with pytest.raises(kind) as caught:
        call(tmp_path)
    shown = "".join(traceback.format_exception_only(caught.value))
    assert words in shown
    assert len(shown) < 800


def test_there_are_twenty_five() -> None:
    assert len(MISTAKES) >= 25
