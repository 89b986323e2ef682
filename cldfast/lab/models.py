"""Two small score networks: an MLP for vectors and a U-Net for images.

Both are called net(u, t) with the state u, x half then v half along dimension 1, and t a (B,)
tensor of forward times. When all rows share one t, the time embedding is computed on one row.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# The smallest time that the embedding tells from 0; grids end at 1e-5 or above in practice.
_TIME_FLOOR = 1e-8

_GROUPS = 8
_HEAD_CHANNELS = 32


class TimeEmbedding(nn.Module):
    """Learned embedding (B, width) of times t (B,), from Fourier features of t and of log t.

    The score changes over a time proportional to t when t is small, so equal steps of log t carry
    equal information there; near t = T it changes with t itself. Both are given: sines and cosines
    of 2^k pi/2 t (k = 0..5, periods 4 to 1/8) and of 2^k pi/16 log t (k = 0..5, periods 32 to 1,
    the longest covering 1e-8 to 1), and the two numbers themselves.
    """

    FREQUENCIES = 6

    def __init__(self, width: int) -> None:
        super().__init__()
        octaves = 2.0 ** torch.arange(self.FREQUENCIES)
        self.of_t: Tensor
        self.of_log_t: Tensor
        self.register_buffer("of_t", octaves * math.pi / 2, persistent=False)
        self.register_buffer("of_log_t", octaves * math.pi / 16, persistent=False)
        self.layers = nn.Sequential(
            nn.Linear(2 + 4 * self.FREQUENCIES, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
        )

    def forward(self, t: Tensor) -> Tensor:
        """Embed t (B,) as (B, width)."""
        t = t[:, None]
        log_t = t.clamp_min(_TIME_FLOOR).log()
        angles = torch.cat([t * self.of_t, log_t * self.of_log_t], dim=1)
        # log t / 8 is of the order of 1 over the times in use, like the other features.
        return self.layers(torch.cat([t, log_t / 8, angles.sin(), angles.cos()], dim=1))


class _ScoreNetwork(nn.Module):
    """A network that `build_model` can build again, with fresh weights, from its `config()`."""

    KIND: str

    def config(self) -> dict[str, Any]:
        """The kind and the arguments of `__init__`, which are attributes too, as JSON values."""
        values = {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}
        return {"kind": self.KIND} | values


class MLPScore(_ScoreNetwork):
    """Residual MLP for vector data: state (B, 2 dim) and t (B,) to (B, out_dim).

    dim: number of data coordinates d. out_dim: number of outputs, 2 dim for a full score; None:
    dim. width: hidden units. depth: residual blocks, each of two layers. time_width: size of the
    time embedding.

    Raises ValueError for a size below 1; in the call, for a state or t of the wrong shape.
    """

    KIND = "mlp"

    def __init__(
        self,
        dim: int,
        out_dim: int | None = None,
        width: int = 256,
        depth: int = 3,
        time_width: int = 64,
    ) -> None:
        super().__init__()
        self.dim, self.width, self.depth, self.time_width = dim, width, depth, time_width
        self.out_dim = dim if out_dim is None else out_dim
        _check_sizes(self, "dim", "out_dim", "width", "depth", "time_width")
        self.time = TimeEmbedding(time_width)
        self.first = nn.Linear(2 * dim, width)
        self.blocks = nn.ModuleList(_MLPBlock(width, time_width) for _ in range(depth))
        self.last = _zero(nn.Linear(width, self.out_dim))

    def forward(self, u: Tensor, t: Tensor) -> Tensor:
        """Evaluate on a state u (B, 2 dim) at times t (B,): (B, out_dim)."""
        if u.ndim != 2 or u.shape[1] != 2 * self.dim:
            raise ValueError(f"u: expected shape (B, {2 * self.dim}), got {tuple(u.shape)}")
        embedding = self.time(_shared_time(t, u))
        h = self.first(u)
        for block in self.blocks:
            h = block(h, embedding)
        return self.last(F.silu(h))


class UNetScore(_ScoreNetwork):
    """Small U-Net for images: state (B, 2C, H, W) and t (B,) to (B, out_channels, H, W).

    One residual block a level going down and one going up, self-attention at the lowest level.
    With the default three levels H and W must be multiples of 4.

    channels: image channels C. out_channels: output channels, 2C for a full score; None: C.
    width: features at full resolution, a multiple of 8. multipliers: features of each level over
    width; each further level halves H and W. time_width: size of the time embedding.

    Raises ValueError for a size below 1 or a width that is no multiple of 8; in the call, for a
    state or t of the wrong shape.

    Source: the U-Net of Ho, Jain and Abbeel (2020), made small.
    """

    KIND = "unet"

    def __init__(
        self,
        channels: int = 1,
        out_channels: int | None = None,
        width: int = 32,
        multipliers: Sequence[int] = (1, 2, 2),
        time_width: int = 64,
    ) -> None:
        super().__init__()
        self.channels, self.width, self.time_width = channels, width, time_width
        self.out_channels = channels if out_channels is None else out_channels
        self.multipliers = list(multipliers) if isinstance(multipliers, (list, tuple)) else []
        _check_sizes(self, "channels", "out_channels", "width", "time_width")
        if width % _GROUPS:
            raise ValueError(f"width: expected a multiple of {_GROUPS}, got {width}")
        if not self.multipliers or any(not isinstance(m, int) or m < 1 for m in self.multipliers):
            raise ValueError(f"multipliers: expected whole numbers >= 1, got {multipliers!r}")
        widths = [width * m for m in self.multipliers]
        self.time = TimeEmbedding(time_width)
        self.first = nn.Conv2d(2 * channels, width, 3, padding=1)
        self.down = nn.ModuleList(
            _ConvBlock(w_in, w_out, time_width)
            for w_in, w_out in zip([width, *widths], widths, strict=False)
        )
        self.attention = _Attention(widths[-1])
        self.middle = _ConvBlock(widths[-1], widths[-1], time_width)
        self.up = nn.ModuleList(
            _ConvBlock(w_below + w_skip, w_skip, time_width)
            for w_below, w_skip in zip([widths[-1], *widths[::-1]], widths[::-1], strict=False)
        )
        self.norm = nn.GroupNorm(_GROUPS, width * self.multipliers[0])
        self.last = _zero(nn.Conv2d(width * self.multipliers[0], self.out_channels, 3, padding=1))

    def forward(self, u: Tensor, t: Tensor) -> Tensor:
        """Evaluate on a state u (B, 2C, H, W) at times t (B,): (B, out_channels, H, W)."""
        factor = 2 ** (len(self.multipliers) - 1)
        if u.ndim != 4 or u.shape[1] != 2 * self.channels:
            raise ValueError(
                f"u: expected shape (B, {2 * self.channels}, H, W), got {tuple(u.shape)}"
            )
        if u.shape[2] % factor or u.shape[3] % factor:
            raise ValueError(
                f"u: expected H and W to be multiples of {factor}, got {tuple(u.shape[2:])}"
            )
        embedding = self.time(_shared_time(t, u))
        h = self.first(u)
        skips: list[Tensor] = []
        for block in self.down:
            h = block(F.avg_pool2d(h, 2) if skips else h, embedding)
            skips.append(h)
        h = self.middle(self.attention(h), embedding)
        for level, block in enumerate(self.up):
            if level:
                h = F.interpolate(h, scale_factor=2.0, mode="nearest")
            h = block(torch.cat([h, skips.pop()], dim=1), embedding)
        return self.last(F.silu(self.norm(h)))


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


class _MLPBlock(nn.Module):
    def __init__(self, width: int, time_width: int) -> None:
        super().__init__()
        self.first = nn.Linear(width, width)
        self.second = nn.Linear(width, width)
        self.time = nn.Linear(time_width, width)

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        inner = self.first(F.silu(h)) + self.time(embedding)
        return h + self.second(F.silu(inner))


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

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        inner = self.conv1(F.silu(self.norm1(h))) + self.time(embedding)[:, :, None, None]
        return self.skip(h) + self.conv2(F.silu(self.norm2(inner)))


class _Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = max(1, width // _HEAD_CHANNELS) if width % _HEAD_CHANNELS == 0 else 1
        self.norm = nn.GroupNorm(_GROUPS, width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = _zero(nn.Linear(width, width))

    def forward(self, h: Tensor) -> Tensor:
        batch, width, height, breadth = h.shape
        tokens = self.norm(h).flatten(2).mT
        qkv = self.qkv(tokens).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])
        mixed = self.out(mixed.transpose(1, 2).flatten(2))
        return h + mixed.mT.reshape(batch, width, height, breadth)


def _shared_time(t: Tensor, u: Tensor) -> Tensor:
    """t (B,) in the dtype of u, cut to one row where an expanded view says that all are equal."""
    if not isinstance(t, Tensor):
        raise TypeError(f"t: expected a tensor, got {type(t).__name__}")
    if t.shape != (u.shape[0],):
        raise ValueError(f"t: expected shape ({u.shape[0]},), got {tuple(t.shape)}")
    return (t[:1] if t.stride(0) == 0 else t).to(u.dtype)


def _zero(layer: Any) -> Any:
    """Start a last layer at zero, so that an untrained network returns exactly 0."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _check_sizes(model: nn.Module, *names: str) -> None:
    for name in names:
        value = getattr(model, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name}: expected a whole number >= 1, got {value!r}")
