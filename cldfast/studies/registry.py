"""The studies of `cldfast study`, by name."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

from cldfast.studies import bound, position_noise, processes, regularity, targets


@dataclass(frozen=True)
class Study:
    """A study of the command line.

    help: what it shows, in a line. add_options: of its own, to a parser that has `--out` and
    `--quick`. run: of the parsed options; returns the files made.
    """

    help: str
    add_options: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], list[str]]


STUDIES = {
    "processes": Study(
        "CLD beside VP, VE, flow matching and kinetic Langevin dynamics",
        processes.add_options,
        processes.run,
    ),
    "bound": Study("the Wasserstein bound against what is measured", bound.add_options, bound.run),
    "regularity": Study(
        "the Lipschitz constant of the renormalised score along time",
        regularity.add_options,
        regularity.run,
    ),
    "targets": Study(
        "variance of the targets of score matching, and xi(t)", targets.add_options, targets.run
    ),
} | {
    name: Study(
        f"samples of {sweep.data}, d = {sweep.dim}, against the noise on the position",
        lambda parser, sweep=sweep: position_noise.add_options(parser, sweep),  # type: ignore[misc]
        lambda args, sweep=sweep: position_noise.run(args, sweep),  # type: ignore[misc]
    )
    for name, sweep in position_noise.SWEEPS.items()
}
