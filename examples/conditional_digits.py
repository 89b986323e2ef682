"""
Digits on demand
================

A conditional U-Net of diffusers, trained and sampled by CLD with guidance, in some minutes on two
cores. An argument is the number of training steps, and few steps show no digits yet.
"""

import sys

import matplotlib.pyplot as plt
import torch
from diffusers import UNet2DModel

import cldfast
from cldfast.lab.data import Digits

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
torch.manual_seed(0)
data = Digits()
net = UNet2DModel(
    8, 1, 1, block_out_channels=(32, 64), layers_per_block=1, norm_num_groups=8,
    down_block_types=["DownBlock2D"] * 2, up_block_types=["UpBlock2D"] * 2, num_class_embeds=11,
)  # fmt: skip
model = cldfast.Model(
    net, cldfast.CLD(), "edm", cldfast.DataScale.fit(data.train_x),
    null={"class_labels": 10}, dropout=0.1,  # what a tenth of the rows is told, for guidance
)  # fmt: skip
optimizer = torch.optim.AdamW(model.parameters())
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
for rows in torch.randint(len(data.train_x), (steps, 128)):
    loss = model.loss(data.train_x[rows], class_labels=data.train_y[rows])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    schedule.step()
labels = torch.arange(200) % 10
x = model.sample(200, 20, class_labels=labels, guidance_scale=2.0, batch_size=64)
grid = x[:50].reshape(5, 10, 8, 8).transpose(1, 2).reshape(40, 80)
plt.imshow(grid.numpy(), cmap="gray", vmin=-1, vmax=1)
