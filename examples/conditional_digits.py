"""Digits on demand: a conditional U-Net of diffusers, trained and sampled by CLD with guidance."""

import argparse
from collections.abc import Sequence

import torch
from diffusers import UNet2DModel

import cldfast
from cldfast.lab.data import Digits


def main(arguments: Sequence[str] | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Train, and return images (n, 1, 8, 8) with pixels in [-1, 1], and the labels asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1000, help="of training")
    parser.add_argument("--samples", type=int, default=1000, help="to be drawn")
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    data = Digits()
    net = UNet2DModel(
        8, 1, 1, block_out_channels=(32, 64), layers_per_block=1, norm_num_groups=8,
        down_block_types=["DownBlock2D"] * 2, up_block_types=["UpBlock2D"] * 2, num_class_embeds=11,
    )  # fmt: skip
    scale = cldfast.DataScale.fit(data.train_x)
    no_class = {"class_labels": 10}  # what a tenth of the rows is told, for guidance
    model = cldfast.Model(net, cldfast.CLD(), "edm", scale, null=no_class, dropout=0.1)
    optimizer = torch.optim.AdamW(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=options.steps)
    for step in range(options.steps):
        rows = torch.randint(len(data.train_x), (128,))
        loss = model.loss(data.train_x[rows], class_labels=data.train_y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            print(f"step {step}: loss {loss.item():.3f}", flush=True)
    labels = torch.arange(options.samples) % 10
    drawn = {"class_labels": labels, "guidance_scale": 2.0, "batch_size": 64}
    return model.sample(options.samples, steps=20, **drawn), labels
