"""A whole training run from its `config.json`, and samples from a run folder in data units."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cldfast.app.launched import Preempted, ended_by_sigterm
from cldfast.app.training_data import LazyRows, open_training_data
from cldfast.files import PathLike, locked
from cldfast.lab.models import build_model
from cldfast.lab.plots import loss_curve
from cldfast.model.run_folder import (
    CONFIG,
    METRICS,
    MODEL,
    RunConfig,
    make_folder,
    remove_plans,
    save_config,
    save_run,
)
from cldfast.network import Network, device_of
from cldfast.process.sde import LinearPhaseSDE, sde_from_config
from cldfast.sampling.likelihood import likelihood
from cldfast.sampling.probability_flow import pflow
from cldfast.sampling.run import sample
from cldfast.training import CHECKPOINT, FAILED, LOG, TrainConfig, Trainer
from cldfast.training.log import read_rows
from cldfast.training.processes import OneProcess, naming_lost

LOSS_PLOT = "loss.png"


def train_run(
    folder: PathLike,
    config: RunConfig,
    *,
    resume: bool = False,
    until: int | None = None,
    device: torch.device | None = None,
    progress: bool = False,
    accelerator: Any = None,
    workers: int = 0,
) -> dict[str, Any]:
    """Train what a config describes, and leave a run folder; returns its metrics.

    folder: made here. Without `resume` a folder that has a run already is refused; with it, the run
        is continued, and a finished one is extended if `config.train` asks for more steps.
    until: step after which the training stops, to go on another time; None is the last one.
    device: of the training; None is the CPU. progress: a bar, or lines where there is no terminal.
    accelerator: of several processes, all of which must call; the first one writes.
    workers: processes that read the rows of files ahead.

    Raises ValueError for a config that does not fit and a folder that another process writes,
    NonFiniteLoss, LostProcess, and Preempted where SIGTERM came: the state is then saved.
    """
    path = Path(folder)
    if config.data is None or config.train is None:
        raise ValueError("the config says nothing of data or training: there is nothing to train")
    accelerator = OneProcess() if accelerator is None else accelerator
    first, safe = accelerator.is_main_process, "; what is in the folder is whole: resume it"
    settings = TrainConfig.from_dict(config.train)
    if until is not None and until < 1:
        raise ValueError(f"until: expected at least step 1, got {until}")
    sde = sde_from_config(config.sde)
    # Everything that can be refused is refused before the first file is written.
    if not settings.t_min < sde.T:
        raise ValueError(f"t_min: expected below T = {sde.T}, got {settings.t_min}")
    data = open_training_data(config.data)
    labels = None
    rows: Any
    held_out: Any = data.held_out
    if config.model.get("classes") is not None:
        if data.labels is None:
            raise ValueError("a network of classes needs data with labels")
        labels, held_out = data.labels, (held_out, data.held_out_labels)
    if isinstance(data.rows, LazyRows):
        rows = data.rows.loader(settings.batch_size, workers, labels)
    elif workers:
        raise ValueError(
            f"workers: expected 0, got {workers}: only rows of files are read ahead, and "
            f"{config.data.get('name')} is in memory"
        )
    else:
        rows = data.rows if labels is None else (data.rows, labels)
    # The initial weights are the seed's, also where a run was killed before its first checkpoint.
    torch.manual_seed(settings.seed)
    net = build_model(config.model).to(device)
    make_folder(path)
    with locked(path) if first else nullcontext(), naming_lost(accelerator, lambda: safe):
        if not resume and any((path / name).exists() for name in (CONFIG, MODEL, CHECKPOINT)):
            raise ValueError(f"{path} has a run already: resume it or choose another folder")
        accelerator.wait_for_everyone()  # all have looked before the first one writes
        if first and not resume:
            save_config(path, config)
        trainer = Trainer(
            net, sde, rows, settings, validation=held_out, folder=path, resume=resume,
            accelerator=accelerator,
        )  # fmt: skip
        if first:
            if resume:
                # The checkpoint fits, so the new settings may replace those in the folder.
                save_config(path, config)
            remove_plans(path)
        with ended_by_sigterm(trainer.stop):
            average = trainer.fit(steps=until, progress=progress)
        if trainer.stopped and trainer.step < min(until or settings.steps, settings.steps):
            raise Preempted(
                f"stopped by SIGTERM; step {trainer.step} is saved, go on with: "
                f"cldfast train --resume --out {path}"
            )
        if trainer.step < settings.steps:
            trainer.save(path / CHECKPOINT)
        metrics = {
            "steps": trainer.step,
            "validation_loss": trainer.validate(),
            "parameters": sum(p.numel() for p in net.parameters()),
            "seconds": round(trainer.seconds, 3),
        }
        if trainer.skipped:
            metrics["skipped_steps"] = trainer.skipped
        if first:
            save_run(path, average, config, metrics)
        return metrics


def plot_losses(folder: PathLike) -> None:
    """Draw a run's log as `loss.png`; ImportError without matplotlib."""
    log = read_rows(Path(folder) / LOG)
    losses = [row["loss"] for row in log]
    loss_curve([row["step"] for row in log], losses, Path(folder) / LOSS_PLOT)


