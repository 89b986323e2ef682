"""The library of the registered operators, `torch.ops.cldfast`."""

from __future__ import annotations

import torch

library = torch.library.Library("cldfast", "DEF")
