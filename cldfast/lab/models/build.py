"""From the description of a network to the network."""

from __future__ import annotations

import inspect
from typing import Any

from cldfast.lab.models.mlp import MLPScore
from cldfast.lab.models.unet import UNetScore


def build_model(config: dict[str, Any]) -> MLPScore | UNetScore:
    """Build the network that a `config()` dictionary describes, with fresh weights.

    config: "kind" ("mlp" or "unet") and the arguments of that class.

    Raises ValueError for an unknown kind, an unknown or missing argument or a bad value, TypeError
    for a config that is no dictionary.
    """
    if not isinstance(config, dict):
        raise TypeError(f"model config: expected a dict, got {type(config).__name__}")
    arguments = dict(config)
    kinds: dict[str, type[MLPScore] | type[UNetScore]] = {"mlp": MLPScore, "unet": UNetScore}
    kind = arguments.pop("kind", None)
    if not isinstance(kind, str) or kind not in kinds:
        raise ValueError(f"model config: expected kind one of {', '.join(kinds)}, got {kind!r}")
    signature = inspect.signature(kinds[kind])
    unknown = sorted(arguments.keys() - signature.parameters.keys())
    if unknown:
        known = ", ".join(signature.parameters)
        raise ValueError(f"model config: unknown {', '.join(unknown)}; {kind} takes {known}")
    try:
        signature.bind(**arguments)
    except TypeError as error:
        raise ValueError(f"model config: {kind}: {error}") from error
    return kinds[kind](**arguments)
