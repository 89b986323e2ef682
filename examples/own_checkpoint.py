"""
Your own checkpoint at 8 to 20 evaluations
==========================================

A network that was trained elsewhere is sampled with few evaluations: by the solver that the library
chooses, and by a plan that is fitted to the network.
"""

# %%
# The network, as its own code defines it: a velocity score in noise form, ``score = -ell_t eps``.
# Here a training of some seconds stands in for the checkpoint on your disk.
import itertools
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import nn

import cldfast
from cldfast.lab.data import gaussians25
from cldfast.lab.metrics import sliced_w2

TRAIN_STEPS, FIT_STEPS, SAMPLES = 2000, 40, 4000
torch.manual_seed(0)


class Epsilon(nn.Module):
    def __init__(self, width=128):
        super().__init__()
        sizes = [6, width, width, width]
        layers = [m for a, b in itertools.pairwise(sizes) for m in (nn.Linear(a, b), nn.SiLU())]
        self.layers = nn.Sequential(*layers, nn.Linear(width, 2))

    def forward(self, u, t):
        return self.layers(torch.cat([u, t[:, None], t.log()[:, None]], 1))


sde, data, net = cldfast.CLD(), gaussians25(), Epsilon()
rows, optimiser = data.sample(50_000), torch.optim.Adam(net.parameters(), 2e-3)
for _ in range(TRAIN_STEPS):
    batch = rows[torch.randint(len(rows), (512,))]
    loss = cldfast.hsm_loss(net, sde, batch, parameterization="noise", times="half_log")
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
checkpoint = Path(tempfile.mkdtemp()) / "checkpoint.pt"
torch.save(net.state_dict(), checkpoint)

# %%
# Load it, and say once what it returns. ``solver="auto"`` is the default, and 20 steps are, too.
net = Epsilon()
net.load_state_dict(torch.load(checkpoint, weights_only=True))
net.eval()
x = cldfast.sample(net, sde, (SAMPLES, 2), parameterization="noise", seed=1)

# %%
# For 8 evaluations, fit a plan to the network: its coefficients and times are moved until its
# samples are near the data. The plan is a file, and sampling with it costs what any sampling of 8
# steps costs.
fit = cldfast.fit_plan(
    net, sde, rows, evaluations=8, parameterization="noise", steps=FIT_STEPS, batch_size=1024
)
fit.plan.save(checkpoint.with_name("8.json"))
plan = cldfast.Plan.load(checkpoint.with_name("8.json"), sde, "noise")

# %%
# Sliced W2 to the data: the published Euler-Maruyama, the default, and the fitted plan.
target = data.sample(SAMPLES, seed=7)


def distance(**how):
    x = cldfast.sample(net, sde, (SAMPLES, 2), parameterization="noise", seed=2, **how)
    return sliced_w2(x, target)


figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4))
left.scatter(*x.T, s=1)
left.set(title="20 evaluations, solver auto", aspect="equal", xlim=(-3, 3), ylim=(-3, 3))
for solver, grid, counts in (("em", "linear", (8, 20, 100)), ("auto", None, (8, 12, 20))):
    curve = [distance(solver=solver, grid=grid, steps=n) for n in counts]
    right.loglog(counts, curve, "o-", label=solver)
right.loglog(8, distance(plan=plan), "*", markersize=14, label="fitted plan")
right.axhline(sliced_w2(data.sample(SAMPLES, seed=8), target), color="black", linestyle=":")
right.set(xlabel="evaluations of the network", ylabel="sliced W2 (dotted: two samples of the data)")
right.legend()
