"""The network for images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cldfast.lab.models.layers import silu
from cldfast.lab.models.score_network import ScoreNetwork, check_blocks, check_sizes, zero

_GROUPS = 8
_HEAD_CHANNELS = 32


class UNetScore(ScoreNetwork):
    """Small U-Net for images: state (B, in_planes C, H, W), t (B,) to (B, out_channels, H, W).

    Residual blocks at each level going down and going up, self-attention at the lowest level. With
    the default three levels H and W must be multiples of 4.

    channels: image channels C. out_channels: output channels, 2C for a full score; None: C.
    width: features at full resolution, a multiple of 8. multipliers: features of each level over
    width; each further level halves H and W. time_width: size of the time embedding.
    in_planes, conditioning, classes, label_dropout: as for `MLPScore`.
    blocks: residual blocks of a level, in each direction.

    Raises ValueError for a size below 1, a width that is no multiple of 8 or an unknown
    conditioning; in the call, for a state, t or labels of the wrong shape.

    Source: the U-Net of Ho, Jain and Abbeel (2020), made small.
    """

    KIND = "unet"
    FIRST = "conv1"

    def __init__(
        self,
        channels: int = 1,
        out_channels: int | None = None,
        width: int = 32,
        multipliers: Sequence[int] = (1, 2, 2),
        time_width: int = 64,
        in_planes: int = 2,
        conditioning: str = "time",
        classes: int | None = None,
        label_dropout: float = 0.0,
        blocks: int = 1,
    ) -> None:
        super().__init__(in_planes, time_width, conditioning, classes, label_dropout)
        self.channels, self.width, self.blocks = channels, width, blocks
        self.out_channels = channels if out_channels is None else out_channels
        self.multipliers = list(multipliers) if isinstance(multipliers, (list, tuple)) else []
        check_sizes(self, "channels", "out_channels", "width", "blocks")
        if width % _GROUPS:
            raise ValueError(f"width: expected a multiple of {_GROUPS}, got {width}")
        if not self.multipliers or any(not isinstance(m, int) or m < 1 for m in self.multipliers):
            raise ValueError(f"multipliers: expected whole numbers >= 1, got {multipliers!r}")
        check_blocks("blocks", 2 * blocks * len(self.multipliers))
        widths = [width * m for m in self.multipliers]

        def level(width_in: int, width_out: int) -> list[nn.Module]:
            first = _ConvBlock(width_in, width_out, time_width)
            return [
                first,
                *(_ConvBlock(width_out, width_out, time_width) for _ in range(1, blocks)),
            ]

        # Both lists hold the blocks of all levels, one level after another.
        self.first = nn.Conv2d(in_planes * channels, width, 3, padding=1)
        self.down = nn.ModuleList()
        for w_in, w_out in zip([width, *widths], widths, strict=False):
            self.down.extend(level(w_in, w_out))
        self.attention = _Attention(widths[-1])
        self.middle = _ConvBlock(widths[-1], widths[-1], time_width)
        self.up = nn.ModuleList()
        for w_below, w_skip in zip([widths[-1], *widths[::-1]], widths[::-1], strict=False):
            self.up.extend(level(w_below + w_skip, w_skip))
        self.norm = nn.GroupNorm(_GROUPS, width * self.multipliers[0])
        self.last = zero(nn.Conv2d(width * self.multipliers[0], self.out_channels, 3, padding=1))

    def check(self, u: Tensor) -> None:
        factor = 2 ** (len(self.multipliers) - 1)
        planes = self.in_planes * self.channels
        if u.ndim != 4 or u.shape[1] != planes:
            raise ValueError(f"u: expected shape (B, {planes}, H, W), got {tuple(u.shape)}")
        if u.shape[2] % factor or u.shape[3] % factor:
            raise ValueError(
                f"u: expected H and W to be multiples of {factor}, got {tuple(u.shape[2:])}"
            )

    def time_blocks(self) -> list[nn.Module]:
        return [*self.down, self.middle, *self.up]

    def evaluate(self, u: Tensor, biases: Sequence[Tensor]) -> Tensor:
        own = iter(biases)
        h = self.first(u)
        skips: list[Tensor] = []
        for index, block in enumerate(self.down):
            if index and index % self.blocks == 0:
                skips.append(h)
                h = F.avg_pool2d(h, 2)
            h = block(h, next(own))
        skips.append(h)
        h = self.middle(self.attention(h), next(own))
        for index, block in enumerate(self.up):
            if index % self.blocks == 0:
                if index:
                    h = F.interpolate(h, scale_factor=2.0, mode="nearest")
                h = torch.cat([h, skips.pop()], dim=1)
            h = block(h, next(own))
        return self.last(silu(self.norm(h)))


class _ConvBlock(nn.Module):
    def __init__(self, width_in: int, width_out: int, time_width: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(_GROUPS, width_in)
        self.conv1 = nn.Conv2d(width_in, width_out, 3, padding=1)
        self.time = nn.Linear(time_width, width_out)
        self.norm2 = nn.GroupNorm(_GROUPS, width_out)
        self.conv2 = nn.Conv2d(width_out, width_out, 3, padding=1)
        same = width_in == width_out
        self.skip = nn.Identity() if same else nn.Conv2d(width_in, width_out, 1)

    def forward(self, h: Tensor, bias: Tensor) -> Tensor:
        """h (B, width_in, H, W), with the first layer's bias, for all rows or for each."""
        inner, weight = silu(self.norm1(h)), self.conv1.weight
        if bias.ndim == 1:
            inner = F.conv2d(inner, weight, bias, padding=1)
        else:
            inner = F.conv2d(inner, weight, padding=1) + bias[:, :, None, None]
        made = self.conv2(silu(self.norm2(inner)))
        return self.skip(h) + made if made.requires_grad else made.add_(self.skip(h))


class _Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = max(1, width // _HEAD_CHANNELS) if width % _HEAD_CHANNELS == 0 else 1
        self.norm = nn.GroupNorm(_GROUPS, width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = zero(nn.Linear(width, width))

    def forward(self, h: Tensor) -> Tensor:
        batch, width, height, breadth = h.shape
        tokens = self.norm(h).flatten(2).mT
        qkv = self.qkv(tokens).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])
        mixed = self.out(mixed.transpose(1, 2).flatten(2))
        return h + mixed.mT.reshape(batch, width, height, breadth)
