"""Where seeds come from: PyTorch's generators, explicit ones, and the ranks of a process group."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

import cldfast
from cldfast import classical, kernels
from cldfast.kernels.seeds import RANK_STRIDE

SDE = cldfast.CLD()
ROOT = Path(__file__).resolve().parents[1]


def net(u: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return -u[:, u.shape[1] // 2 :]


def score(x: torch.Tensor, t: torch.Tensor | None = None) -> torch.Tensor:
    return -x


ROWS = torch.linspace(-1.0, 1.0, 12).reshape(6, 2)
PLAN = cldfast.make_plan(SDE, "em", 3)
MADE = {
    "sample": partial(cldfast.sample, net, SDE, (6, 2), "em", 3),
    "run": partial(cldfast.run, PLAN, net, torch.zeros(6, 4)),
    "initial_state": partial(cldfast.initial_state, SDE, (6, 2)),
    "perturb": lambda **k: cldfast.perturb(SDE, ROWS, torch.full((6,), 0.5), **k)[0],
    "sample_times": lambda **k: cldfast.sample_times(6, SDE, **k)[0],
    "hsm_loss": partial(cldfast.hsm_loss, net, SDE, ROWS, reduction="none"),
    "dsm_loss": partial(cldfast.dsm_loss, net, SDE, ROWS, reduction="none"),
    "classical dsm_loss": partial(classical.dsm_loss, score, classical.VP(), ROWS),
    "flow_matching_loss": partial(classical.flow_matching_loss, score, ROWS),
    "multi_scale_loss": partial(classical.multi_scale_loss, score, ROWS, [0.1, 1.0]),
    "ula": partial(classical.ula, score, ROWS, 0.1, 2),
    "mala": lambda **k: classical.mala(lambda x: -x.square().sum(1), ROWS, 0.1, 2, **k)[0],
    "kinetic_langevin": lambda **k: torch.cat(classical.kinetic_langevin(score, ROWS, 0.1, 2, **k)),
    "annealed_langevin": partial(
        classical.annealed_langevin, score, classical.VE(0.1, 2.0), (6, 2), 3
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MADE)
def test_seeds_are_as_pytorch_users_expect(name: str) -> None:
    make = MADE[name]
    torch.manual_seed(5)
    first, second = make(), make()
    torch.manual_seed(5)
    assert torch.equal(make(), first) and not torch.equal(first, second)

    drawn = [make(generator=torch.Generator().manual_seed(k)) for k in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])

    before = torch.get_rng_state()
    explicit = [make(seed=seed) for seed in (3, np.int64(3), np.uint64(3), 4)]
    assert all(torch.equal(other, explicit[0]) for other in explicit[1:3])
    assert not torch.equal(explicit[0], explicit[3])
    assert torch.equal(torch.get_rng_state(), before)  # nothing is drawn where a seed is given

    with pytest.raises(ValueError, match="seed= or generator=, not both"):
        make(seed=1, generator=torch.Generator())
    with pytest.raises(TypeError, match="an integer goes to seed="):
        make(generator=1)


def test_the_likelihood_draws_its_seed() -> None:
    pytest.importorskip("torchdiffeq")
    bound = partial(cldfast.likelihood, net, SDE, ROWS, t_min=0.1, rtol=1e-2, atol=1e-2)
    torch.manual_seed(5)
    first, second = bound().nll, bound().nll
    torch.manual_seed(5)
    assert torch.equal(bound().nll, first) and not torch.equal(first, second)
    torch.manual_seed(5)
    flow = partial(cldfast.pflow, net, SDE, (3, 2), rtol=1e-2, atol=1e-2)
    drawn = [flow()[0], flow()[0]]
    torch.manual_seed(5)
    assert torch.equal(flow()[0], drawn[0]) and not torch.equal(*drawn)


def test_ten_calls_of_a_hundred_are_a_thousand_samples() -> None:
    x = torch.cat([cldfast.sample(net, SDE, (100, 2), steps=4) for _ in range(10)])
    assert len(x.unique(dim=0)) == 1_000


def test_seeds_cover_63_bits_and_come_from_the_generators_device() -> None:
    seeds = [kernels.noise_address().seed for _ in range(200)]
    assert len(set(seeds)) == 200
    assert max(seeds) > 2**62 and min(seeds) < 2**62  # each fails with probability 2^-200


@pytest.mark.parametrize("equal", [True, False])
def test_ranks_draw_other_samples(monkeypatch: pytest.MonkeyPatch, equal: bool) -> None:
    """With equal seeds and unequal batches too; explicit seeds are taken at their word."""
    drawn = []
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    for rank, rows in ((0, 64), (1, 63), (2, 1)):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        torch.manual_seed(0 if equal else rank)
        drawn.append(cldfast.sample(net, SDE, (rows, 2), steps=3))
        address = kernels.noise_address(3, 10)
        assert address == kernels.NoiseAddress(3, 10)
    assert len(torch.cat(drawn).unique(dim=0)) == 128
    if equal:  # one seed for all: the whole is that of one process
        torch.manual_seed(0)
        seed = int(torch.randint(0, 2**63 - 1, ()))
        alone = cldfast.sample(net, SDE, (63, 2), steps=3, seed=seed, first_index=RANK_STRIDE)
        assert torch.equal(drawn[1], alone)


def test_the_example_of_two_ranks(tmp_path: Path) -> None:
    """The script of docs/seeds.md under gloo: all samples are distinct, all weights are equal."""
    text = (ROOT / "docs" / "seeds.md").read_text(encoding="utf-8")
    (script,) = re.findall(r"```python\n(.*?init_process_group.*?)```", text, re.S)
    script += f"torch.save((x, net.module.state_dict()), f'{tmp_path}/{{rank}}.pt')\n"
    environment = os.environ | {
        "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1",
        "MASTER_PORT": str(_free_port()), "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }  # fmt: skip
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", script],
            env=environment | {"RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        for rank in range(2)
    ]
    ends = [process.communicate(timeout=500)[1] for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], ends
    (x, weights), (y, others) = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert len(torch.cat([x, y]).unique(dim=0)) == 200
    assert all(torch.equal(weights[name], others[name]) for name in weights)


def _free_port() -> int:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
