"""The options of the command line for a process and its rate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cldfast.app.options import add_numbers, named_values
from cldfast.process.schedules import LinearBeta, schedule_from_config
from cldfast.process.sde import CLD, LinearPhaseSDE, sde_from_config

# Names of the options below.
NAMES = (
    "a", "sigma", "v0_var", "mass_inv", "gamma", "x_noise", "beta", "beta_end", "T", "process",
    "schedule",
)  # fmt: skip


def add_process(parser: Any) -> None:
    """The options of a process."""
    group = parser.add_argument_group("process, by (a, sigma, v0-var) or by (mass-inv, gamma)")
    numbers = {
        "a": "inverse time scale (2)",
        "sigma": "noise on the velocity (2/sqrt(a))",
        "v0-var": "variance of v at 0 (0.04/a^2)",
        "mass-inv": "inverse mass, a^2",
        "gamma": "variance of v at 0 over mass (0.04)",
        "x-noise": "noise on the position (0)",
        "beta": "rate at time 0 (4; PSLD 8)",
        "beta-end": "rate at time T (that at 0)",
        "T": "end time (1)",
    }
    add_numbers(group, float, numbers)
    kinds = "cld, psld or linear, with numbers such as kappa=0.04; in the place of the above (cld)"
    group.add_argument("--process", nargs="+", metavar=("KIND", "NAME=X"), help=kinds)
    rates = (
        "rate: constant value=, linear beta_min= beta_max=, exponential beta_min= delta= k= or "
        "cosine scale= offset= end="
    )
    group.add_argument("--schedule", nargs="+", metavar=("KIND", "NAME=X"), help=rates)


def process(given: dict[str, Any]) -> LinearPhaseSDE:
    """The process that the options say, by name: its kind and numbers, its rate and T.

    Raises ValueError for options that do not go together.
    """
    T = given.get("T", 1.0)
    beta = _rate(given, T)
    kind, *texts = given.get("process", ["cld"])
    numbers = named_values("process", texts)
    if kind != "cld" or numbers:
        own = [n for n in ("a", "sigma", "v0_var", "mass_inv", "gamma", "x_noise") if n in given]
        if own:
            raise ValueError(f"give the process by --process or by {_options(own)}, not both")
        beta = {} if beta is None else {"beta": beta}
        return sde_from_config({"kind": kind, "T": T} | numbers | beta)
    options = {"x_noise": given.get("x_noise", 0.0), "T": T}
    options |= {} if beta is None else {"beta": beta}
    by_scale = {k: given[k] for k in ("a", "sigma", "v0_var") if k in given}
    by_mass = {k: given[k] for k in ("mass_inv", "gamma") if k in given}
    if by_scale and by_mass:
        names = _options([*by_scale, *by_mass])
        raise ValueError(f"give the process by (a, sigma, v0-var) or (mass-inv, gamma): {names}")
    return CLD.from_mass(**by_mass, **options) if by_mass else CLD(**by_scale, **options)


def _rate(given: dict[str, Any], T: float) -> Any:
    """The rate: a number, a schedule, or None for the default of the process."""
    if "schedule" not in given:
        if "beta_end" in given:
            return LinearBeta(given.get("beta", 4.0), given["beta_end"], T)
        return given.get("beta")
    if numbers := [name for name in ("beta", "beta_end") if name in given]:
        raise ValueError(f"give the rate by --schedule or by {_options(numbers)}, not both")
    kind, *texts = given["schedule"]
    ends = {"T": T} if kind in ("linear", "cosine") else {}
    return schedule_from_config({"kind": kind} | ends | named_values("schedule", texts))


def _options(names: Sequence[str]) -> str:
    return ", ".join(f"--{name.replace('_', '-')}" for name in names)
