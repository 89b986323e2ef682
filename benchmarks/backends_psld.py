"""mandt-lab/PSLD in `backends.py`: its samplers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import upstream_psld as upstream
from backends_strasman import Mlp

from cldfast.compat import psld
from cldfast.compat.psld.process import rows_of

MODELS: dict[str, dict[str, Any]] = {
    "gamma 0.01": {},
    "gamma 0": {"gamma": 0.0, "nu": 4.0},
}
SAMPLERS = ("em_sde", "sscs_sde")


@contextmanager
def contestants(name: str, **changes: Any) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Their SDE, and the sampler of a name: theirs, and ours in both modes."""
    config = upstream.options(**changes)
    with upstream.opened() as modules:
        sde = upstream.process(modules, config)
        ours = psld.REGISTERED["samplers"][name]
        yield (
            sde,
            {
                "theirs": modules.util.get_module("samplers", name)(config, sde, None),
                **{m: ours(config, sde, None, mode=m) for m in ("published", "exact")},
            },
        )


def times(steps: int) -> torch.Tensor:
    """The times of its prediction loop."""
    return torch.linspace(0.0, 0.999, steps + 1, dtype=torch.float64)


def calls(
    samplers: dict[str, Any], score_fn: Any, batch: Callable[[], torch.Tensor], steps: int
) -> dict[str, Callable[[], Any]]:
    """The sampling call of each, with a last step without noise."""

    def call(sampler: Any) -> torch.Tensor:
        sampler.score_fn = score_fn
        return sampler.sample(batch(), times(steps), steps)

    return {who: lambda sampler=sampler: call(sampler) for who, sampler in samplers.items()}


def speed() -> Iterator[tuple[str, dict[str, Callable[[], Any]]]]:
    """Toy size with a small network, and images with one that costs nothing."""
    # The factor of the covariance costs nothing in either.
    for model in ("gamma 0.01", "gamma 0"):
        for name in SAMPLERS:
            with contestants(name, **MODELS[model]) as (sde, samplers), torch.no_grad():
                rows = len(rows_of(sde))
                torch.manual_seed(0)
                toy = torch.randn(512, 4)
                yield (
                    f"{name}, {model}, toy MLP, 512x2, 500 steps",
                    calls(samplers, Mlp(2 * rows), lambda: toy, 499),
                )
                output, init = torch.randn(1024, 3 * rows, 32, 32), torch.randn(1024, 6, 32, 32)
                yield (
                    f"{name}, {model}, trivial network, 1024x3x32x32, 5 steps",
                    calls(samplers, lambda u, t, o=output: o, lambda: init, 4),
                )
