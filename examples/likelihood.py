"""
Likelihood
==========

A bound on the negative log-likelihood of data, by the probability flow. The network here is
exact, so the bound can be held against the truth.
"""

import matplotlib.pyplot as plt

import cldfast
from cldfast.lab.mixture import GaussianMixture

ROWS, DRAWS = 150, 4
sde = cldfast.CLD()
data = GaussianMixture([0.5, 0.3, 0.2], [[-2.0, 0.0], [1.0, 1.0], [1.0, -2.0]], [[0.3, 0.3]] * 3)
net = data.network(sde, "mixed")
x0 = data.sample(ROWS, seed=1)

# %%
# ``nll`` is in nats for each row. Each draw starts the flow of a row at another velocity, and the
# bound is tight up to what the velocity at time 0 carries.
found = cldfast.likelihood(
    net, sde, x0, parameterization="mixed", draws=DRAWS, rtol=1e-3, atol=1e-3, seed=0
)
truth = -data.log_prob(x0)
print(f"bound {found.nll.mean():.3f}, truth {truth.mean():.3f} nats")
print(f"{found.evaluations} evaluations of the network")

# %%
figure, axes = plt.subplots(figsize=(4.5, 4.5))
axes.plot(truth, found.nll, ".")
axes.axline((2, 2), slope=1, color="black", linewidth=0.7)
axes.set(xlabel="negative log-density", ylabel="bound", aspect="equal")
