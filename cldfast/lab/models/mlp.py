"""The network for vectors."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cldfast.lab.models.layers import layer, silu, time_bias
from cldfast.lab.models.score_network import ScoreNetwork, check_sizes, zero


class MLPScore(ScoreNetwork):
    """Residual MLP for vector data: state (B, in_planes dim) and t (B,) to (B, out_dim).

    dim: number of data coordinates d. out_dim: number of outputs, 2 dim for a full score; None:
    dim. width: hidden units. depth: residual blocks, each of two layers. time_width: size of the
    time embedding.
    in_planes: what the network sees of a coordinate: 2 for the state (x, v), 1 for a denoiser of y.
    conditioning: what t is: "time", "sigma" or "c_noise", see `TimeEmbedding`.
    classes: number of classes that labels name, or None. label_dropout: the share of labels that
    are left out in training, which teaches the network to do without.

    Raises ValueError for a size below 1 or an unknown conditioning; in the call, for a state, t or
    labels of the wrong shape.
    """

    KIND = "mlp"

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
    ) -> None:
        super().__init__(in_planes, time_width, conditioning, classes, label_dropout)
        self.dim, self.width, self.depth = dim, width, depth
        self.out_dim = dim if out_dim is None else out_dim
        check_sizes(self, "dim", "out_dim", "width", "depth")
        self.first = nn.Linear(in_planes * dim, width)
        self.blocks = nn.ModuleList(_MLPBlock(width, time_width) for _ in range(depth))
        self.last = zero(nn.Linear(width, self.out_dim))

    def forward(self, u: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """Evaluate on a state u (B, in_planes dim) at times t (B,): (B, out_dim).

        labels: int64 (B,), the number `classes` for no label; None is no label for all rows.
        """
        if u.ndim != 2 or u.shape[1] != self.in_planes * self.dim:
            raise ValueError(
                f"u: expected shape (B, {self.in_planes * self.dim}), got {tuple(u.shape)}"
            )
        embedding = self.embed(u, t, labels)
        h = F.linear(u, *layer(self, "first"))
        for block in self.blocks:
            h = block(h, embedding)
        return F.linear(silu(h), *layer(self, "last"))


class _MLPBlock(nn.Module):
    def __init__(self, width: int, time_width: int) -> None:
        super().__init__()
        self.first = nn.Linear(width, width)
        self.second = nn.Linear(width, width)
        self.time = nn.Linear(time_width, width)

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        """h (B, width), which may be overwritten, with the embedding of one row or of all."""
        (first, first_bias), (second, second_bias) = layer(self, "first"), layer(self, "second")
        bias = time_bias(self, first_bias, embedding)
        if len(bias) == 1:
            inner = F.linear(F.silu(h), first, bias[0])
        else:
            inner = torch.addmm(bias, F.silu(h), first.t())
        inner = silu(inner)
        if h.requires_grad or h.dtype != second.dtype:  # the latter under autocast
            return h + F.linear(inner, second, second_bias)
        return h.add_(second_bias).addmm_(inner, second.t())
