"""
Several processes
=================

Training by ``DistributedDataParallel`` and sampling on every rank. Run alone, the script starts two
processes of itself, as ``torchrun --nproc-per-node 2 examples/ddp.py`` does.
"""

import os
import subprocess
import sys
from pathlib import Path

import torch
import torch.distributed as dist

import cldfast
from cldfast.lab.data import gaussians25
from cldfast.lab.models import MLPScore

TRAIN_STEPS = 100


def work() -> None:
    """What each rank does. Its noise is its own without a word: addresses of ranks are apart."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")  # "nccl" on GPUs
    torch.manual_seed(0)  # the same weights on all ranks
    rank, ranks = dist.get_rank(), dist.get_world_size()
    sde, rows = cldfast.CLD(), gaussians25().sample(20_000)[rank::ranks]
    net = torch.nn.parallel.DistributedDataParallel(MLPScore(2, width=64))
    optimiser = torch.optim.Adam(net.parameters(), 1e-3)
    for _ in range(TRAIN_STEPS):
        batch = rows[torch.randint(len(rows), (256,))]
        loss = cldfast.hsm_loss(net, sde, batch, parameterization="noise")
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    x = cldfast.sample(net.module, sde, (500, 2), parameterization="noise")
    parts = [torch.empty_like(x) for _ in range(ranks)]
    dist.all_gather(parts, x)
    if rank == 0:
        samples = torch.cat(parts)
        print(
            f"{ranks} ranks: {len(samples)} samples, {len(samples.unique(dim=0))} of them distinct"
        )
    dist.destroy_process_group()


# %%
# ``torchrun`` sets RANK and the other variables; without them the script starts it.
if "RANK" in os.environ:
    work()
else:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run([*command, str(Path(__file__))], capture_output=True, text=True)
    print(done.stdout or done.stderr)
    done.check_returncode()
