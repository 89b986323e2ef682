"""What the README prints, run as printed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from cldfast.bench.timing import threads_set

README = Path(__file__).resolve().parents[1] / "README.md"


def test_the_ten_lines_learn_their_data() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, Any] = {}
    with threads_set(1):  # layers this small do not gain from a second one
        exec(code, names)
    x = names["x"]
    assert x.shape == (10_000, 2)
    # Monte Carlo gives 0.5 to 1 %; the rest is a small network trained for two seconds.
    assert torch.allclose(x.std(0), torch.full((2,), 0.5), rtol=0.15)
    assert float(x.mean(0).abs().max()) < 0.1
