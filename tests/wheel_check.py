"""Run by CI against an installed wheel, away from the source tree and without the extras."""

import sys
import warnings
from pathlib import Path

warnings.simplefilter("error")

import torch  # noqa: E402

import cldfast  # noqa: E402

folder = Path(cldfast.__file__).parent
assert folder.is_relative_to(sys.prefix), folder
# Type checkers read the package's annotations only where this file stands.
assert (folder / "py.typed").exists()
# The network of the demo.
network = folder / "app" / "demo" / "network"
assert (network / "model.safetensors").exists() and any((network / "plans").iterdir()), network
report = cldfast.info()
assert report["auto"]["cpu"] == "cpu", report
sde = cldfast.CLD()
x = cldfast.sample(lambda u, t: -u[:, 2:] * 4.0, sde, (1000, 2), steps=20, seed=1)
assert x.shape == (1000, 2) and bool(torch.isfinite(x).all())
# The stationary score (v variance 1/4) makes every step the exact reversed stationary process, so
# the samples are standard normal: 5 standard errors of a variance of 2,000 values are 0.16.
assert abs(float(x.var()) - 1.0) < 0.16, float(x.var())
print(f"wheel: {report['versions']['cldfast']} on {report['versions']['torch']}, {report['core']}")
