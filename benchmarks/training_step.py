"""A whole training step against the same step written as published code writes it.

    python benchmarks/training_step.py

A step is data, loss, backward, clipping, Adam and the running average of weights; the network is
the same in both loops. Writes benchmarks/results/training_step.csv: for each case and thread count
the median seconds of a step of either loop and of the network alone (forward and backward around a
given gradient), sampled in turns in one run.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from output import RESULTS, new_parser, write_csv
from torch import Tensor, nn

from cldfast import CLD
from cldfast.bench.results import environment
from cldfast.bench.timing import Effort, interleaved
from cldfast.lab.models import MLPScore
from cldfast.training import TrainConfig, Trainer

EFFORT = Effort(rounds=21, sample=0.05, budget=4.0)
ROWS = 5_000
LR, CLIP, DECAY, T_MIN = 1e-3, 1.0, 0.999, 1e-3


@dataclass(frozen=True)
class Case:
    """rows of a batch, coordinates of a row, hidden units of the network."""

    batch: int
    dim: int
    width: int


CASES = (Case(64, 2, 128), Case(256, 100, 512))


class PublishedLoop:
    """A training step for CLD with the mixed score, in the manner of public code.

    Times and kernels are in float64, and with them the perturbed data, which are cast afterwards;
    every term is a tensor of its own; the factors are tested for NaN; Adam is PyTorch's default,
    the average goes through the parameters one by one, and the step waits for its loss.

    Source: Dockhorn, Vahdat, Kreis (2022), algorithm 2 and appendix B (hybrid score matching).
    """

    def __init__(self, net: nn.Module, sde: CLD, data: Tensor, batch: int) -> None:
        self.net, self.data, self.batch = net, data, batch
        self.a, self.rate, self.v0_var = sde.a, float(sde.beta(sde.T)), sde.v0_var
        self.optimizer = torch.optim.Adam(net.parameters(), lr=LR)
        self.average = [p.detach().clone() for p in net.parameters() if p.requires_grad]
        self.updates = 0
        self.epoch, self.order = 0, torch.randperm(len(data))

    def mean_and_variance(self, u: Tensor, t: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Of the state at t (B,) given u (B, 2d) with velocities of variance v0_var, float64."""
        a, tau = self.a, (self.rate * t)[:, None]
        x, v = torch.chunk(u, 2, dim=1)
        decay = torch.exp(-a * tau)
        mean_x = decay * (x + a * tau * x + a**2 * tau * v)
        mean_v = decay * (v - a * tau * v - tau * x)
        decay = torch.exp(-2.0 * a * tau)
        grown = 1.0 / decay
        var_xx = decay * (
            grown - 1.0 - 2.0 * a * tau - 2.0 * (a * tau) ** 2 + self.v0_var * a**4 * tau**2
        )
        var_xv = decay * (2.0 * a * tau**2 + self.v0_var * (a**2 * tau - a**3 * tau**2))
        var_vv = decay * (
            (grown - 1.0 + 2.0 * a * tau - 2.0 * (a * tau) ** 2) / a**2
            + self.v0_var * (1.0 - a * tau) ** 2
        )
        return torch.cat((mean_x, mean_v), dim=1), (var_xx, var_xv, var_vv)

    def loss(self, x: Tensor) -> Tensor:
        """Reweighted hybrid score matching of the rows x (B, d)."""
        u = torch.cat((x, torch.zeros_like(x)), dim=1)
        t = torch.rand(len(x), dtype=torch.float64) * (1.0 - T_MIN) + T_MIN
        mean, (var_xx, var_xv, var_vv) = self.mean_and_variance(u, t)
        l_xx = torch.sqrt(var_xx)
        l_vx = var_xv / l_xx
        l_vv = torch.sqrt(var_vv - l_vx**2)
        for factor in (l_xx, l_vx, l_vv):
            if torch.sum(torch.isnan(factor)) > 0:
                raise ValueError("numerical precision error")
        noise = torch.randn_like(u)
        z_x, z_v = torch.chunk(noise, 2, dim=1)
        added = torch.cat((l_xx * z_x, l_vx * z_x + l_vv * z_v), dim=1)
        perturbed = (mean + added).type(torch.float32)

        output = self.net(perturbed, t.type(torch.float32))
        # The wrapper that makes a score of the output works out variances once more.
        _, v = torch.chunk(perturbed, 2, dim=1)
        _, (var_xx, var_xv, var_vv) = self.mean_and_variance(torch.ones_like(perturbed), t)
        ell = torch.sqrt(var_xx / (var_xx * var_vv - var_xv**2)).type(torch.float32)
        score = -v / var_vv.type(torch.float32) - ell * output
        losses = (score / -ell - z_v) ** 2
        return torch.mean(torch.sum(losses.reshape(len(x), -1), dim=1))

    def rows(self) -> Tensor:
        """The next rows of a shuffled epoch."""
        if (self.epoch + 1) * self.batch > len(self.data):
            self.epoch, self.order = 0, torch.randperm(len(self.data))
        chosen = self.order[self.epoch * self.batch : (self.epoch + 1) * self.batch]
        self.epoch += 1
        return self.data[chosen]

    def step(self) -> float:
        """One step; returns its loss."""
        self.optimizer.zero_grad()
        loss = self.loss(self.rows())
        loss.backward()
        for group in self.optimizer.param_groups:
            group["lr"] = LR
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), max_norm=CLIP)
        self.optimizer.step()
        self.updates += 1
        decay = min(DECAY, (1 + self.updates) / (10 + self.updates))
        with torch.no_grad():
            parameters = [p for p in self.net.parameters() if p.requires_grad]
            for mean, parameter in zip(self.average, parameters, strict=True):
                mean.sub_((1.0 - decay) * (mean - parameter))
        return loss.item()


