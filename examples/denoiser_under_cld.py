"""
A diffusers denoiser under CLD
==============================

A U-Net of diffusers, trained for DDPM, is sampled by CLD with 20 evaluations, without training
again.
"""

# %%
# A small U-Net, trained by the loop of diffusers' own guide on 8 x 8 digits, stands in for a
# pretrained one.
import matplotlib.pyplot as plt
import torch
from diffusers import DDPMScheduler, UNet2DModel

import cldfast
from cldfast.lab.data import Digits

TRAIN_STEPS = 200
torch.manual_seed(0)
images, scheduler = Digits().train_x, DDPMScheduler(num_train_timesteps=1000)
unet = UNet2DModel(
    sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, norm_num_groups=8,
    block_out_channels=(16, 32), down_block_types=("DownBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "UpBlock2D"),
)  # fmt: skip
optimiser = torch.optim.Adam(unet.parameters(), 2e-3)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, TRAIN_STEPS)
for _ in range(TRAIN_STEPS):
    clean = images[torch.randint(len(images), (48,))]
    noise, t = torch.randn_like(clean), torch.randint(1000, (48,))
    noisy = scheduler.add_noise(clean, noise, t)
    loss = torch.nn.functional.mse_loss(unet(noisy, t).sample, noise)
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    schedule.step()
unet.eval()

# %%
# What CLD asks of a network is the mean of the data given the state, and that is a denoiser's
# answer.
net = cldfast.from_diffusers(unet, scheduler)
x = cldfast.sample(net, cldfast.CLD(), (32, 1, 8, 8), steps=20, parameterization="denoiser", seed=1)

# %%
figure, grid = plt.subplots(4, 8, figsize=(6, 3.2))
for axes, image in zip(grid.flat, x, strict=True):
    axes.imshow(image[0], cmap="gray", vmin=-1, vmax=1)
    axes.set_axis_off()
