"""
Inpainting
==========

The lower half of handwritten digits is given, the upper half is sampled. The network is exact:
that of a Gaussian around each training image.
"""

import matplotlib.pyplot as plt
import torch

import cldfast
from cldfast.lab.data import Digits
from cldfast.lab.mixture import GaussianMixture

IMAGES, STEPS = 8, 50
digits, sde = Digits(), cldfast.CLD()
centres = digits.train_x.flatten(1)
laws = GaussianMixture(
    torch.ones(len(centres)), centres, torch.full_like(centres, 0.01, dtype=torch.float64)
)
net = laws.network(sde, "x0")  # net(u, t) for states (B, 2, 8, 8), as a U-Net would be

# %%
# The mask says which pixels are known. They are put in at every stage, with the noise of its time.
known = digits.test_x[:IMAGES]
mask = torch.zeros(8, 8, dtype=torch.bool)
mask[4:] = True
inpaint = cldfast.Inpainting(known, mask)
tries = [
    cldfast.sample(
        net, sde, known.shape, "sscs2", STEPS, parameterization="x0", inpaint=inpaint, seed=seed
    )
    for seed in (1, 2, 3)
]

# %%
# The images, what was given of them, and three samples.
given = torch.where(mask, known, torch.zeros(()))
figure, grid = plt.subplots(5, IMAGES, figsize=(IMAGES, 5.4))
for row, name, images in zip(
    grid, ("image", "given", "1", "2", "3"), (known, given, *tries), strict=True
):
    for axes, image in zip(row, images, strict=True):
        axes.imshow(image[0], cmap="gray", vmin=-1, vmax=1)
        axes.set(xticks=[], yticks=[])
    row[0].set_ylabel(name)