def remove_run(folder: PathLike) -> None:
    """Remove the files of a run from a folder, and nothing else."""
    for name in (CHECKPOINT, LOG, FAILED, MODEL, METRICS, LOSS_PLOT, CONFIG):
        (Path(folder) / name).unlink(missing_ok=True)
    remove_plans(folder)


def sample_run(
    net: Network,
    sde: LinearPhaseSDE,
    config: RunConfig,
    n: int,
    *,
    labels: Tensor | None = None,
    **options: Any,
) -> Tensor:
    """n samples (n, *shape) of a loaded run, on the CPU, in the units of its data.

    labels: (n,), int64, of the samples; None for a network without classes. options: of
        `cldfast.sample`; `t_min` is the run's own where it is not given.

    Raises ValueError for bad options, and where samples come out non-finite.
    """
    drawn = sample(net, sde, **_arguments(config, n, options), **_with_labels(labels))
    assert isinstance(drawn, Tensor)  # no velocity is asked for
    return config.restore(drawn.cpu())


def _with_labels(labels: Tensor | None) -> dict[str, Any]:
    """The arguments that give a network of classes the labels of its rows."""
    return {} if labels is None else {"conditions": {"labels": labels}}


def flow_run(
    net: Network,
    sde: LinearPhaseSDE,
    config: RunConfig,
    n: int,
    *,
    labels: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, int]:
    """n samples by the adaptive flow, with options of `cldfast.pflow`, and its evaluations."""
    given = _arguments(config, n, options) | _with_labels(labels)
    drawn, evaluations = pflow(net, sde, **given)
    return config.restore(drawn.cpu()), evaluations


def _arguments(config: RunConfig, n: int, options: dict[str, Any]) -> dict[str, Any]:
    own: dict[str, Any] = {"parameterization": config.form}
    if options.get("plan") is None:
        own["t_min"] = config.t_min  # a plan has its own
    return {"shape": (n, *config.shape)} | own | options


def likelihood_run(
    net: Network,
    sde: LinearPhaseSDE,
    config: RunConfig,
    rows: Tensor,
    *,
    labels: Tensor | None = None,
    batch_size: int | None = None,
    first_index: int = 0,
    **options: Any,
) -> tuple[Tensor, int]:
    """Upper bounds on the negative log-likelihood of rows (n, *shape), with evaluations of the net.

    rows: scaled as those that the run was trained on. The bounds (n,) are in nats and of the
    density in the units of the data. labels: (n,) of the rows. options: of `cldfast.likelihood`.
    """
    bounds, evaluations, device = [], 0, device_of(net)
    given: dict[str, Any] = {"t_min": config.t_min, "parameterization": config.form} | options
    for start in range(0, len(rows), batch_size or len(rows)):
        chosen = slice(start, start + (batch_size or len(rows)))
        own = _with_labels(None if labels is None else labels[chosen].to(device))
        made = likelihood(
            net, sde, rows[chosen].to(device), first_index=first_index + start, **given, **own
        )
        bounds.append(made.nll.cpu())
        evaluations += made.evaluations
    # The network's unit cube has this volume in units of the data.
    origin, unit = (make(1, *config.shape, device="cpu") for make in (torch.zeros, torch.ones))
    sides = config.restore(unit.double()) - config.restore(origin.double())
    return torch.cat(bounds) + float(sides.log().sum()), evaluations
