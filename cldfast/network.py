"""What the library asks of a network, and where its device comes from."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

# `net(u, t)`: a state and the time of each of its rows, to one output or several.
Network = Callable[[torch.Tensor, torch.Tensor], torch.Tensor | Sequence[torch.Tensor]]


def network_dtype(net: Network) -> torch.dtype | None:
    """The floating dtype of a module's parameters; None for any other function.

    A module may say otherwise by an attribute `input_dtype`, None for the state's own dtype.
    """
    if isinstance(net, nn.Module):
        if hasattr(net, "input_dtype"):
            return net.input_dtype  # type: ignore[return-value]
        for parameter in net.parameters():
            if parameter.is_floating_point():
                return parameter.dtype
    return None


def at_times(net: Network, t: torch.Tensor) -> Sequence[Network]:
    """The network at each of the times (or noise levels) t (N,), to be called without gradients.

    A class may have a method `at_times(t)` that returns N functions of u and t which know their t,
    so that a run computes what depends on time alone once. Any other network is called as it is,
    also one inside a wrapper such as `torch.compile` makes, one with hooks that a call must pass,
    and one whose own `forward` replaces that of the class with the method.
    """
    owner = next((kind for kind in type(net).__mro__ if "at_times" in vars(kind)), None)
    if owner is None:
        return [net] * len(t)
    hooked = isinstance(net, nn.Module) and (net._forward_hooks or net._forward_pre_hooks)
    replaced = getattr(type(net), "forward", None) is not getattr(owner, "forward", None)
    if hooked or replaced or "forward" in vars(net):
        return [net] * len(t)
    made: Sequence[Network] = vars(owner)["at_times"](net, t)
    return made


# What PyTorch says where a layer meets numbers of another dtype than its weights.
_OTHER_DTYPE = re.compile("same dtype|scalar type|should be the same", re.IGNORECASE)


def output_tensor(result: object) -> torch.Tensor:
    """What a network returned, which must be a tensor; TypeError that says how to return one."""
    if isinstance(result, torch.Tensor):
        return result
    got = type(result).__name__
    if isinstance(getattr(result, "sample", None), torch.Tensor):
        raise TypeError(
            f"the network's output must be a tensor, got {got}: return its .sample, as in "
            "lambda u, t: net(u, t).sample (cldfast.from_diffusers makes a denoiser of one)"
        )
    raise TypeError(f"the network's output must be a tensor, got {got}: return a tensor")


def per_row(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """One number for each row (B,) as a factor of `like` (B, ...), in its dtype."""
    return values.to(like.dtype).reshape(-1, *[1] * (like.dim() - 1))


def explain_failure(error: Exception, net: Network, seen: torch.Tensor, where: str) -> None:
    """Add to an error that a network raised what the network was given, where, and what to do.

    seen: what the network was given. where: the step, or the loss, and the parameterisation.
    """
    given, own = str(seen.dtype).removeprefix("torch."), network_dtype(net)
    note = f"the network was called with {tuple(seen.shape)} {given} {where}"
    if _OTHER_DTYPE.search(str(error)):
        dtype = "dtype" if own in (None, seen.dtype) else own
        note += f"; the state is {given}: cast with u.to({dtype}) before the network's first layer"
    if hasattr(error, "add_note"):
        error.add_note(note)
    elif error.args and isinstance(error.args[0], str):  # Python 3.10
        error.args = (f"{error.args[0]}\n{note}", *error.args[1:])


def device_of(net: Network) -> torch.device:
    """Where a module's parameters are; PyTorch's default device for any other function."""
    if isinstance(net, torch.nn.Module):
        for parameter in net.parameters():
            return parameter.device
    return torch.get_default_device()


class ClassifierFree(nn.Module):
    """A network of classes as one that returns (conditional, unconditional), by one call.

    For plans made with `guidance_scale`. net: `net(u, t, labels)` with int64 labels (B,).
    labels: of the rows of a call, int64 (B,), or one label for all rows. null: the label of no
    class; None is `net.classes`, as the networks of `cldfast.lab.models` have it.

    Raises TypeError for labels that are no whole numbers, ValueError for a network without classes
    and, in the call, for another number of rows.
    Source: Ho and Salimans (2022), algorithm 2.
    """

    def __init__(self, net: Network, labels: torch.Tensor | int, null: int | None = None) -> None:
        super().__init__()
        if isinstance(labels, int) and not isinstance(labels, bool):
            labels = torch.tensor(labels, device=device_of(net))
        if not isinstance(labels, torch.Tensor) or labels.dtype != torch.int64:
            got = labels.dtype if isinstance(labels, torch.Tensor) else type(labels).__name__
            raise TypeError(f"labels: expected int64 (B,) or a whole number, got {got}")
        if labels.ndim > 1:
            raise ValueError(f"labels: expected shape (B,) or (), got {tuple(labels.shape)}")
        null = getattr(net, "classes", None) if null is None else null
        if null is None:
            raise ValueError("net: expected a network of classes, or the label of no class as null")
        self.net, self.null = net, null
        self.labels: torch.Tensor
        self.register_buffer("labels", labels, persistent=False)

    def forward(self, u: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Both outputs for a state u and times t (B,)."""
        rows = len(u)
        if self.labels.ndim and len(self.labels) != rows:
            raise ValueError(
                f"labels: expected one for each of the {rows} rows of this call, got "
                f"{len(self.labels)}; sample in batches with the labels of each, or one for all"
            )
        labels = self.labels.expand(rows)
        labels = torch.cat([labels, torch.full_like(labels, self.null)])
        call: Callable[..., Any] = self.net
        return both_halves(lambda *doubled: call(*doubled, labels), u, t)


def both_halves(
    call: Callable[[torch.Tensor, torch.Tensor], Any], u: torch.Tensor, t: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """Both halves of the output of one call, on a state u twice and its times t (B,) twice."""
    # An expanded view stays one: it tells the network that all rows share t.
    t = torch.cat([t, t]) if t.stride(0) else t[:1].expand(2 * len(u))
    return output_tensor(call(torch.cat([u, u]), t)).chunk(2)
