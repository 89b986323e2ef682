"""The network for vectors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cldfast.lab.models.layers import layer, silu
from cldfast.lab.models.score_network import ScoreNetwork, check_blocks, check_sizes, zero


class MLPScore(ScoreNetwork):
    """Residual MLP for vector data: state (B, in_planes dim) and t (B,) to (B, out_dim).

    dim: number of data coordinates d. out_dim: number of outputs, 2 dim for a full score; None:
    dim. width: hidden units. depth: residual blocks, each of two layers. time_width: size of the
    time embedding.
    in_planes: what the network sees of a coordinate: 2 for the state (x, v), 1 for a denoiser of y.
    conditioning: what t is: "time", "sigma" or "c_noise", see `TimeEmbedding`.
    gated: the output has a second part, the input times a gate (one for each coordinate) that the
        last hidden layer opens. A denoiser of data whose scale varies from row to row, such as the
        funnel, shrinks its input by a factor that depends on the row; layers alone must make a
        product of each coordinate of their units.
    classes: number of classes that labels name, or None. label_dropout: the share of labels that
    are left out in training, which teaches the network to do without.

    Raises ValueError for a size below 1 or an unknown conditioning; in the call, for a state, t or
    labels of the wrong shape.
    """

    KIND = "mlp"
    FIRST = "first"

    def __init__(
        self,
        dim: int,
        out_dim: int | None = None,
        width: int = 256,
        depth: int = 3,
        time_width: int = 64,
        in_planes: int = 2,
        conditioning: str = "time",
        classes: int | None = None,
        label_dropout: float = 0.0,
        gated: bool = False,
    ) -> None:
        super().__init__(in_planes, time_width, conditioning, classes, label_dropout)
        self.dim, self.width, self.depth = dim, width, depth
        self.out_dim = dim if out_dim is None else out_dim
        check_sizes(self, "dim", "out_dim", "width", "depth")
        check_blocks("depth", depth)
        self.first = nn.Linear(in_planes * dim, width)
        self.blocks = nn.ModuleList(_MLPBlock(width, time_width) for _ in range(depth))
        self.last = zero(nn.Linear(width, self.out_dim))
        self.gated = gated
        if gated:
            if self.out_dim % dim:
                raise ValueError(f"gated: expected out_dim a multiple of {dim}, got {self.out_dim}")
            self.gate = zero(nn.Linear(width, self.out_dim * in_planes))

    def check(self, u: Tensor) -> None:
        if u.ndim != 2 or u.shape[1] != self.in_planes * self.dim:
            raise ValueError(
                f"u: expected shape (B, {self.in_planes * self.dim}), got {tuple(u.shape)}"
            )

    def time_blocks(self) -> list[nn.Module]:
        return list(self.blocks)

    def evaluate(self, u: Tensor, biases: Sequence[Tensor]) -> Tensor:
        h = F.linear(u, *layer(self, "first"))
        for block, bias in zip(self.blocks, biases, strict=True):
            h = _residual(block, h, bias)
        h = silu(h)
        out = F.linear(h, *layer(self, "last"))
        return self._gate(out, h, u) if self.gated else out

    def _gate(self, out: Tensor, h: Tensor, u: Tensor) -> Tensor:
        """The output with the gated input added: each plane of it takes from each plane of u."""
        gate = F.linear(h, *layer(self, "gate"))
        if gate.shape == out.shape == u.shape:
            return torch.addcmul(out, gate, u)
        planes, dim = self.in_planes, self.dim
        parts = gate.unflatten(1, (-1, planes, dim)) * u.unflatten(1, (1, planes, dim))
        return out + parts.sum(2).flatten(1)


class _MLPBlock(nn.Module):
    def __init__(self, width: int, time_width: int) -> None:
        super().__init__()
        self.first = nn.Linear(width, width)
        self.second = nn.Linear(width, width)
        self.time = nn.Linear(time_width, width)


def _residual(block: nn.Module, h: Tensor, bias: Tensor) -> Tensor:
    """A block on h (B, width), which may be overwritten.

    bias: of its first layer with what time adds, (width,) for all rows or (B, width). This is no
    `forward` of the block: PyTorch's way there costs as much as a small kernel.
    """
    (first, _), (second, second_bias) = layer(block, "first"), layer(block, "second")
    inner, shared = F.silu(h), bias.ndim == 1
    inner = F.linear(inner, first, bias) if shared else torch.addmm(bias, inner, first.t())
    if inner.requires_grad or inner.dtype != second.dtype:  # the latter under autocast
        return h + F.linear(F.silu(inner), second, second_bias)
    return h.add_(second_bias).addmm_(F.silu(inner, inplace=True), second.t())
