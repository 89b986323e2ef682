"""Where a run first left the finite numbers: found without waiting for a device in its loop.

The end of a run is looked at once. Where that is not finite the run is made again and looked at
after every stage: noise is addressed, so the second run is the first one. A run with a callback is
not made again; it keeps a flag on the device for each stage.
"""

from __future__ import annotations

from typing import Any

import torch

from cldfast.network import Network
from cldfast.planner.plan import Plan
from cldfast.sampling.steps import Guidance, Outputs

NONFINITE = ("raise", "return")


def check_choice(nonfinite: object) -> None:
    """ValueError for what is none of the things to do with samples that are not finite."""
    if nonfinite not in NONFINITE:
        raise ValueError(f"nonfinite must be one of {', '.join(NONFINITE)}, got {nonfinite!r}")


def finite(u: torch.Tensor) -> bool:
    """Whether all is finite; True where nobody can look: in a graph, a transform, on `meta`."""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return True
    if u.numel() == 0 or u.is_meta:
        return True
    # NaN and infinity are the smallest or the largest number; nothing of the size of u is made.
    low, high = u.detach().aminmax()
    return bool(low.isfinite() & high.isfinite())


class _WatchedOutputs(Outputs):
    """Outputs that know whether the last ones were finite: `flag`, () on their device."""

    flag: torch.Tensor | None = None

    def __call__(self, *arguments: Any) -> tuple[torch.Tensor, ...]:
        outputs = super().__call__(*arguments)
        self.flag = torch.stack([o.detach().isfinite().all() for o in outputs]).all()
        return outputs


class FiniteWatch:
    """Looks at the states and the network's outputs of a run of a plan from states u."""

    def __init__(self, plan: Plan, u: torch.Tensor) -> None:
        self.plan, self.start = plan, u
        self._outputs: _WatchedOutputs | None = None
        # For each stage whether the state after it, and the outputs that it read, are finite.
        self._flags: list[tuple[torch.Tensor, torch.Tensor | None]] = []

    def outputs(self, net: Network, term: Guidance | None) -> Outputs:
        """The outputs of a network that are to be looked at."""
        self._outputs = _WatchedOutputs(net, self.plan, term)
        return self._outputs

    def note(self, u: torch.Tensor) -> None:
        """The state after the next stage; raises at once where no device has to be waited for."""
        of_network = None if self._outputs is None else self._outputs.flag
        self._flags.append((u.detach().isfinite().all(), of_network))
        if u.device.type == "cpu" and not self._flags[-1][0]:
            raise self.error(u)

    def error(self, u: torch.Tensor) -> ValueError:
        """What to raise for states u that are not finite, after all that was noted."""
        lost = int((~u.detach().flatten(1).isfinite()).any(1).sum())
        # Bad outputs may reach the state by a history row only, stages later.
        good = [bool(state) and (made is None or bool(made)) for state, made in self._flags]
        index = good.index(False) if False in good else None
        if not finite(self.start):
            what = "the states to start from are not finite: give others"
        elif index is None:
            what = (
                "all states of a second run were finite, so that the network does not return the "
                "same for the same state, or what a callback returned was not: call net.eval()"
            )
        else:
            what = self._place(index)
        return ValueError(
            f"{lost} of {len(u)} samples diverged: {what}, or pass nonfinite='return' to have them"
        )

    def _place(self, index: int) -> str:
        """The stage that left the finite numbers, why, and what to do."""
        stages, of_network = self.plan.stages, self._flags[index][1]
        before = float(self.plan.grid[0]) if index == 0 else stages[index - 1].t_next
        where = (
            f"in stage {index} of {len(stages)} of solver {self.plan.solver!r}, from "
            f"t = {before:.6g} to {stages[index].t_next:.6g}, "
        )
        if of_network is not None and not of_network:
            return f"{where}the network returned NaN or infinity for a finite state; mend it there"
        return (
            f"{where}the state grew beyond the finite numbers; take more steps, another solver or "
            "grid, or the parameterization that the network was trained with"
        )
