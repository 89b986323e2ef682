"""Print the exact errors of samplers on Gaussian data, by their sources.

Distances are Wasserstein-2 per coordinate: between the start and the noised data, of the
steps, of an error of the score, and in all. Nothing is sampled. The process is that of the options,
or that of a run folder.

examples:
  cldfast budget --solver em sscs auto --steps 10 20 50
  cldfast budget RUN --steps 8 20 --score-error 0.05 --of full
  cldfast budget --process psld --schedule linear beta_min=0.1 beta_max=16 --data-var 0.25
"""

from __future__ import annotations

import argparse
from typing import Any

from cldfast.app.options import add_numbers, given, given_of, named_values
from cldfast.app.process_options import NAMES, add_process, process
from cldfast.model.run_folder import load_config
from cldfast.planner.grids import DEFAULT_STEPS, GRIDS, NOISE_GRIDS
from cldfast.planner.make_plan import make_plan
from cldfast.planner.parameterization import PARAMETERIZATIONS
from cldfast.planner.solvers import SOLVERS
from cldfast.process.sde import sde_from_config

_COLUMNS = ("initialisation", "discretisation", "score", "total")

USAGE = "[RUN] [options]"


def add_options(parser: Any) -> None:
    parser.add_argument("folder", nargs="?", metavar="run", help="run folder")
    solvers = ", ".join(SOLVERS)
    parser.add_argument("--solver", nargs="+", default=["auto"], help=f"auto, {solvers} (auto)")
    parser.add_argument(
        "--steps", type=int, nargs="+", default=[DEFAULT_STEPS], metavar="N",
        help=f"grid intervals ({DEFAULT_STEPS})",
    )  # fmt: skip
    grids = ", ".join((*GRIDS, *NOISE_GRIDS))
    parser.add_argument("--grid", help=f"{grids}, or auto (that of solver auto, else quadratic)")
    clean = "end with one more evaluation, the clean estimate"
    parser.add_argument("--denoise", action="store_const", const=True, help=clean)
    own = "the solver's own, such as order=3"
    parser.add_argument("--option", nargs="+", metavar="NAME=VALUE", default=(), help=own)
    parser.add_argument(
        "--parameterization", choices=PARAMETERIZATIONS, metavar="P", help="of the network (score)"
    )
    numbers = {
        "t-min": "last time (0.001, or the run's)",
        "data-mean": "of the data (0)",
        "data-var": "variance of the data (1)",
        "score-error": "size of an error of the score (0)",
    }
    add_numbers(parser, float, numbers)
    parser.add_argument(
        "--of", choices=("velocity", "full"), help="score with the error (velocity)"
    )
    parser.add_argument("--over", choices=("x", "phase"), help="laws of x or of (x, v) (x)")
    add_process(parser)


def run(args: argparse.Namespace) -> None:
    options = given_of(args, "grid", "denoise", "t_min", "parameterization")
    if args.folder is None:
        sde = process(given(args))
    else:
        refused = [name for name in ("parameterization", *NAMES) if name in given(args)]
        if refused:
            names = ", ".join(f"--{name.replace('_', '-')}" for name in refused)
            raise ValueError(f"the run folder says its process: leave out {names}")
        config = load_config(args.folder)
        sde = sde_from_config(config.sde)
        options = {"t_min": config.t_min, "parameterization": config.form} | options
    options |= named_values("option", args.option)
    errors = given_of(args, "data_mean", "data_var", "score_error", "of", "over")
    lines = [f"{'solver':<22}{'evaluations':>12}" + "".join(f"{name:>16}" for name in _COLUMNS)]
    for solver in args.solver:
        for steps in args.steps:
            plan = make_plan(sde, solver, steps, **options)
            budget = plan.error_budget(**errors)
            cells = "".join(f"{getattr(budget, name):>16.4g}" for name in _COLUMNS)
            lines.append(f"{solver:<22}{plan.evaluations:>12}{cells}")
    print("\n".join(lines))
