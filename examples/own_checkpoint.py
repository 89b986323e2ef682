"""
Your own checkpoint at 8 to 20 evaluations
==========================================

A network that was trained elsewhere is sampled with few evaluations: by the solver that the library
chooses, and by a plan that is fitted to the network.
"""

# %%
# The network returns a velocity score in the mixed form of CLD-SGM. Here a training of some seconds
# stands in for the checkpoint on your disk.
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import torch

import cldfast
from cldfast.lab.metrics import sliced_w2
from cldfast.lab.mixture import GaussianMixture
from cldfast.lab.models import MLPScore

TRAIN_STEPS, FIT_STEPS, SAMPLES = 1500, 20, 2000
torch.manual_seed(0)

angles = torch.arange(8) * torch.pi / 4
ring = 1.5 * torch.stack([angles.cos(), angles.sin()], 1)
data = GaussianMixture(torch.ones(8), ring, torch.full((8, 2), 0.02))
sde, net, rows = cldfast.CLD(), MLPScore(2, width=128), data.sample(50_000)
optimiser = torch.optim.Adam(net.parameters(), 2e-3)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, TRAIN_STEPS)
for _ in range(TRAIN_STEPS):
    batch = rows[torch.randint(len(rows), (256,))]
    loss = cldfast.hsm_loss(net, sde, batch, parameterization="mixed", times="half_log")
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    schedule.step()
checkpoint = Path(tempfile.mkdtemp()) / "checkpoint.pt"
torch.save(net.state_dict(), checkpoint)

# %%
# Load it, and say once what it returns. ``solver="auto"`` is the default, and 20 steps are, too.
net = MLPScore(2, width=128)
net.load_state_dict(torch.load(checkpoint, weights_only=True))
net.eval()
x = cldfast.sample(net, sde, (SAMPLES, 2), parameterization="mixed", seed=1)

# %%
# For 8 evaluations, fit a plan to the network: its coefficients and times are moved until its
# samples are near the data. The plan is a file, and sampling with it costs what any sampling of 8
# steps costs.
fit = cldfast.fit_plan(
    net, sde, rows, evaluations=8, parameterization="mixed", steps=FIT_STEPS, batch_size=512
)
fit.plan.save(checkpoint.with_name("8.json"))
plan = cldfast.Plan.load(checkpoint.with_name("8.json"), sde, "mixed")

# %%
# Sliced W2 to the data: the published Euler-Maruyama, the default, and the fitted plan.
target = data.sample(SAMPLES, seed=7)


def distance(**how):
    x = cldfast.sample(net, sde, (SAMPLES, 2), parameterization="mixed", seed=2, **how)
    return sliced_w2(x, target)


figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4))
left.scatter(*x.T, s=1)
left.set(title="20 evaluations, solver auto", aspect="equal", xlim=(-3, 3), ylim=(-3, 3))
for solver, grid, counts in (("em", "linear", (8, 20, 50)), ("auto", None, (8, 12, 20))):
    curve = [distance(solver=solver, grid=grid, steps=n) for n in counts]
    right.loglog(counts, curve, "o-", label=solver)
right.loglog(8, distance(plan=plan), "*", markersize=14, label="fitted plan")
floor = sliced_w2(data.sample(SAMPLES, seed=8), target)
right.axhline(floor, color="black", linestyle=":", label="two samples of the data")
right.set(xlabel="evaluations of the network", ylabel="sliced W2")
right.legend()
