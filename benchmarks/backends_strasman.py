"""StanislasStrasman/CLD in `backends.py`: its samplers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import upstream_strasman as upstream

from cldfast.compat import strasman

# epsilon (noise on the position) and whether the network returns the velocity score alone.
MODELS = {"velocity score": (0.0, True), "both scores, epsilon 0.25": (0.25, False)}
SAMPLERS = {"em": "Euler_Maruyama_discr_sampler", "leapfrog": "leapfrog_sampler"}


class Mlp(torch.nn.Module):
    """A toy score of width 64."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        layers = [torch.nn.Linear(5, 64), torch.nn.SiLU(), torch.nn.Linear(64, 64)]
        self.net = torch.nn.Sequential(*layers, torch.nn.SiLU(), torch.nn.Linear(64, outputs))

    def forward(self, u: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """u (B, 4), t (B,) or a scalar."""
        return self.net(torch.cat([u, t.reshape(-1, 1).expand(u.shape[0], 1)], 1))


@contextmanager
def contestants(**changes: Any) -> Iterator[dict[str, Any]]:
    """Their process, and ours in both modes."""
    config = upstream.options(**changes)
    with upstream.opened() as modules:
        yield {
            "theirs": upstream.process(modules, config),
            "published": strasman.CriticallyDampedLangevin(config, "published"),
            "exact": strasman.CriticallyDampedLangevin(config, "exact"),
        }


def samplers(sdes: dict[str, Any], name: str, *args: Any) -> dict[str, Callable[[], Any]]:
    """The call of a sampler for each process."""
    return {who: lambda sde=sde: getattr(sde, SAMPLERS[name])(*args) for who, sde in sdes.items()}


def speed() -> Iterator[tuple[str, dict[str, Callable[[], Any]]]]:
    """Toy size with a small network, and images with one that costs nothing."""
    for model, (epsilon, is_cld) in MODELS.items():
        with contestants(epsilon=epsilon) as sdes, torch.no_grad():
            for name in SAMPLERS:
                torch.manual_seed(0)
                net = Mlp(2 if is_cld else 4)
                toy = samplers(sdes, name, torch.randn(512, 4), net, 500, 1e-3, is_cld)
                yield f"{name}, {model}, toy MLP, 512x2, 500 steps", toy
                output = torch.randn(1024, 3 if is_cld else 6, 32, 32)
                init = torch.randn(1024, 6, 32, 32)
                large = samplers(
                    sdes, name, init, lambda u, t, o=output: o, 10, 1e-3, is_cld
                )  # fmt: skip
                yield f"{name}, {model}, trivial network, 1024x3x32x32, 10 steps", large
