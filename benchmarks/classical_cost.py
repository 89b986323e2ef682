"""The time of a stage of a classical path beside that of CLD at the same number of coordinates.

    python benchmarks/classical_cost.py

Writes benchmarks/results/classical_cost.csv: medians of one Euler-Maruyama stage by the kernel
alone, in place and on one thread, in interleaved rounds. A path has half the planes of CLD, so
about half the time is expected where memory or arithmetic decides. A minute.
"""

from __future__ import annotations

import time

import numpy as np
import torch
from output import new_parser, write_csv

import cldfast
from cldfast import kernels
from cldfast.bench.timing import threads_set
from cldfast.classical import VP
from cldfast.sampling.steps import plan_tables

SIZES = (10_000, 100_000, 1_000_000, 10_000_000)
ROUNDS = 41


def main() -> None:
    """Measure and write the table."""
    args = new_parser(__doc__).parse_args()
    rows = []
    with threads_set(1):
        for size in SIZES:
            rows.append(one_size(size))
            print(rows[-1])
    write_csv(args.out / "classical_cost.csv", rows)


def one_size(size: int) -> dict[str, float]:
    """Seconds of a stage for data of `size` coordinates, one row of them."""
    backend = kernels.get_backend("cpu", "cpu")
    runs = {}
    for name, process in (("cld", cldfast.CLD()), ("vp", VP())):
        pairs = size if name == "cld" else size // 2
        table = plan_tables(cldfast.make_plan(process, "em", 10))[4]
        u = torch.randn(1, 2 * pairs)
        output = torch.randn(1, pairs if name == "cld" else 2 * pairs)
        runs[name] = (u, output, table)
    calls = max(1, 2_000_000 // size)
    samples: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(ROUNDS):
        for name, (u, output, table) in runs.items():
            backend.stage(u, (output,), (), table, kernels.NoiseAddress(1), out=u)
            begin = time.perf_counter()
            for index in range(calls):
                backend.stage(u, (output,), (), table, kernels.NoiseAddress(1, 0, index), out=u)
            samples[name].append((time.perf_counter() - begin) / calls)
            u.normal_()
    cld, vp = (float(np.median(samples[name])) for name in ("cld", "vp"))
    # Of each round, for the machine drifts.
    ratio = float(np.median(np.array(samples["vp"]) / np.array(samples["cld"])))
    return {"coordinates": size, "cld_seconds": cld, "vp_seconds": vp, "ratio": ratio}


if __name__ == "__main__":
    main()
