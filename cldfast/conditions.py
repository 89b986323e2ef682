"""Conditions of a network, such as labels: keywords of its call with a row for each sample."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cldfast.network import Network, both_halves, network_dtype

Conditions = Mapping[str, Any]


def condition_rows(
    conditions: Conditions, rows: int, device: torch.device | str | None = None
) -> dict[str, Any]:
    """Conditions with one row for each of `rows` samples, on a device.

    Tensors and numpy arrays (rows, ...) are taken as they are; one row, (), and a number are those
    of all samples; a list of numbers is an array. Tensors in dictionaries, lists and tuples are
    treated alike. Everything else, such as None and texts, is handed to the network as it is.

    Raises ValueError for another number of rows.
    """

    def spread(name: str, value: Tensor) -> Tensor:
        value = value.to(device)
        if value.ndim == 0 or len(value) == 1:
            return value.expand(rows, *value.shape[1:])
        if len(value) != rows:
            raise ValueError(
                f"condition {name!r}: expected one row for each of {rows} samples, or one for all, "
                f"got {tuple(value.shape)}"
            )
        return value

    return {name: _each(spread, name, _as_tensor(value)) for name, value in conditions.items()}


def take_rows(conditions: Conditions, rows: slice | Tensor) -> dict[str, Any]:
    """Some rows, a slice or their numbers, of what `condition_rows` returned."""
    return {n: _each(lambda _, v: v[rows], n, value) for n, value in conditions.items()}


def conditioned(
    net: Network, conditions: Conditions | None, null: Conditions | None = None, pair: bool = False
) -> Network:
    """A network with its conditions given, see `Conditioned`; itself where there are none."""
    if conditions is None or len(conditions) == 0:
        return net
    return Conditioned(net, conditions, null, pair)


class Conditioned(nn.Module):
    """A network with its conditions given: `net(u, t)` calls `net(u, t, **conditions)`.

    conditions: see `condition_rows`; their rows are those of each call.
    pair: return (conditional, unconditional) outputs by one call of twice the rows, as plans made
        with `guidance_scale` read them. null: by name, what a condition is in the unconditional
        half, such as the label of no class; None is the network's own attribute `null`. A condition
        that has no null is the same in both halves.

    Raises TypeError for a name that is no argument of the network, ValueError for a pair without a
    null, and in the call for conditions that do not fit its rows.
    Source: Ho and Salimans (2022), algorithm 2, for the pair.
    """

    def __init__(
        self,
        net: Network,
        conditions: Conditions,
        null: Conditions | None = None,
        pair: bool = False,
    ) -> None:
        super().__init__()
        check_arguments(net, conditions)
        self.net, self.conditions, self.pair = net, conditions, pair
        self.null = null_of(net) if null is None else null
        if pair and not conditions.keys() & self.null.keys():
            raise ValueError(
                "guidance needs to know what the network takes for no condition: "
                f"null={{{next(iter(conditions))!r}: ...}}, such as the label of no class"
            )
        # The arguments of the last call, and the rows and the device for which they were made.
        self._ready: tuple[Any, dict[str, Any]] = (None, {})

    @property
    def input_dtype(self) -> torch.dtype | None:
        return network_dtype(self.net)

    def forward(self, u: Tensor, t: Tensor) -> Any:
        """The output for a state u and times t (B,), or the pair of outputs."""
        arguments = self._arguments(len(u), u.device)
        if not self.pair:
            return self.net(u, t, **arguments)
        return both_halves(lambda *doubled: self.net(*doubled, **arguments), u, t)

    def _arguments(self, rows: int, device: torch.device) -> dict[str, Any]:
        if self._ready[0] != (rows, device):
            given = condition_rows(self.conditions, rows, device)
            if self.pair:
                given = with_null(lambda a, b: torch.cat([a, b]), given, self.null)
            self._ready = (rows, device), given
        return self._ready[1]


def with_null(
    change: Callable[[Tensor, Tensor], Tensor], conditions: Conditions, null: Conditions
) -> dict[str, Any]:
    """Conditions with their tensors changed by a function of the tensor and of its null.

    conditions: as `condition_rows` returns them. The null of a tensor has its shape and dtype; a
    condition that has none in `null` is its own.

    Raises ValueError for a null that does not fit its condition.
    """
    return {n: _with_null(change, n, v, null.get(n, v)) for n, v in conditions.items()}


def known_arguments(net: Network) -> tuple[list[str], bool]:
    """Names of what a network takes beside the state and the time; whether it may take more."""
    try:
        signature = inspect.signature(net.forward if isinstance(net, nn.Module) else net)
    except (TypeError, ValueError):  # a function that says nothing
        return [], True
    kinds = {name: parameter.kind for name, parameter in signature.parameters.items()}
    more = inspect.Parameter.VAR_KEYWORD
    return [name for name in kinds if kinds[name] is not more][2:], more in kinds.values()


def check_arguments(net: Network, conditions: Conditions) -> None:
    """TypeError for conditions without names, or of names that the network does not take."""
    if not isinstance(conditions, Mapping):
        got = type(conditions).__name__
        raise TypeError(f"conditions: expected values by name, as {{'labels': y}}, got {got}")
    known, more = known_arguments(net)
    unknown = [name for name in conditions if name not in known]
    if unknown and not more:
        raise TypeError(
            f"the network takes no {', '.join(unknown)}: beside the state and the time its "
            f"arguments are {', '.join(known) or 'none'}"
        )


def null_of(net: object) -> Conditions:
    """What a network takes for no condition, by name: its attribute `null`, else nothing."""
    null = getattr(net, "null", None)
    return null if isinstance(null, Mapping) else {}


def _as_tensor(value: Any) -> Any:
    """Numbers, arrays and lists of numbers as a tensor on the host; anything else as it is."""

    def number(entry: Any) -> bool:
        return isinstance(entry, Real) and not isinstance(entry, bool)

    listed = isinstance(value, list | tuple) and len(value) > 0 and all(map(number, value))
    if listed or number(value) or isinstance(value, np.ndarray):
        return torch.as_tensor(value, device="cpu")
    return value


def _each(change: Callable[[str, Tensor], Tensor], name: str, value: Any) -> Any:
    """A condition with its tensors changed, those in dictionaries, lists and tuples included."""
    if isinstance(value, Tensor):
        return change(name, value)
    if isinstance(value, Mapping):
        return {key: _each(change, f"{name}.{key}", entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return type(value)([_each(change, name, entry) for entry in value])
    return value


def _with_null(change: Callable[[Tensor, Tensor], Tensor], name: str, value: Any, null: Any) -> Any:
    if isinstance(value, Tensor):
        try:
            rows = torch.as_tensor(null, device=value.device).to(value.dtype).expand(value.shape)
        except (RuntimeError, TypeError, ValueError):
            shown = tuple(null.shape) if isinstance(null, Tensor) else repr(null)
            raise ValueError(
                f"null of {name!r}: expected what broadcasts to {tuple(value.shape)}, got {shown}"
            ) from None
        return change(value, rows)
    if isinstance(value, Mapping):
        return {k: _with_null(change, f"{name}.{k}", v, null[k]) for k, v in value.items()}
    if isinstance(value, list | tuple):
        pairs = zip(value, null, strict=True)
        return type(value)([_with_null(change, name, entry, other) for entry, other in pairs])
    return value
