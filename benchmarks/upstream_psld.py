"""A checkout of mandt-lab/PSLD for tests and benchmarks: modules, a configuration."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from checkouts import VARIABLE, checkout, stand_in

NAME = "PSLD"
MODULES = ("util", "losses", "samplers", "samplers.sde", "samplers.ode", "models.sde.psld")


def options(**changes: Any) -> SimpleNamespace:
    """Its CIFAR-10 configuration, as attributes; changes: by name, wherever they stand.

    `.diffusion` is the configuration itself and `.clf` that of a classifier, as in a joint one.
    """
    space = SimpleNamespace
    values: dict[str, Any] = {
        "n_timesteps": 1000, "beta_min": 8.0, "beta_max": 8.0, "nu": 4.01, "gamma": 0.01,
        "kappa": 0.04, "numerical_eps": 1e-9, "decomp_mode": "lower", "mode": "hsm",
        "reduce_mean": True, "solver": "RK45", "rtol": 1e-5, "atol": 1e-5,
        "n_discrete_steps": 20, "denoise": True, "stride_type": "uniform",
        "label_to_sample": 1, "clf_temp": 1.7, "lr": 2e-4, "warmup": 0,
    }  # fmt: skip
    unknown = changes.keys() - values.keys()
    if unknown:
        raise TypeError(f"unknown options {sorted(unknown)}")
    values |= changes
    sde = ("n_timesteps", "beta_min", "beta_max", "nu", "gamma", "kappa", "numerical_eps")
    evaluation = ("n_discrete_steps", "denoise", "stride_type")
    config = space(
        model=space(sde=space(**{k: values[k] for k in (*sde, "decomp_mode")})),
        training=space(
            mode=values["mode"],
            loss=space(l_type="l2", weighting="fid", reduce_mean=values["reduce_mean"]),
            train_eps=1e-5,
            optimizer=space(
                name="Adam", lr=values["lr"], beta_1=0.9, beta_2=0.999, eps=1e-8, weight_decay=0.0,
                warmup=values["warmup"], grad_clip=1.0,
            ),
        ),
        evaluation=space(
            sampler=space(**{k: values[k] for k in ("rtol", "atol", "solver")}),
            eval_eps=1e-3, sample_from="source", seed=0, **{k: values[k] for k in evaluation},
        ),
    )  # fmt: skip
    config.diffusion = config
    config.clf = space(evaluation=space(**{k: values[k] for k in ("label_to_sample", "clf_temp")}))
    return config


class Module(torch.nn.Module):
    """In place of a Lightning module: one optimiser, stepped by hand."""

    device = torch.device("cpu")

    def optimizers(self) -> torch.optim.Optimizer:
        """That of `configure_optimizers`, made once."""
        if not hasattr(self, "_configured"):
            self._configured = self.configure_optimizers()
        return self._configured["optimizer"]

    def lr_schedulers(self) -> Any:
        """Its scheduler."""
        self.optimizers()
        return self._configured["lr_scheduler"]["scheduler"]

    def manual_backward(self, loss: torch.Tensor) -> None:
        """Plain backward."""
        loss.backward()

    def log(self, name: str, value: torch.Tensor, **options: Any) -> None:
        """Nothing is logged."""


@contextmanager
def opened(*more: str) -> Iterator[SimpleNamespace]:
    """Its modules, `MODULES` and more; image packages, Lightning and CUDA networks stood in for."""
    folder = Path(os.environ.get(VARIABLE, "")) / NAME / "main"
    transforms = stand_in("torchvision.transforms")
    seed = stand_in("pytorch_lightning.utilities.seed", seed_everything=torch.manual_seed)
    stand_ins = {
        # The package itself imports networks that compile CUDA operators.
        "models": stand_in("models", __path__=[str(folder / "models")]),
        "torchvision": stand_in("torchvision", transforms=transforms),
        "torchvision.transforms": transforms,
        "pytorch_lightning": stand_in("pytorch_lightning", LightningModule=Module),
        "pytorch_lightning.utilities": stand_in("pytorch_lightning.utilities"),
        "pytorch_lightning.utilities.seed": seed,
    }
    with checkout(f"{NAME}/main", (*MODULES, *more), stand_ins) as modules:
        yield modules


def process(modules: SimpleNamespace, config: SimpleNamespace) -> Any:
    """Its SDE for a configuration."""
    return modules.models_sde_psld.PSLD(config)
