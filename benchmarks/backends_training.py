"""Training of two codebases with our loss in the place of theirs: loss curves, replicated.

    CLDFAST_UPSTREAM=~/checkouts python benchmarks/backends_training.py

StanislasStrasman/CLD: its `run.py`, unmodified (it needs pandas, pytz and POT), which on a machine
without GPU takes 10 epochs of 5 batches. mandt-lab/PSLD: its `SDEWrapper.training_step`,
unmodified, on a mixture of four; its script needs Lightning and networks that compile CUDA
operators. Mean loss of every tenth of a training over replications, its standard error, and the
distance from the codebase's in standard errors of the difference.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import runpy
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import backends_psld
import numpy as np
import torch
import upstream_psld
import upstream_strasman
from checkouts import VARIABLE
from output import RESULTS, write_csv

from cldfast.compat import psld, strasman
from cldfast.compat.psld.process import rows_of

FIELDS = (
    "codebase", "case", "loss", "tenth", "mean loss", "standard error",
    "from the codebase's in standard errors",
)  # fmt: skip
CONTESTANTS = ("theirs", "published", "exact")
STRASMAN_REPLICATIONS, PSLD_REPLICATIONS, PSLD_STEPS = 40, 12, 300
EPSILONS = ("0.0", "0.25")
Curves = dict[str, np.ndarray]  # by case, (replications, tenths)


@contextlib.contextmanager
def swapped(backend: Any, who: str) -> Iterator[None]:
    """The codebase over ours, or, for "theirs", as it is."""
    if who != "theirs":
        backend.install(who)
    try:
        yield
    finally:
        backend.uninstall()


@contextlib.contextmanager
def inside_a_temporary_folder() -> Iterator[None]:
    """The working directory, where the script leaves its results."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(before)


def strasman_curves(who: str) -> Curves:
    """Its script from the command line; the losses are what its `train_one_epoch` returns."""
    script = Path(os.environ[VARIABLE]).resolve() / upstream_strasman.NAME / "src" / "run.py"
    arguments = [
        str(script), "--dataset", "diamond", "--rep_size", str(STRASMAN_REPLICATIONS),
        "--a", "2", "--epsilon", *EPSILONS, "--mid_features", "64",
    ]  # fmt: skip
    losses: list[float] = []
    with upstream_strasman.opened() as modules, swapped(strasman, who):
        epoch: Callable[..., float] = modules.train.train_one_epoch

        def recorded(*args: Any) -> float:
            losses.append(epoch(*args))
            return losses[-1]

        with (
            inside_a_temporary_folder(),
            contextlib.redirect_stdout(io.StringIO()),
            mock.patch.object(modules.train, "train_one_epoch", recorded),
            mock.patch.object(sys, "argv", arguments),
        ):
            runpy.run_path(str(script), run_name="__main__")
    curves = np.array(losses).reshape(len(EPSILONS), STRASMAN_REPLICATIONS, -1)
    return {f"run.py, epsilon {e}": curves[k] for k, e in enumerate(EPSILONS)}


def psld_curves(who: str) -> Curves:
    """Its training step with the loss of its registry."""
    curves = {}
    for model, changes in backends_psld.MODELS.items():
        config = upstream_psld.options(lr=1e-3, **changes)
        with upstream_psld.opened("models.wrapper") as modules, swapped(psld, who):
            sde = upstream_psld.process(modules, config)
            criterion = modules.util.get_module("losses", "psld_score_loss")(config, sde)
            losses = []
            for _ in range(PSLD_REPLICATIONS):
                net = backends_psld.Mlp(2 * len(rows_of(sde)))
                wrapper = modules.models_wrapper.SDEWrapper(config, sde, net, criterion=criterion)
                for step in range(PSLD_STEPS):
                    x0 = 0.3 * torch.randn(256, 2) + 2.0 * torch.randint(0, 2, (256, 2)) - 1.0
                    losses.append(wrapper.training_step(x0, step).item())
        tenths = np.array(losses).reshape(PSLD_REPLICATIONS, 10, -1).mean(2)
        curves[f"training_step, {model}, {PSLD_STEPS} batches of 256x2"] = tenths
    return curves


def main() -> None:
    """Train all, print and write the table."""
    rows = []
    for codebase, run in (("CLD", strasman_curves), ("PSLD", psld_curves)):
        found = {}
        for who in CONTESTANTS:
            torch.manual_seed(0)
            np.random.seed(0)
            found[who] = run(who)
        for case in found["theirs"]:
            means = {who: found[who][case].mean(0) for who in found}
            errors = {
                who: found[who][case].std(0, ddof=1) / math.sqrt(len(found[who][case]))
                for who in found
            }
            for who in CONTESTANTS:
                apart = (means[who] - means["theirs"]) / np.hypot(errors[who], errors["theirs"])
                for k, (mean, error) in enumerate(zip(means[who], errors[who], strict=True)):
                    row = (
                        codebase, case, who, k + 1, f"{mean:.5g}", f"{error:.2g}",
                        f"{round(apart[k], 2) + 0.0:.2f}",
                    )  # fmt: skip
                    rows.append(dict(zip(FIELDS, row, strict=True)))
                    print(*row, sep=", ", flush=True)
    write_csv(RESULTS / "backends_training.csv", rows)


if __name__ == "__main__":
    main()
