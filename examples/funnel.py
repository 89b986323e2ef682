"""
The Funnel
==========

Neal's funnel has scales that differ by orders of magnitude: the other coordinates have variance
``exp(x_1)``. A small network is trained in the best way that we know and sampled by 20 evaluations.
"""

import matplotlib.pyplot as plt
import torch

import cldfast
from cldfast.lab.data import Funnel
from cldfast.lab.metrics import sliced_w2
from cldfast.lab.models import MLPScore

DIM, TRAIN_STEPS, SAMPLES = 5, 1000, 4000
torch.manual_seed(0)
data, sde = Funnel(DIM), cldfast.CLD()
rows = data.sample(50_000)
mean, scale = rows.mean(0), rows.std(0)
rows = (rows - mean) / scale

# %%
# Data of standard deviation 1, an EDM-preconditioned network of one plane, and times of which
# half are uniform in log t.
net = MLPScore(DIM, width=128, in_planes=1, conditioning="c_noise")
optimiser = torch.optim.Adam(net.parameters(), 2e-3)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, TRAIN_STEPS)
for _ in range(TRAIN_STEPS):
    batch = rows[torch.randint(len(rows), (256,))]
    loss = cldfast.hsm_loss(net, sde, batch, "edm", "edm", times="half_log")
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    schedule.step()

# %%
x = cldfast.sample(net, sde, (SAMPLES, DIM), steps=20, parameterization="edm", seed=1)
x, target = x * scale + mean, data.sample(SAMPLES, seed=2)
print(f"sliced W2 {sliced_w2(x, target):.3f}, of two samples of the data ", end="")
print(f"{sliced_w2(data.sample(SAMPLES, seed=3), target):.3f}")

# %%
figure, grid = plt.subplots(1, 2, figsize=(8, 4), sharex=True, sharey=True)
for axes, name, points in zip(grid, ("data", "20 evaluations"), (target, x), strict=True):
    axes.scatter(points[:, 0], points[:, 1], s=1)
    axes.set(title=name, xlabel="x1", ylabel="x2", xlim=(-4, 4), ylim=(-10, 10))