def contestants(case: Case) -> dict[str, Callable[[], object]]:
    """The steps of a case by name: "published", "cldfast" and "network"."""
    torch.manual_seed(0)
    sde, data = CLD(), torch.randn(ROWS, case.dim)
    net = MLPScore(case.dim, width=case.width)
    # The last layer starts at zero, which would make a step with many zeros.
    nn.init.normal_(net.last.weight, std=case.width**-0.5)
    nets = [copy.deepcopy(net) for _ in range(2)]
    published = PublishedLoop(nets[0], sde, data, case.batch)
    config = TrainConfig(
        batch_size=case.batch, lr=LR, warmup=0, clip=CLIP, ema_decay=DECAY, t_min=T_MIN
    )
    trainer = Trainer(nets[1], sde, data, config)
    u, t = torch.randn(case.batch, 2 * case.dim), torch.rand(case.batch)
    given = torch.randn(case.batch, case.dim)
    parameters = list(net.parameters())

    def network() -> None:
        for parameter in parameters:
            parameter.grad = None
        net(u, t).backward(given)

    return {"published": published.step, "cldfast": trainer.train_step, "network": network}


def measure(effort: Effort = EFFORT) -> list[dict[str, object]]:
    """A row for each case and thread count."""
    counts = sorted({1, torch.get_num_threads()})
    where = asdict(environment())
    rows: list[dict[str, object]] = []
    for case in CASES:
        steps = contestants(case)
        timings = interleaved(list(steps.values()), counts, effort)
        by_name = dict(zip(steps, timings, strict=True))
        for index, threads in enumerate(counts):
            seconds = {name: of_count[index].median for name, of_count in by_name.items()}
            rows.append(
                where
                | asdict(case)
                | {"threads": threads}
                | {f"{name}_seconds": f"{value:.4e}" for name, value in seconds.items()}
                | {
                    "ratio": f"{seconds['published'] / seconds['cldfast']:.2f}",
                    "network_share": f"{seconds['network'] / seconds['cldfast']:.2f}",
                }
            )
    return rows


def main() -> None:
    """Measure, print and write the table."""
    out = new_parser(__doc__, RESULTS / "training_step.csv").parse_args().out
    rows = measure()
    write_csv(out, rows)
    for row in rows:
        print(
            f"{row['batch']} x {row['dim']}, width {row['width']}, {row['threads']} threads: "
            f"published {row['published_seconds']} s, cldfast {row['cldfast_seconds']} s, "
            f"ratio {row['ratio']}, network alone {row['network_share']} of our step"
        )


if __name__ == "__main__":
    main()
