"""
CLD beside VP, VE and flow matching
===================================

The same data, exact networks, and the best sampler of each process: what is left is the process.
"""

import matplotlib.pyplot as plt

import cldfast
from cldfast.lab.data import gaussians25

SAMPLES, REPEATS = 2000, 2
rows = cldfast.compare(gaussians25(), (8, 12, 20), samples=SAMPLES, repeats=REPEATS)

# %%
figure, axes = plt.subplots(figsize=(6, 4))
for name in dict.fromkeys(row["process"] for row in rows):
    mine = [row for row in rows if row["process"] == name]
    counts = [row["evaluations"] for row in mine]
    axes.errorbar(
        counts, [row["distance"] for row in mine], [row["error"] for row in mine],
        label=name,
    )  # fmt: skip
axes.axhline(rows[0]["floor"], color="black", linestyle=":", label="two samples of the data")
axes.set(xscale="log", yscale="log", xlabel="evaluations of the network", ylabel="sliced W2")
axes.legend()

# %%
# One network can serve them all: a denoiser of ``y``, given the noise level, is what each of them
# asks for. So the process can be changed without training again.
data = gaussians25()
for process in (cldfast.CLD(), cldfast.classical.VP()):
    net = data.network(process, "denoiser")
    x = cldfast.sample(net, process, (SAMPLES, 2), steps=20, parameterization="denoiser", seed=1)
    print(process, x.std(0).tolist())
