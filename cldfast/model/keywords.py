"""Keywords of a call, told apart: conditions of the network, and options of the library."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from cldfast.conditions import known_arguments
from cldfast.network import Network
from cldfast.planner.solvers.registry import RESERVED, SOLVERS

Keywords = dict[str, Any]


def parted(
    net: Network, keywords: Keywords, *functions: Callable[..., Any], strict: bool = True
) -> tuple[Keywords, Keywords]:
    """Conditions and options among keywords, the former with those of a keyword `conditions`.

    A keyword is an option where one of the functions takes it, or a solver if `sample` is among
    them, and else a condition if the network takes it. strict: refuse all others; else these are
    options.

    Raises TypeError for a keyword that neither takes.
    """
    known = {name for function in functions for name in inspect.signature(function).parameters}
    if "solver" in known:
        known |= RESERVED.union(*(method.options for method in SOLVERS.values()))
    names, more = known_arguments(net)
    options = dict(keywords)
    conditions = dict(options.pop("conditions", None) or {})
    for name in keywords.keys() - known:
        if name in names or more:
            conditions[name] = options.pop(name)
        elif strict:
            raise TypeError(
                f"{name!r} is no option of {functions[0].__name__}, and no argument of the "
                f"network, which takes {', '.join(names) or 'none beside the state and the time'}"
            )
    return conditions, options
