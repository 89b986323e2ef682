"""Training of a score network: a small loop whose every step can be repeated exactly.

Times, noise and the order of the data are addressed by (seed, step) and not drawn from a state, so
a run that was killed and resumed makes the same weights, bit for bit on the CPU, as one that ran
through.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cldfast import kernels
from cldfast.extras import progress_bar
from cldfast.files import PathLike, read_tensors, remove_stale, write_tensors
from cldfast.kernels import NoiseAddress, Stream
from cldfast.network import Network
from cldfast.process.sde import LinearPhaseSDE
from cldfast.training.coefficients import CoefficientsAhead
from cldfast.training.config import TrainConfig
from cldfast.training.log import TrainLog
from cldfast.training.losses import (
    checked_parameterization,
    drawn_velocity,
    hsm_loss,
    prepared_loss,
)
from cldfast.training.trained import remember_training
from cldfast.training.uncertainty import Uncertainty
from cldfast.training.update import WeightUpdate

# Rows, or rows with their labels.
Rows = Tensor | tuple[Tensor, Tensor]
Batches = Callable[[int], Rows]

CHECKPOINT = "checkpoint.safetensors"
FAILED = "failed.safetensors"
LOG = "train.csv"

# Added to the seed for the validation noise: no training run of a small seed shares it.
_VALIDATION_SEED = 2**63

# Steps after which their numbers are read, on devices that the host runs ahead of.
_UNREAD = 32

# Settings that may differ when a run is resumed: they do not change the steps already made.
_FREE_ON_RESUME = ("steps", "log_every", "validate_every", "checkpoint_every")


class NonFiniteLoss(RuntimeError):
    """The loss or its gradient is NaN or infinite; the state before that step was kept.

    Attributes:
        step: the step, counted from 1.  t_range: smallest and largest time of its rows.
        saved: the file with the state before the step, None without a folder.
    """

    def __init__(
        self, step: int, loss: float, norm: float, t_range: tuple[float, float], saved: Path | None
    ) -> None:
        where = "" if saved is None else f"; the state before it is in {saved}"
        super().__init__(
            f"step {step}: loss {loss:g} with gradient norm {norm:g} at times t in "
            f"[{t_range[0]:.3g}, {t_range[1]:.3g}]{where}; try a smaller lr, clip or a larger t_min"
        )
        self.step, self.t_range, self.saved = step, t_range, saved


class Trainer:
    """Trains a network by hybrid score matching: Adam, warm-up, clipping, EMA, checkpoints.

    Args:
        net: the network `net(u, t)`, on the device of the training.
        sde: the process.
        data: rows (n, d) or (n, C, H, W), float32 or float64, used once an epoch in an order made
            from the seed; or a function of the step (from 0) that returns `batch_size` rows, the
            same ones whenever it is asked. Rows may be a pair (rows, labels), labels (n,): the
            network is then called as `net(u, t, labels=labels)`.
        config: settings.
        validation: held-out rows, with labels where the data have them; the averaged network's loss
            on them, with the same noise every time, is logged.
        folder: where `checkpoint.safetensors` and `train.csv` go; None keeps nothing.
        resume: go on from the folder's checkpoint, where there is one. Without it a folder that
            has a checkpoint is refused.
        backend: see `cldfast.kernels.stage`.

    Attributes:
        step: steps made so far.  ema: the average; `ema.model` is the network to sample from.

    Raises:
        TypeError, ValueError: arguments that do not fit each other or the checkpoint.
    """

    def __init__(
        self,
        net: nn.Module,
        sde: LinearPhaseSDE,
        data: Rows | Batches,
        config: TrainConfig | None = None,
        *,
        validation: Rows | None = None,
        folder: PathLike | None = None,
        resume: bool = False,
        backend: str = "auto",
    ) -> None:
        self.net, self.sde, self.data, self.validation = net, sde, data, validation
        self.config = config or TrainConfig()
        self.backend = backend
        for name, rows in (("data", data), ("validation", validation)):
            if rows is not None and (name == "validation" or not callable(rows)):
                _check_rows(name, *_parted(rows))  # type: ignore[arg-type]
        if not self.config.t_min < sde.T:
            raise ValueError(f"t_min: expected below T = {sde.T}, got {self.config.t_min}")
        objective = self.config.objective
        self.parameterization = checked_parameterization(sde, self.config.form(sde), objective)
        self.parameters = [p for p in net.parameters() if p.requires_grad]
        if not self.parameters:
            raise ValueError("net: expected a network with parameters to train, got none")
        self.device = self.parameters[0].device
        self._unread: list[Tensor] = []
        self._most_unread = 1 if self.device.type == "cpu" else _UNREAD
        self.uncertainty: Uncertainty | None = None
        if self.config.uncertainty:
            self.uncertainty = Uncertainty(self.device)
            self.parameters = [*self.parameters, *self.uncertainty.parameters()]
        self._update = WeightUpdate(
            net, self.parameters, self.config.lr, self.config.clip, self.config.ema_decay,
            waits=self._most_unread == 1,
        )  # fmt: skip
        self.optimizer, self.ema = self._update.optimizer, self._update.ema
        remember_training(self.ema.model, self.parameterization)
        self._coefficients = CoefficientsAhead(sde, self.config, self.parameterization, self.device)
        self.step = 0
        self._order: tuple[int, Tensor] | None = None
        self.folder = None if folder is None else Path(folder)
        self.log: TrainLog | None = None
        if self.folder is not None:
            self._open(self.folder, resume)

    def _open(self, folder: Path, resume: bool) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        checkpoint = folder / CHECKPOINT
        if checkpoint.exists() and not resume:
            raise ValueError(f"{checkpoint} exists: resume that run or choose another folder")
        remove_stale(folder)
        self.log = TrainLog(folder / LOG)
        if checkpoint.exists():
            self.load(checkpoint)
            if self.step > self.config.steps:
                raise ValueError(
                    f"{checkpoint}: made after {self.step} steps, expected at most "
                    f"{self.config.steps}"
                )
        else:
            self.save(checkpoint)
        self.log.cut(self.step)

    @property
    def seconds(self) -> float:
        """Seconds of training so far, over all parts of a resumed run; 0 without a folder."""
        return 0.0 if self.log is None else self.log.seconds

    def fit(self, *, steps: int | None = None, progress: bool = False) -> nn.Module:
        """Train up to step number `steps` (None: the settings'); returns the averaged network.

        progress: a tqdm bar. Raises NonFiniteLoss.
        """
        end = self.config.steps if steps is None else min(steps, self.config.steps)
        bar = None
        if progress:
            bar = progress_bar(total=end, initial=self.step, desc="training", unit="step")
        self.net.train()
        try:
            while self.step < end:
                self._advance()
                if len(self._unread) >= self._most_unread or self._due() or self.step == end:
                    values = self._read()
                    self._record(values)
                    if bar is not None:
                        bar.set_postfix_str(f"loss {values[-1][0]:.3g}", refresh=False)
                        bar.update(len(values))
        finally:
            if bar is not None:
                bar.close()
        self.net.eval()
        return self.ema.model

    def train_step(self) -> tuple[float, float]:
        """One optimiser step; returns its loss (mean over rows) and gradient norm before clipping.

        Raises NonFiniteLoss; no weight is changed by the bad step.
        """
        self._advance()
        return self._read()[-1]

    def _advance(self) -> None:
        """One optimiser step, its loss and gradient norm left to be read."""
        config = self.config
        first, size = self.step * config.batch_size, config.batch_size
        (batch, labels), rows = self._batch(first), self._coefficients.at(self.step)
        self._update.clear()
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        part = size // config.accumulate
        for start in range(0, size, part):
            chosen = slice(start, start + part)
            v0 = None
            if config.objective == "dsm":
                v0 = drawn_velocity(
                    self.sde, batch[chosen], config.seed, first + start, self.backend
                )
            with self._autocast():
                loss = prepared_loss(
                    _given(self.net, labels, chosen), batch[chosen], rows[chosen],
                    self.parameterization, seed=config.seed, first_index=first + start,
                    v0=v0, reduction="sum", uncertainty=self.uncertainty, backend=self.backend,
                )  # fmt: skip
            # Of the sum: what half precision rounds away is smaller by a factor of the batch.
            loss.backward()
            total += loss.detach()
        self._unread.append(self._update(total, size, config.learning_rate(self.step)))
        self.step += 1

    def _read(self) -> list[tuple[float, float]]:
        """Loss and gradient norm of the steps not read yet; NonFiniteLoss at the first bad one."""
        values = [(loss, norm) for loss, norm in torch.stack(self._unread).tolist()]
        self._unread.clear()
        for index, (loss, norm) in enumerate(values):
            if not math.isfinite(loss + norm):
                # Nothing was changed from that step on, and the count goes back to before it.
                self.step -= len(values) - index
                self._update.go_on_from(self.step)
                raise self._failure(loss, norm)
        return values

    @torch.no_grad()
    def validate(self) -> float:
        """The averaged network's loss on the held-out rows, with noise that is always the same."""
        if self.validation is None:
            raise ValueError("no validation rows were given")
        seed = (self.config.seed + _VALIDATION_SEED) % 2**64
        config = self.config
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        held_out, labels = _parted(self.validation)
        labels = None if labels is None else labels.to(self.device)
        for start in range(0, len(held_out), config.batch_size):
            chosen = slice(start, start + config.batch_size)
            with self._autocast():
                total += hsm_loss(
                    _given(self.ema.model, labels, chosen), self.sde,
                    held_out[chosen].to(self.device), config.weighting, self.parameterization,
                    seed, t_min=config.t_min, times=config.times, first_index=start,
                    reduction="sum", objective=config.objective, backend=self.backend,
                )  # fmt: skip
        return float(total) / len(held_out)

    def save(self, path: PathLike) -> None:
        """Write the whole state of the training as one safetensors file, atomically."""
        tensors = {f"model/{k}": v for k, v in self.net.state_dict().items()}
        tensors |= {f"ema/{k}": v for k, v in self.ema.model.state_dict().items()}
        if self.uncertainty is not None:
            tensors |= {f"uncertainty/{k}": v for k, v in self.uncertainty.state_dict().items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{index}/{k}": v for k, v in state.items()}
        # For networks that draw random numbers themselves, such as dropout.
        tensors["rng/cpu"] = torch.get_rng_state()
        if self.device.type == "cuda":
            tensors["rng/cuda"] = torch.cuda.get_rng_state(self.device)
        metadata = {"step": self.step, "updates": self.ema.updates, **self._identity()}
        if self.log is not None:
            metadata["log"] = self.log.pending()
        write_tensors(path, tensors, metadata)

    def load(self, path: PathLike, *, strict: bool = True) -> None:
        """Go on from a file that `save` wrote, PyTorch's global random state included.

        strict: refuse a state made with other settings, process or data; False takes it, for
            instance to go on with a smaller step size.

        Raises ValueError for a broken file, or one that does not fit.
        """
        tensors, metadata = read_tensors(path, most=self._most_bytes())
        here = json.loads(json.dumps(self._identity())) if strict else {}
        for name, value in here.items():
            if metadata.get(name) != value:
                raise ValueError(
                    f"{path}: made with another {name}: {metadata.get(name)}, expected {value}"
                )
        groups: dict[str, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            kind, _, rest = name.partition("/")
            groups.setdefault(kind, {})[rest] = tensor
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in groups.get("optimizer", {}).items():
            index, _, key = name.partition("/")
            state.setdefault(int(index), {})[key] = tensor
        try:
            self._check_moments(state)
            self.net.load_state_dict(groups["model"])
            if self.uncertainty is not None:
                self.uncertainty.load_state_dict(groups["uncertainty"])
            self.ema.load_state_dict({"model": groups["ema"], "updates": metadata["updates"]})
            groups_now = self.optimizer.state_dict()["param_groups"]
            self.optimizer.load_state_dict({"state": state, "param_groups": groups_now})
            torch.set_rng_state(groups["rng"]["cpu"])
            step, log = int(metadata["step"]), metadata.get("log", {})
            if step < 0:
                raise ValueError(f"step: expected at least 0, got {step}")
            if self.log is not None and log:
                self.log.restore(log)
        except (LookupError, RuntimeError, TypeError, ValueError) as error:
            text = " ".join(str(error).split())
            raise ValueError(f"{path}: does not fit this network: {text}") from error
        if "cuda" in groups["rng"] and self.device.type == "cuda":
            torch.cuda.set_rng_state(groups["rng"]["cuda"], self.device)
        self.step = step

    def _most_bytes(self) -> int:
        """More bytes than `save` writes for this network."""
        weights = sum(t.numel() * t.element_size() for t in self.net.state_dict().values())
        # Weights, their average and two moments, uncertainty and random states.
        return 8 * weights + (1 << 20)

    def _check_moments(self, state: dict[int, dict[str, Tensor]]) -> None:
        """ValueError for moments of Adam that are not as large as the weights."""
        for index, moments in state.items():
            shape = self.parameters[index].shape
            for name in ("exp_avg", "exp_avg_sq"):
                if moments[name].shape != shape:
                    raise ValueError(f"optimizer/{index}/{name} has another size than the weights")

    def _identity(self) -> dict[str, Any]:
        """What a checkpoint must share with the run that goes on from it."""
        settings = asdict(self.config)
        free = [n for n in _FREE_ON_RESUME if n != "steps" or self.config.decay == "constant"]
        rows = None if callable(self.data) else list(_parted(self.data)[0].shape)
        try:
            process = self.sde.config()
        except ValueError:  # a schedule given as a function has no description to compare
            process = None
        return {
            "settings": {k: v for k, v in settings.items() if k not in free},
            "process": process,
            "data": rows,
        }

    def _batch(self, first: int) -> tuple[Tensor, Tensor | None]:
        """The rows of the step whose first row has the global number `first`, and their labels."""
        size = self.config.batch_size
        if callable(self.data):
            data, labels = _parted(self.data(self.step))
            _check_rows(f"the batch of step {self.step}", data, labels)
            if len(data) != size:
                raise ValueError(
                    f"the batch of step {self.step}: expected {size} rows, got {len(data)}"
                )
        else:
            data, labels = _parted(self.data)
            epoch, offset = divmod(first, len(data))
            rows = self._epoch(epoch, data)[offset : offset + size]
            while len(rows) < size:
                epoch += 1
                rows = torch.cat([rows, self._epoch(epoch, data)[: size - len(rows)]])
            data, labels = data[rows], None if labels is None else labels[rows]
        return data.to(self.device), None if labels is None else labels.to(self.device)

    def _epoch(self, epoch: int, data: Tensor) -> Tensor:
        """The order of the rows in an epoch, by their addressed words: alike on any machine."""
        if self._order is None or self._order[0] != epoch:
            rows = len(data)
            address = NoiseAddress(self.config.seed, epoch * rows, stream=Stream.DATA_ORDER)
            high, low = kernels.pair_words(address, rows)
            order = torch.argsort((high << 31) | (low >> 1), stable=True)
            self._order = epoch, order.to(data.device)
        return self._order[1]

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.config.autocast is None:
            return nullcontext()
        return torch.autocast(self.device.type, getattr(torch, self.config.autocast))

    def _validates(self) -> bool:
        last = self.step == self.config.steps
        return self.validation is not None and (self.step % self.config.validate_every == 0 or last)

    def _due(self) -> bool:
        """Whether after this step there is something to write."""
        config, step = self.config, self.step
        writes = step % config.log_every == 0 or step % config.checkpoint_every == 0
        return self.folder is not None and (writes or self._validates() or step == config.steps)

    def _record(self, values: list[tuple[float, float]]) -> None:
        """Count steps, the last one just made: log, validate and save where it is time for it."""
        config, step, last = self.config, self.step, self.step == self.config.steps
        if self.folder is None or self.log is None:
            return
        for loss, norm in values:
            self.log.add(loss, norm)
        validates = self._validates()
        if step % config.log_every == 0 or validates or last:
            held_out = self.validate() if validates else None
            self.log.write(step, config.learning_rate(step - 1), held_out)
        if step % config.checkpoint_every == 0 or last:
            self.save(self.folder / CHECKPOINT)

    def _failure(self, loss: float, norm: float) -> NonFiniteLoss:
        times = self._coefficients.at(self.step).t
        saved = None
        if self.folder is not None:
            saved = self.folder / FAILED
            self.save(saved)
        return NonFiniteLoss(
            self.step + 1, loss, norm, (float(times.min()), float(times.max())), saved
        )


def _parted(rows: Rows) -> tuple[Tensor, Tensor | None]:
    """Rows and their labels, if they have some."""
    return rows if isinstance(rows, tuple) else (rows, None)


def _given(net: nn.Module, labels: Tensor | None, rows: slice) -> Network:
    """The network that knows the labels of its rows."""
    return net if labels is None else partial(net, labels=labels[rows])


def _check_rows(name: str, rows: object, labels: object = None) -> None:
    if not isinstance(rows, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(rows).__name__}")
    if rows.dtype not in kernels.STATE_DTYPES:
        raise TypeError(f"{name}: expected float32 or float64, got {rows.dtype}")
    if rows.ndim < 2 or rows.numel() == 0:
        raise ValueError(
            f"{name}: expected a non-empty (n, d) or (n, C, H, W), got {tuple(rows.shape)}"
        )
    if not bool(rows.isfinite().all()):
        raise ValueError(f"{name}: expected finite numbers")
    if labels is not None and (not isinstance(labels, Tensor) or labels.shape != (len(rows),)):
        got = tuple(labels.shape) if isinstance(labels, Tensor) else type(labels).__name__
        raise ValueError(f"{name}: expected labels of shape ({len(rows)},), got {got}")
