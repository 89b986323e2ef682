"""
The trainer in several processes
================================

A data set and a U-Net of one's own. The same program runs alone, or in many processes by
``accelerate launch examples/train_in_processes.py``: the losses are the same.
"""

import sys

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch.utils.data import DataLoader, Dataset

import cldfast
from cldfast.training import TrainConfig, Trainer


class Spots(Dataset):
    def __len__(self):
        return 2_000

    def __getitem__(self, index):  # a bright spot at one of 64 places, (1, 8, 8)
        rows, columns = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
        return torch.exp(-((rows - index % 8) ** 2 + (columns - index // 8 % 8) ** 2) / 4)[None]


class UNet(torch.nn.Module):
    def __init__(self):
        super().__init__()
        sizes = (3, 32), (32, 32), (64, 1)
        self.down, self.low, self.up = (torch.nn.Conv2d(*pair, 3, 1, 1) for pair in sizes)

    def forward(self, u, t):  # the state, two planes, and the time; returns the noise on v
        h = self.down(torch.cat([u, t[:, None, None, None].expand(-1, 1, 8, 8)], 1)).relu()
        low = F.interpolate(self.low(F.avg_pool2d(h, 2)).relu(), scale_factor=2)
        return self.up(torch.cat([h, low], 1))


torch.manual_seed(0)
config = TrainConfig(steps=60, batch_size=64, parameterization="noise", checkpoint_every=20)
loader, accelerator = DataLoader(Spots(), batch_size=64), Accelerator()
folder = sys.argv[1] if len(sys.argv) > 1 else None
trainer = Trainer(UNet(), cldfast.CLD(), loader, config, accelerator=accelerator, folder=folder)
net = trainer.fit()
accelerator.print(accelerator.num_processes, "processes trained", type(net).__name__)
