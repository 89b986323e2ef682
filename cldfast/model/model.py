"""A network that knows its process, its parameterisation and the scale of its data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal, overload

import torch
from torch import Tensor

from cldfast.compat import denoisers
from cldfast.conditions import Conditions, condition_rows, conditioned, null_of, with_null
from cldfast.fitting.fit import FitResult, fit_plan
from cldfast.model.denoise import data_prediction, denoised_plane
from cldfast.model.hub import Shared
from cldfast.model.keywords import parted
from cldfast.network import Network, at_times, network_dtype
from cldfast.planner.make_plan import make_plan
from cldfast.planner.parameterization import (
    Parameterization,
    check_parameterization,
    data_form,
    default_parameterization,
    form_name,
)
from cldfast.process.sde import CLD, LinearPhaseSDE
from cldfast.sampling.callbacks import as_info_callback
from cldfast.sampling.inpainting import Inpainting
from cldfast.sampling.likelihood import Likelihood, likelihood
from cldfast.sampling.probability_flow import check_t_min, pflow
from cldfast.sampling.run import sample
from cldfast.training import TrainConfig, Trainer
from cldfast.training.data_scale import DataScale
from cldfast.training.losses import Weighting, hsm_loss
from cldfast.training.trained import remember_training


class Model(Shared):
    """A network with all that is needed to train it and to sample from it, said once.

    net: the network `net(u, t, **conditions)`; for a parameterisation of y it is asked about y, see
        `cldfast.make_plan`. An output object of diffusers is taken by its `sample`.
    sde, parameterization: the process, and what the network returns and sees; None is the default
        of `cldfast.make_plan`.
    scale: how data are standardised, see `cldfast.DataScale`; None is not at all. Data go in and
        samples come out in their own units; states, of callbacks too, are those of the process.
    shape: of one sample, (d,) or (C, H, W); None is that of the first data in `loss`.
    t_min: the smallest time, in training and sampling. weighting, times: of the loss, see
        `cldfast.hsm_loss`; None is "edm" and "half_log" for networks that predict the data or their
        noise, "reweighted" and "uniform" for others (docs/learning.md).
    null: by name, what the network takes for no condition, such as the label of no class; None is
        the network's own attribute `null`. dropout: the share of rows that get it instead of their
        conditions while the model is in training mode, so that it can be guided later.

    Keywords that are no options of a method are conditions, handed to the network by name: tensors
    with a row for each sample, or one value for all, see `cldfast.conditions.condition_rows`.

    Raises TypeError or ValueError for arguments that do not fit.
    """

    def __init__(
        self,
        net: Network,
        sde: LinearPhaseSDE,
        parameterization: Parameterization | None = None,
        scale: DataScale | None = None,
        *,
        shape: Sequence[int] | None = None,
        t_min: float = 1e-3,
        weighting: Weighting | None = None,
        times: str | None = None,
        null: Conditions | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if not callable(net):
            raise TypeError(f"net must be callable as net(u, t), got {type(net).__name__}")
        if not isinstance(sde, LinearPhaseSDE):
            raise TypeError(f"sde must be a process such as cldfast.CLD, got {type(sde).__name__}")
        if scale is not None and not isinstance(scale, DataScale):
            got = type(scale).__name__
            raise TypeError(f"scale must be a DataScale, as DataScale.fit(x) makes it, got {got}")
        if parameterization is None:
            parameterization = default_parameterization(sde)
        check_parameterization(parameterization)
        check_t_min(sde, t_min)
        predicts_data = data_form(parameterization) is not None
        self.net, self.sde, self.parameterization, self.scale = net, sde, parameterization, scale
        for own in (self, net):
            remember_training(own, parameterization)
        self.shape = None if shape is None else tuple(shape)
        self.t_min = t_min
        self.weighting = weighting or ("edm" if predicts_data else "reweighted")
        self.times = times or ("half_log" if predicts_data else "uniform")
        self.null = dict(null_of(net) if null is None else null)
        if not 0.0 <= dropout < 1.0 or (dropout and not self.null):
            raise ValueError(f"dropout: expected in [0, 1), and null= with it, got {dropout}")
        self.dropout = dropout

    @classmethod
    def from_diffusers(
        cls,
        model: Any,
        scheduler: Any = None,
        sde: LinearPhaseSDE | None = None,
        *,
        discrete: bool = False,
        **options: Any,
    ) -> Model:
        """A pretrained U-Net of diffusers, sampled by CLD without retraining.

        model, scheduler, discrete: see `cldfast.from_diffusers`. sde: None is `cldfast.CLD()`.
        options: of `Model`.
        """
        net = denoisers.from_diffusers(model, scheduler, discrete=discrete)
        config = getattr(getattr(model, "unet", model), "config", None)
        size = getattr(config, "sample_size", None)
        if config is not None and size is not None:
            sides = (size, size) if isinstance(size, int) else tuple(size)
            options = {"shape": (config.in_channels, *sides)} | options
        return cls(net, CLD() if sde is None else sde, "denoiser", **options)

    @property
    def input_dtype(self) -> torch.dtype | None:
        return network_dtype(self.net)

    def forward(self, u: Tensor, t: Tensor, **conditions: Any) -> Any:
        """What the network returns for what it sees."""
        if self.training and self.dropout and conditions:
            conditions = condition_rows(conditions, len(u), u.device)
            kept = torch.rand(len(u), device=u.device) >= self.dropout

            def drop(value: Tensor, null: Tensor) -> Tensor:
                return torch.where(kept.reshape(-1, *[1] * (value.ndim - 1)), value, null)

            conditions = with_null(drop, conditions, self.null)
        output = self.net(u, t, **conditions)
        return output if isinstance(output, Tensor) else getattr(output, "sample", output)

    def at_times(self, t: Tensor) -> Sequence[Network]:
        """The network at each of the times t (N,), see `cldfast.network.at_times`."""
        made = at_times(self.net, t)
        return [self] * len(t) if made[0] is self.net else made

    def loss(self, x: Tensor, **keywords: Any) -> Tensor:
        """The score matching loss of data x (B, d) or (B, C, H, W), to be minimised.

        keywords: options of `cldfast.hsm_loss`, and conditions, such as `labels=y`.
        """
        conditions, options = parted(self.net, keywords, hsm_loss)
        if self.shape is None:
            self.shape = tuple(x.shape[1:])
        if "reference" in options:
            options["reference"] = self._inside(options["reference"])
        own: dict[str, Any] = {"parameterization": self.parameterization, "t_min": self.t_min}
        options = own | {"weighting": self.weighting, "times": self.times} | options
        return hsm_loss(self, self.sde, self._inside(x), conditions=conditions, **options)

    def fit(
        self,
        data: Tensor,
        config: TrainConfig | None = None,
        *,
        labels: Tensor | None = None,
        validation: Tensor | tuple[Tensor, Tensor] | None = None,
        progress: bool = False,
        **options: Any,
    ) -> Trainer:
        """Train the network by `cldfast.training.Trainer`; it has the averaged weights afterwards.

        data: (n, d) or (n, C, H, W), in their own units. config: settings, of which
        parameterisation, t_min, weighting and times are replaced by the model's. labels: of the
        rows, for a network that has an argument of this name; train on other conditions by `loss`.
        validation: rows held out, or rows and their labels. progress: a tqdm bar. options: of
        `Trainer`, such as `folder` and `resume`.

        Returns the trainer. Raises as `Trainer` does.
        """
        name, sigma_data = form_name(self.parameterization)
        settings: dict[str, Any] = {"weighting": self.weighting, "times": self.times}
        settings |= {"parameterization": name, "sigma_data": sigma_data, "t_min": self.t_min}
        if self.shape is None:
            self.shape = tuple(data.shape[1:])
        if isinstance(validation, tuple):
            validation = (self._inside(validation[0]), validation[1])
        elif validation is not None:
            validation = self._inside(validation)
        rows = self._inside(data)
        trainer = Trainer(
            self, self.sde, rows if labels is None else (rows, labels),
            replace(TrainConfig() if config is None else config, **settings),
            validation=validation, **options,
        )  # fmt: skip
        trainer.fit(progress=progress)
        trainer.ema.copy_to(self)
        return trainer

    @overload
    def sample(
        self,
        n: int | Sequence[int],
        steps: int | None = None,
        *,
        return_velocity: Literal[False] = False,
        **keywords: Any,
    ) -> Tensor: ...
    @overload
    def sample(
        self,
        n: int | Sequence[int],
        steps: int | None = None,
        *,
        return_velocity: Literal[True],
        **keywords: Any,
    ) -> tuple[Tensor, Tensor]: ...
    def sample(
        self, n: int | Sequence[int], steps: int | None = None, **keywords: Any
    ) -> Tensor | tuple[Tensor, Tensor]:
        """n samples (n, *shape), in the units of the data; the network is in evaluation mode.

        n: their number, or their whole shape. steps: see `cldfast.make_plan`.
        keywords: options of `cldfast.sample`, such as `batch_size`, `seed`, `plan` and
            `guidance_scale`; and conditions, such as `labels=y`, one for each sample or one for
            all. `inpaint` is given in the units of the data; a `callback(info)` gets `info.x0` so.

        Raises ValueError or TypeError as `cldfast.sample` does.
        """
        conditions, options = parted(self.net, keywords, sample, make_plan)
        if options.get("guidance_scale") is not None and not conditions:
            raise ValueError("guidance_scale needs a condition to guide to, such as labels=y")
        own: dict[str, Any] = {"parameterization": self.parameterization}
        if options.get("plan") is None:
            own["t_min"] = self.t_min  # a plan has its own
        if options.get("callback") is not None:
            watch = as_info_callback(options["callback"])
            options["callback"] = lambda info: watch(info.changed(info.state, self._outside))
        if self.scale is not None and isinstance(options.get("inpaint"), Inpainting):
            inpaint = options["inpaint"]
            options["inpaint"] = Inpainting(self._inside(inpaint.known), inpaint.mask)
        with self._evaluating():
            drawn = sample(
                self, self.sde, self._shape(n), steps=steps, conditions=conditions,
                null=self.null, **(own | options),
            )  # fmt: skip
        if isinstance(drawn, Tensor):
            return self._outside(drawn)
        x, v = drawn
        return self._outside(x), v if self.scale is None else self.scale.stretch(v)

    def pflow(self, n: int | Sequence[int] | None = None, **keywords: Any) -> tuple[Tensor, int]:
        """n samples by the adaptive probability flow, and its number of evaluations.

        keywords: options of `cldfast.pflow`, and conditions. States, given as `init` or returned
        for `return_velocity`, are those of the process.
        """
        conditions, options = parted(self.net, keywords, pflow, strict=False)
        own: dict[str, Any] = {"parameterization": self.parameterization, "t_min": self.t_min}
        shape = None if n is None else self._shape(n)
        with self._evaluating():
            x, calls = pflow(self, self.sde, shape, conditions=conditions, **(own | options))
        return (x if options.get("return_velocity") else self._outside(x)), calls

    def likelihood(self, x: Tensor, **keywords: Any) -> Likelihood:
        """Upper bounds on the negative log-likelihood of data x, in nats and in their own units.

        keywords: options of `cldfast.likelihood`, and conditions.
        """
        conditions, options = parted(self.net, keywords, likelihood, strict=False)
        own: dict[str, Any] = {"parameterization": self.parameterization, "t_min": self.t_min}
        with self._evaluating():
            found = likelihood(
                self, self.sde, self._inside(x), conditions=conditions, **(own | options)
            )
        if self.scale is None:
            return found
        return replace(found, nll=found.nll + self.scale.log_volume(x.shape[1:]))

    def denoise(self, u: Tensor, t: Tensor | float, **conditions: Any) -> Tensor:
        """`E[x0 | u]`, in the units of the data, of states of the process at times t, () or (B,).

        u: states (B, 2d) or (B, 2C, H, W); or, for a network that sees y, y itself, `x0 + sigma_y
        n` (B, d) or (B, C, H, W) with `sigma_y = sde.marginal(t).sigma_y`. The mode of the network
        and autograd are left as they are.
        """
        times = torch.as_tensor(t, dtype=torch.float64, device=u.device).expand(len(u))
        net, form = conditioned(self, conditions), data_form(self.parameterization)
        plane = self.shape is not None and u.shape[1] == self.shape[0]
        if plane and form is not None and form.sees_y:
            return self._outside(denoised_plane(net, self.sde, form, u, times))
        return self._outside(data_prediction(net, self.sde, self.parameterization, u, times))

    def fit_plan(self, data: Tensor | None, evaluations: int, **keywords: Any) -> FitResult:
        """A plan fitted to the network, to be given to `sample(plan=result.plan)`.

        data: as the network was trained on, in their own units. keywords: options of
        `cldfast.fit_plan`; and conditions, one value that all samples share.
        """
        conditions, options = parted(self.net, keywords, fit_plan)
        own: dict[str, Any] = {"parameterization": self.parameterization, "t_min": self.t_min}
        if data is None:
            own["shape"] = self._shape(1)[1:]
        if isinstance(options.get("held_out"), Tensor):
            options["held_out"] = self._inside(options["held_out"])
        data = None if data is None else self._inside(data)
        with self._evaluating():
            return fit_plan(
                self, self.sde, data, evaluations, conditions=conditions, null=self.null,
                **(own | options),
            )  # fmt: skip

    def extra_repr(self) -> str:
        return (
            f"sde={self.sde}, parameterization={str(self.parameterization)!r}, shape={self.shape}"
        )

    def _inside(self, x: Tensor) -> Tensor:
        return x if self.scale is None else self.scale.standardise(x)

    def _outside(self, x: Tensor) -> Tensor:
        return x if self.scale is None else self.scale.restore(x)

    def _shape(self, n: int | Sequence[int]) -> tuple[int, ...]:
        if isinstance(n, Sequence):
            return tuple(n)
        return (n, *self.known_shape)

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """The network in evaluation mode, and afterwards as it was."""
        training = self.training
        self.eval()
        try:
            yield
        finally:
            self.train(training)
