"""Training of a score network: a small loop whose every step can be repeated exactly.

Times, noise and the order of the data are addressed by (seed, step, row of the batch) and not drawn
from a state. So a run that was killed and resumed makes the same weights, bit for bit on the CPU,
as one that ran through; and several processes that share a batch make the same gradients as one, up
to the order of summation.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cldfast.extras import progress_bar
from cldfast.files import PathLike, read_tensors, remove_stale, write_tensors
from cldfast.process.sde import LinearPhaseSDE
from cldfast.training.checkpoint import load_state, most_bytes, state_tensors
from cldfast.training.coefficients import CoefficientsAhead
from cldfast.training.config import TrainConfig
from cldfast.training.held_out import HeldOut, autocast, given
from cldfast.training.log import TrainLog
from cldfast.training.loss_scale import LossScale
from cldfast.training.losses import checked_parameterization, drawn_velocity, prepared_loss
from cldfast.training.nonfinite import NonFiniteLoss
from cldfast.training.pools import Pools
from cldfast.training.processes import (
    OneProcess,
    check_accelerator,
    device_of_rank,
    half_precision,
    naming_lost,
    share_of,
)
from cldfast.training.rows import (
    Batch,
    Batches,
    Dataset,
    Rows,
    Taken,
    null_label,
    row_source,
    with_dropped,
    with_mirrored,
)
from cldfast.training.sharded import ShardedEMA
from cldfast.training.trained import remember_training
from cldfast.training.uncertainty import Uncertainty
from cldfast.training.update import LEFT_OUT, STEP_FAILED, WeightUpdate

CHECKPOINT = "checkpoint.safetensors"
FAILED = "failed.safetensors"
LOG = "train.csv"

# Steps after which their numbers are read, on devices that the host runs ahead of.
_UNREAD = 32

# Settings that may differ when a run is resumed: they do not change the steps already made.
_FREE_ON_RESUME = ("steps", "log_every", "validate_every", "checkpoint_every")


class Trainer:
    """Trains a network by hybrid score matching: Adam, warm-up, clipping, EMA, checkpoints.

    Args:
        net: the network `net(u, t)`, on the device of the training.
        sde: the process.
        data: rows (n, d) or (n, C, H, W), float32 or float64, used once an epoch in an order made
            from the seed: a tensor, a `torch.utils.data.Dataset` of rows, or a `DataLoader` of one,
            whose workers, pinned memory and `collate_fn` are taken. Or whole batches of
            `batch_size` rows: a function of the step (from 0), which returns the same ones whenever
            it is asked, or an iterable, which is begun again at its end. Rows may be a pair (rows,
            labels), labels (n,): the network is then called as `net(u, t, labels=labels)`.
        config: settings.
        validation: held-out rows, with labels where the data have them; the averaged network's loss
            on them, with the same noise every time, is logged.
        folder: where `checkpoint.safetensors` and `train.csv` go, which all processes must see;
            None keeps nothing.
        resume: go on from the folder's checkpoint, where there is one. Without it a folder that
            has a checkpoint is refused.
        backend: see `cldfast.kernels.stage`.
        accelerator: an `accelerate.Accelerator`, to share the batch out among processes and to
            report to its trackers; None is this process alone. Its mixed precision is `autocast`.
        workers: processes that load the rows of a `Dataset` ahead.

    Attributes:
        step: steps made so far.  ema: the average; `ema.model` is the network to sample from.
        skipped: steps left out because gradients overflowed in float16.
        stopped: whether `stop` has ended the last `fit`.

    Raises:
        TypeError, ValueError: arguments that do not fit each other or the checkpoint.
    """

    def __init__(
        self,
        net: nn.Module,
        sde: LinearPhaseSDE,
        data: Rows | Dataset | Iterable[Rows] | Batches,
        config: TrainConfig | None = None,
        *,
        validation: Rows | None = None,
        folder: PathLike | None = None,
        resume: bool = False,
        backend: str = "auto",
        accelerator: Any = None,
        workers: int = 0,
    ) -> None:
        self.net, self.sde, self.data = net, sde, data
        self.config = config or TrainConfig()
        self.backend = backend
        self.accelerator: Any = OneProcess() if accelerator is None else accelerator
        check_accelerator(self.accelerator)
        if not self.config.t_min < sde.T:
            raise ValueError(f"t_min: expected below T = {sde.T}, got {self.config.t_min}")
        objective = self.config.objective
        self.parameterization = checked_parameterization(sde, self.config.form(sde), objective)
        self.half = half_precision(self.config.autocast, self.accelerator)
        parameters = [p for p in net.parameters() if p.requires_grad]
        if not parameters:
            raise ValueError("net: expected a network with parameters to train, got none")
        self.device = device = device_of_rank(self.accelerator, parameters[0].device)
        config = self.config
        self._held_out: HeldOut | None = None
        if validation is not None:
            self._held_out = HeldOut(
                validation, sde, config, self.parameterization, device, self.half, backend
            )
        share = share_of(config.batch_size, config.accumulate, self.accelerator)
        self._taken = Taken(config.seed, config.batch_size, share)
        pinned = device.type == "cuda"
        self._rows = row_source(data, self._taken, workers=workers, pinned=pinned)
        self._null = null_label(net, config.label_dropout)
        self._pools: Pools | None = None
        if config.reference:
            self._pools = Pools(data, sde, config, self.parameterization, device, self._null)
        self.uncertainty: Uncertainty | None = None
        if config.uncertainty:
            self.uncertainty = Uncertainty(device)
        self._unread: list[Tensor] = []
        self.stopped = self._asked_to_stop = False
        self._most_unread = 1 if device.type == "cpu" else _UNREAD
        with naming_lost(self.accelerator, lambda: "before the first step"):
            self._update = WeightUpdate(
                net, config.lr, config.clip, config.ema_decay,
                beside=[] if self.uncertainty is None else list(self.uncertainty.parameters()),
                waits=self._most_unread == 1, accelerator=self.accelerator,
                scale=LossScale(device) if self.half == torch.float16 else None,
            )  # fmt: skip
        self.optimizer, self.ema = self._update.optimizer, self._update.ema
        remember_training(self.ema.model, self.parameterization)
        self._coefficients = CoefficientsAhead(sde, config, self.parameterization, device)
        self.step = self.skipped = 0
        self._saved = 0
        if self.accelerator.process_index > 0:
            # Layers that draw random numbers must not draw the same ones in every process.
            torch.manual_seed(torch.initial_seed() + self.accelerator.process_index)
        self.folder = None if folder is None else Path(folder)
        self.log: TrainLog | None = None
        if self.folder is not None:
            self._open(self.folder, resume)

    def _open(self, folder: Path, resume: bool) -> None:
        first = self.accelerator.is_main_process
        checkpoint = folder / CHECKPOINT
        found = checkpoint.exists()
        if found and not resume:
            raise ValueError(f"{checkpoint} exists: resume that run or choose another folder")
        with naming_lost(self.accelerator, self._at_work):
            self.accelerator.wait_for_everyone()  # all have looked before the first one writes
        if first:
            folder.mkdir(parents=True, exist_ok=True)
            remove_stale(folder)
            self.log = TrainLog(folder / LOG)
        if found:
            self.load(checkpoint)
            if self.step > self.config.steps:
                raise ValueError(
                    f"{checkpoint}: made after {self.step} steps, expected at most "
                    f"{self.config.steps}"
                )
        else:
            self.save(checkpoint)
        self._saved = self.step
        if self.log is not None:
            self.log.cut(self.step)

    @property
    def seconds(self) -> float:
        """Seconds of training so far, over all parts of a resumed run; 0 without a folder."""
        return 0.0 if self.log is None else self.log.seconds

    def fit(self, *, steps: int | None = None, progress: bool = False) -> nn.Module:
        """Train up to step number `steps` (None: the settings'); returns the averaged network.

        Where `stop` ends it before, a checkpoint is written first, if there is a folder.

        progress: a tqdm bar. Raises NonFiniteLoss, and `cldfast.training.LostProcess` where another
        process has ended.
        """
        end = self.config.steps if steps is None else min(steps, self.config.steps)
        bar = None
        if progress and self.accelerator.is_main_process:
            bar = progress_bar(total=end, initial=self.step, desc="training", unit="step")
        self._update.network.train()
        try:
            with naming_lost(self.accelerator, self._at_work):
                self.stopped = False
                while self.step < end and not self.stopped:
                    self._advance()
                    if len(self._unread) >= self._most_unread or self._due() or self.step == end:
                        values = self._read()
                        self._record(values)
                        if bar is not None:
                            bar.set_postfix_str(f"loss {values[-1][0]:.3g}", refresh=False)
                            bar.update(len(values))
                if self.stopped and self.folder is not None and self._saved < self.step:
                    self.save(self.folder / CHECKPOINT)
                    self._saved = self.step
                if isinstance(self.ema, ShardedEMA):
                    self.ema.gather()
        finally:
            self._asked_to_stop = False
            if bar is not None:
                bar.close()
        self._update.network.eval()
        return self.ema.model

    def stop(self) -> None:
        """Ask `fit` to end, in all processes, after a step that is the same in all of them.

        Signal handlers and other threads may call it.
        """
        self._asked_to_stop = True

    def train_step(self) -> tuple[float, float]:
        """One optimiser step; returns its loss (mean over rows) and gradient norm before clipping.

        Raises NonFiniteLoss; no weight is changed by the bad step.
        """
        self._advance()
        return self._read()[-1][:2]

    def _advance(self) -> None:
        """One optimiser step, its loss and gradient norm left to be read."""
        config, taken, update = self.config, self._taken, self._update
        batch, labels = self._batch()
        rows = self._coefficients.at(self.step)[taken.share]
        first = taken.first(self.step)
        pooled = None if self._pools is None else self._pools.at(self.step, rows.t, labels)
        update.clear()
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        part = taken.count // config.accumulate
        for start in range(0, taken.count, part):
            chosen = slice(start, start + part)
            v0 = None
            if config.objective == "dsm":
                v0 = drawn_velocity(
                    self.sde, batch[chosen], config.seed, first + start, self.backend
                )
            last = start + part == taken.count
            with nullcontext() if last else self.accelerator.no_sync(update.network):
                with autocast(self.device, self.half):
                    loss = prepared_loss(
                        given(update.network, labels, chosen), batch[chosen], rows[chosen],
                        self.parameterization, seed=config.seed, first_index=first + start, v0=v0,
                        reduction="sum", uncertainty=self.uncertainty,
                        reference=None if pooled is None else pooled[chosen], backend=self.backend,
                    )  # fmt: skip
                update.backward(loss, taken.count)
            total += loss.detach()
        stop = torch.full_like(total, float(self._asked_to_stop))
        if self.accelerator.num_processes > 1:
            total, stop = self.accelerator.reduce(torch.stack([total, stop]), "mean")
            if self.uncertainty is not None:
                # The wrapped network exchanges its own gradients alone.
                self.uncertainty.weight.grad = self.accelerator.reduce(
                    self.uncertainty.weight.grad, "mean"
                )
        made = update(total, taken.count, config.learning_rate(self.step))
        self._unread.append(torch.cat([made, stop[None]]))
        self.step += 1

    def _read(self) -> list[tuple[float, float, float]]:
        """Loss, gradient norm and outcome of the steps not read yet; NonFiniteLoss at a bad one."""
        values = []
        for loss, norm, outcome, stop in torch.stack(self._unread).tolist():
            values.append((loss, norm, outcome))
            self.stopped = self.stopped or stop > 0.0
        self._unread.clear()
        for index, (loss, norm, outcome) in enumerate(values):
            if outcome == STEP_FAILED:
                # Nothing was changed from that step on, and the count goes back to before it.
                self.step -= len(values) - index
                self._update.go_on_from(self.step)
                raise self._failure(loss, norm)
            self.skipped += outcome == LEFT_OUT
        return values

    @torch.no_grad()
    def validate(self) -> float:
        """The averaged network's loss on the held-out rows, with noise that is always the same.

        All processes must ask.
        """
        if self._held_out is None:
            raise ValueError("no validation rows were given")
        if isinstance(self.ema, ShardedEMA):
            # The parts of the weights come together in every call: all processes make all calls.
            net = self._update.network
            training = net.training
            with self.ema.swapped_into(self.net):
                total = self._held_out.loss(net.eval())
            net.train(training)
        else:
            processes = self.accelerator.num_processes
            total = self._held_out.loss(self.ema.model, self.accelerator.process_index, processes)
            total = self.accelerator.reduce(total, "sum")
        return float(total) / len(self._held_out)

    def save(self, path: PathLike) -> None:
        """Write the whole state of the training as one safetensors file, atomically.

        All processes must ask; the first one writes.
        """
        tensors = state_tensors(self._update, self.uncertainty)
        metadata = {
            "step": self.step, "updates": self.ema.updates, "skipped": self.skipped,
            **self._identity(),
        }  # fmt: skip
        if self.log is not None:
            metadata["log"] = self.log.pending()
        if self.accelerator.is_main_process:
            write_tensors(path, tensors, metadata)

    def load(self, path: PathLike, *, strict: bool = True) -> None:
        """Go on from a file that `save` wrote, PyTorch's global random state included.

        strict: refuse a state made with other settings, process or data; False takes it, for
            instance to go on with a smaller step size.

        Raises ValueError for a broken file, or one that does not fit.
        """
        tensors, metadata = read_tensors(path, most=most_bytes(self._update))
        here = json.loads(json.dumps(self._identity())) if strict else {}
        for name, value in here.items():
            found = metadata.get(name)
            if name == "settings" and isinstance(found, dict):
                found = {k: v for k, v in asdict(TrainConfig()).items() if k in value} | found
            if found != value:
                raise ValueError(
                    f"{path}: made with another {name}: {metadata.get(name)}, expected {value}"
                )
        try:
            load_state(self._update, self.uncertainty, tensors, int(metadata["updates"]))
            step, log = int(metadata["step"]), metadata.get("log", {})
            if step < 0:
                raise ValueError(f"step: expected at least 0, got {step}")
            if self.log is not None and log:
                self.log.restore(log)
        except (LookupError, RuntimeError, TypeError, ValueError) as error:
            text = " ".join(str(error).split())
            raise ValueError(f"{path}: does not fit this network: {text}") from error
        self.step, self.skipped = step, int(metadata.get("skipped", 0))

    def _identity(self) -> dict[str, Any]:
        """What a checkpoint must share with the run that goes on from it."""
        settings = asdict(self.config)
        free = [n for n in _FREE_ON_RESUME if n != "steps" or self.config.decay == "constant"]
        try:
            process = self.sde.config()
        except ValueError:  # a schedule given as a function has no description to compare
            process = None
        return {
            "settings": {k: v for k, v in settings.items() if k not in free},
            "process": process,
            "data": self._rows.shape,
        }

    def _batch(self) -> Batch:
        """This process's rows of the step, and their labels, on the device."""
        rows, labels = self._rows.at(self.step)
        rows = rows.to(self.device, non_blocking=True)
        if self.config.flip:
            rows = with_mirrored(rows, self._taken, self.step)
        if labels is not None:
            labels = labels.to(self.device, non_blocking=True)
            if self._null is not None:
                share = self.config.label_dropout
                labels = with_dropped(labels, share, self._null, self._taken, self.step)
        return rows, labels

    def _validates(self) -> bool:
        last = self.step == self.config.steps
        return self._held_out is not None and (self.step % self.config.validate_every == 0 or last)

    def _due(self) -> bool:
        """Whether after this step there is something to write."""
        config, step = self.config, self.step
        writes = step % config.log_every == 0 or step % config.checkpoint_every == 0
        return self.folder is not None and (writes or self._validates() or step == config.steps)

    def _record(self, values: list[tuple[float, float, float]]) -> None:
        """Count steps, the last one just made: log, validate and save where it is time for it."""
        config, step, last = self.config, self.step, self.step == self.config.steps
        if self.folder is None:
            return
        validates = self._validates()
        held_out = self.validate() if validates else None
        if self.log is not None:
            for loss, norm, outcome in values:
                if outcome != LEFT_OUT:
                    self.log.add(loss, norm)
            if step % config.log_every == 0 or validates or last:
                row = self.log.write(step, config.learning_rate(step - 1), held_out)
                if self.accelerator.trackers:
                    self.accelerator.log(row | {"skipped": self.skipped}, step=step)
        if step % config.checkpoint_every == 0 or last:
            self.save(self.folder / CHECKPOINT)
            self._saved = step

    def _at_work(self) -> str:
        """What is going on and what is safe, for the error where another process is lost."""
        safe = "" if self.folder is None else (
            f"; the checkpoint of step {self._saved} in {self.folder / CHECKPOINT} is whole: start "
            "all processes again and resume"
        )  # fmt: skip
        return f"in step {self.step + 1}{safe}"

    def _failure(self, loss: float, norm: float) -> NonFiniteLoss:
        times = self._coefficients.at(self.step).t
        saved = None
        if self.folder is not None:
            saved = self.folder / FAILED
            self.save(saved)
        return NonFiniteLoss(
            self.step + 1, loss, norm, (float(times.min()), float(times.max())), saved
        )
