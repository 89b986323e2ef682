"""A checkout of nv-tlabs/CLD-SGM for tests and benchmarks: options, modules, its toy training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from checkouts import checkout, stand_in

NAME = "CLD-SGM"
MODULES = (
    "sampling",
    "losses",
    "likelihood",
    "sde_lib",
    "util.utils",
    "util.checkpoint",
    "models.mlp",
    "models.ema",
    "models.utils",
)


def options(**changes: Any) -> SimpleNamespace:
    """The options of its two-dimensional configuration on the CPU; changes: by name."""
    values: dict[str, Any] = {
        "device": torch.device("cpu"), "seed": 0, "mode": "train",
        "dataset": "multimodal_swissroll", "is_image": False, "data_dim": 2,
        "sde": "cld", "beta_type": "linear", "beta0": 4.0, "beta1": 0.0,
        "m_inv": 4.0, "gamma": 0.04, "numerical_eps": 1e-6,
        "cld_objective": "hsm", "loss_eps": 1e-5, "weighting": "reweightedv2",
        "name": "mlp", "mixed_score": False, "ema_rate": 0.999,
        "optimizer": "Adam", "learning_rate": 1e-3, "weight_decay": 0.0, "grad_clip": 1.0,
        "n_warmup_iters": 0, "autocast_train": False, "autocast_eval": False,
        "sampling_method": "sscs", "sampling_eps": 1e-3, "n_discrete_steps": 20,
        "striding": "linear", "denoising": False, "sscs_num_stab": 0.0,
        "training_batch_size": 512, "sampling_batch_size": 512,
    }  # fmt: skip
    for kind in ("sampling", "likelihood"):
        values |= {
            f"{kind}_solver": "scipy_solver", f"{kind}_solver_options": {"solver": "RK45"},
            f"{kind}_rtol": 1e-5, f"{kind}_atol": 1e-5,
        }  # fmt: skip
    values |= {"likelihood_eps": 1e-5, "likelihood_hutchinson_type": "rademacher"}
    return SimpleNamespace(**(values | changes))


@contextmanager
def opened(*more: str) -> Iterator[SimpleNamespace]:
    """Its modules, `MODULES` and more; packages that only draw or log are stood in for."""
    stand_ins = {
        "torchvision": stand_in("torchvision"),
        "torchvision.utils": stand_in("torchvision.utils", make_grid=None),
        "torch.utils.tensorboard": stand_in("torch.utils.tensorboard", SummaryWriter=Curve),
    }
    with checkout(NAME, (*MODULES, *more), stand_ins) as modules:
        yield modules


def process(modules: SimpleNamespace, config: SimpleNamespace) -> Any:
    """Its process for a configuration."""
    rate = modules.util_utils.build_beta_fn(config)
    integral = modules.util_utils.build_beta_int_fn(config)
    kinds = {"cld": modules.sde_lib.CLD, "vpsde": modules.sde_lib.VPSDE}
    return kinds[config.sde](config, rate, integral)


def network(modules: SimpleNamespace, config: SimpleNamespace, seed: int = 0) -> torch.nn.Module:
    """Its network for a configuration, with fresh weights."""
    torch.manual_seed(seed)
    result: torch.nn.Module = modules.models_utils.create_model(config)
    return result


class Curve:
    """In place of a TensorBoard writer: keeps the scalars."""

    kept: dict[str, list[float]] = {}

    def __init__(self, folder: str) -> None:
        Curve.kept.clear()

    def add_scalar(self, name: str, value: Any, step: int) -> None:
        """Keep a value."""
        Curve.kept.setdefault(name, []).append(float(value))


def train_toy(
    modules: SimpleNamespace, folder: Path, iterations: int, **changes: Any
) -> list[float]:
    """Its own `run_lib_toy.train`, unmodified, for some iterations: the loss of each.

    It is written for several GPUs; here one process of the gloo group and the CPU stand for them.
    """
    config = options(
        **{
            "n_train_iters": iterations,
            "log_freq": 1,
            "local_rank": 0,
            "global_rank": 0,
            "global_size": 1,
            "snapshot_freq": 10 * iterations,
            "snapshot_threshold": 1,
            "likelihood_freq": 10 * iterations,
            "likelihood_threshold": 1,
            "save_freq": None,
            **changes,
        }  # fmt: skip
    )
    script = modules.run_lib_toy
    real = script.torch, script.DDP
    # The script's own view of torch, in which its GPU is the CPU.
    script.torch = stand_in("torch", **vars(torch))
    script.torch.device = lambda name: torch.device("cpu")
    script.DDP = lambda model, device_ids: real[1](model)
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        script.train(config, str(folder))
    finally:
        torch.distributed.destroy_process_group()
        script.torch, script.DDP = real
    return list(Curve.kept["training_loss"])
