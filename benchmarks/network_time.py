"""What computing the part of a network that depends on time alone once per call saves.

    python benchmarks/network_time.py

`MLPScore` and `UNetScore` against the plain evaluation of the same weights, where every layer of
the time is a kernel of its own and its result is added to all rows. One thread. Three ways to call
it: in a run, which knows all times beforehand; alone, all rows sharing t; in training, forward and
backward with a time for each row. Contestants are sampled in turns. Writes
benchmarks/results/network_time.csv. One minute.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from output import RESULTS, new_parser, write_csv
from torch import Tensor, nn

from cldfast.bench.results import environment
from cldfast.bench.timing import Effort, interleaved
from cldfast.lab.models import MLPScore, TimeEmbedding, UNetScore

EFFORT = Effort(rounds=21, sample=0.02, budget=2.0)


class Plain(nn.Module):
    """The plain evaluation of a network's weights, without its checks of shapes."""

    def __init__(self, net: MLPScore | UNetScore) -> None:
        super().__init__()
        self.net = net
        octaves = 2.0 ** torch.arange(TimeEmbedding.FREQUENCIES)
        self.of_t, self.of_log_t = octaves * torch.pi / 2, octaves * torch.pi / 16

    def forward(self, u: Tensor, t: Tensor) -> Tensor:
        t = (t[:1] if t.stride(0) == 0 else t).to(u.dtype)[:, None]
        kind = self.net.conditioning
        if kind == "time":
            log_t = t.clamp_min(1e-8).log()
            plain = [t, log_t / 8]
            angles = torch.cat([t * self.of_t, log_t * self.of_log_t], dim=1)
        else:
            c_noise = t.log() / 4 if kind == "sigma" else t
            plain, angles = [c_noise], c_noise * (4 * self.of_log_t)
        embedding = self.net.time.layers(torch.cat([*plain, angles.sin(), angles.cos()], dim=1))
        return self._mlp(u, embedding) if u.ndim == 2 else self._unet(u, embedding)

    def _mlp(self, u: Tensor, embedding: Tensor) -> Tensor:
        h = self.net.first(u)
        for block in self.net.blocks:
            inner = block.first(F.silu(h)) + block.time(embedding)
            h = h + block.second(F.silu(inner))
        return self.net.last(F.silu(h))

    def _unet(self, u: Tensor, embedding: Tensor) -> Tensor:
        net = self.net
        h = net.first(u)
        skips: list[Tensor] = []
        for block in net.down:
            h = _conv_block(block, F.avg_pool2d(h, 2) if skips else h, embedding)
            skips.append(h)
        h = _conv_block(net.middle, net.attention(h), embedding)
        for level, block in enumerate(net.up):
            if level:
                h = F.interpolate(h, scale_factor=2.0, mode="nearest")
            h = _conv_block(block, torch.cat([h, skips.pop()], dim=1), embedding)
        return net.last(F.silu(net.norm(h)))


def _conv_block(block: nn.Module, h: Tensor, embedding: Tensor) -> Tensor:
    inner = block.conv1(F.silu(block.norm1(h))) + block.time(embedding)[:, :, None, None]
    return block.skip(h) + block.conv2(F.silu(block.norm2(inner)))


@dataclass(frozen=True)
class Case:
    """A network and the shape of its state."""

    name: str
    make: Callable[[], MLPScore | UNetScore]
    shape: tuple[int, ...]


CASES = (
    Case("MLP, d = 2, width 128", lambda: MLPScore(2, width=128), (64, 4)),
    Case("MLP, d = 2, width 128", lambda: MLPScore(2, width=128), (1024, 4)),
    Case("MLP, d = 100, width 512", lambda: MLPScore(100, width=512), (1024, 200)),
    Case("U-Net, width 32", UNetScore, (16, 2, 28, 28)),
)


# Each way with the contestant that it is compared with.
WAYS = {"run": "plain", "call": "plain", "training": "plain training"}


def contestants(case: Case) -> dict[str, Callable[[], object]]:
    """Calls by name: the ways, and the plain evaluation without and with gradients."""
    torch.manual_seed(0)
    net = case.make()
    # The last layer starts at zero, which would make a gradient with many zeros.
    nn.init.normal_(net.last.weight, std=0.1)
    plain, parameters = Plain(net), list(net.parameters())
    u, times = torch.randn(case.shape), torch.rand(case.shape[0])
    shared = torch.tensor([0.3]).expand(case.shape[0])
    prepared = net.at_times(shared[:1])[0]

    def sampling(form: Callable[[Tensor, Tensor], Tensor]) -> Callable[[], object]:
        return torch.no_grad()(lambda: form(u, shared))

    def training(form: nn.Module) -> Callable[[], object]:
        def step() -> None:
            for parameter in parameters:
                parameter.grad = None
            form(u, times).square().sum().backward()

        return step

    return {
        "plain": sampling(plain), "run": sampling(prepared), "call": sampling(net),
        "plain training": training(plain), "training": training(net),
    }  # fmt: skip


def measure(effort: Effort = EFFORT) -> list[dict[str, object]]:
    """A row for each case."""
    where, rows = asdict(environment()), []
    for case in CASES:
        calls = contestants(case)
        timings = interleaved(list(calls.values()), [1], effort)
        seconds = {name: of_one[0].median for name, of_one in zip(calls, timings, strict=True)}
        row = where | {"network": case.name, "batch": case.shape[0], "threads": 1}
        row |= {f"{name}_seconds": value for name, value in seconds.items()}
        row |= {
            f"{way}_ratio": f"{seconds[other] / seconds[way]:.2f}" for way, other in WAYS.items()
        }
        rows.append(row)
    return rows


def main() -> None:
    """Measure, print and write the table."""
    out = new_parser(__doc__, RESULTS / "network_time.csv").parse_args().out
    rows = measure()
    write_csv(out, rows)
    for row in rows:
        ratios = ", ".join(f"{way} {row[f'{way}_ratio']}" for way in WAYS)
        print(
            f"{row['network']}, batch {row['batch']}: the plain form takes as many times: {ratios}"
        )


if __name__ == "__main__":
    main()
