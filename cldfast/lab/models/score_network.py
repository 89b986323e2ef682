"""What both networks share: their description, the embedding of times and labels, their checks."""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cldfast.lab.models.embedding import TimeEmbedding
from cldfast.lab.models.layers import layer, linear


class ScoreNetwork(nn.Module):
    """A network that `build_model` can build again, with fresh weights, from its `config()`.

    The constructor takes the arguments that both networks share: the size of the embedding, what
    the second argument of a call is, and the classes.
    """

    KIND: str
    # The name of the layer of a block to whose bias time is added.
    FIRST: str

    def __init__(
        self,
        in_planes: int,
        time_width: int,
        conditioning: str,
        classes: int | None,
        label_dropout: float,
    ) -> None:
        super().__init__()
        self.in_planes, self.time_width, self.conditioning = in_planes, time_width, conditioning
        self.classes, self.label_dropout = classes, label_dropout
        check_sizes(self, "in_planes", "time_width", *(() if classes is None else ("classes",)))
        if in_planes > 2:
            raise ValueError(f"in_planes: expected 1 or 2, got {in_planes}")
        if isinstance(label_dropout, bool) or not isinstance(label_dropout, int | float):
            raise ValueError(f"label_dropout: expected a number in [0, 1), got {label_dropout!r}")
        if not 0.0 <= label_dropout < 1.0:
            raise ValueError(f"label_dropout: expected a number in [0, 1), got {label_dropout}")
        if label_dropout and classes is None:
            raise ValueError("label_dropout: expected classes with it, got none")
        self.time = TimeEmbedding(time_width, conditioning)
        if classes is not None:
            # One more row, the last, for the null label. Labels say nothing before training.
            self.label = nn.Embedding(classes + 1, time_width)
            nn.init.zeros_(self.label.weight)

    def config(self) -> dict[str, Any]:
        """The kind and the arguments of `__init__`, which are attributes too, as JSON values."""
        values = {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}
        return {"kind": self.KIND} | values

    @property
    def null(self) -> dict[str, int]:
        """The label of no class, where there are classes."""
        return {} if self.classes is None else {"labels": self.classes}

    def forward(self, u: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """Evaluate on u (B, ...) at times or noise levels t (B,).

        labels: int64 (B,), the number `classes` for no label; None is no label for all rows.
        """
        self.check(u)
        return self.evaluate(u, self.biases(self.embed(u, t, labels)))

    def at_times(self, t: Tensor) -> list[Callable[[Tensor, Tensor], Tensor]]:
        """The network at each of the times t (N,), without gradients.

        Functions of u and t, whose t is known already: a run asks for the network at all its times
        at once, and its steps compute nothing that depends on time alone.
        """
        with torch.no_grad():
            embedding = self.time(t.to(next(self.parameters()).dtype))
            if self.classes is not None:
                embedding = embedding + self.label.weight[self.classes]
            biases = self.biases(embedding.reshape(len(t), -1))

        def at(own: Sequence[Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
            def net(u: Tensor, t: Tensor) -> Tensor:
                self.check(u)
                return self.evaluate(u, own)

            return net

        return [at(own) for own in zip(*(bias.unbind() for bias in biases), strict=True)]

    @abstractmethod
    def check(self, u: Tensor) -> None:
        """ValueError for a u of the wrong shape."""

    @abstractmethod
    def time_blocks(self) -> list[nn.Module]:
        """The blocks that time acts on, each with layers `time` and `FIRST`, in order."""

    @abstractmethod
    def evaluate(self, u: Tensor, biases: Sequence[Tensor]) -> Tensor:
        """The network, given the biases of its blocks, each (width,) or (B, width)."""

    def biases(self, embedding: Tensor) -> list[Tensor]:
        """For each block the bias of its first layer with what time adds to it."""
        made = []
        for block in self.time_blocks():
            weight, bias = layer(block, "time")
            made.append(linear(embedding, weight, bias + layer(block, self.FIRST)[1]))
        return made

    def embed(self, u: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        """The embedding (B, time_width) of times and labels; (time_width,) where rows share it."""
        if not isinstance(t, Tensor):
            raise TypeError(f"t: expected a tensor, got {type(t).__name__}")
        if t.shape != (u.shape[0],):
            raise ValueError(f"t: expected shape ({u.shape[0]},), got {tuple(t.shape)}")
        embedding: Tensor = self.time((t[:1] if t.stride(0) == 0 else t).to(u.dtype))
        if self.classes is None:
            if labels is not None:
                raise ValueError("labels: this network was built without classes, expected None")
            return embedding
        if labels is None:
            return embedding + self.label.weight[self.classes]
        return embedding + self.label(self._checked(labels, u))

    def _checked(self, labels: Tensor, u: Tensor) -> Tensor:
        """The labels (B,), in training with some of them dropped."""
        assert self.classes is not None
        if not isinstance(labels, Tensor) or labels.dtype != torch.int64:
            got = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
            raise TypeError(f"labels: expected an int64 tensor, got {got}")
        if labels.shape != (u.shape[0],) or labels.device != u.device:
            raise ValueError(
                f"labels: expected shape ({u.shape[0]},) on {u.device}, "
                f"got {tuple(labels.shape)} on {labels.device}"
            )
        # Elsewhere the values are not looked at: the host would have to wait for the device, whose
        # own lookup refuses a label out of range.
        if labels.device.type == "cpu" and not torch.compiler.is_compiling() and len(labels):
            low, high = labels.aminmax()
            if low < 0 or high > self.classes:
                raise ValueError(
                    f"labels: expected 0 to {self.classes - 1}, or {self.classes} for none, "
                    f"got {int(low)} to {int(high)}"
                )
        if self.training and self.label_dropout:
            dropped = torch.rand(labels.shape, device=labels.device) < self.label_dropout
            labels = labels.masked_fill(dropped, self.classes)
        return labels


def zero(layer: Any) -> Any:
    """Start a last layer at zero, so that an untrained network returns exactly 0."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


# Residual blocks of a network: a description of more would take minutes to be built.
MOST_BLOCKS = 1_000


def check_blocks(name: str, blocks: int) -> None:
    """ValueError for more residual blocks than any network has."""
    if blocks > MOST_BLOCKS:
        raise ValueError(f"{name}: expected at most {MOST_BLOCKS} blocks, got {blocks}")


def check_sizes(model: nn.Module, *names: str) -> None:
    """ValueError for an attribute that is no whole number >= 1."""
    for name in names:
        value = getattr(model, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name}: expected a whole number >= 1, got {value!r}")
