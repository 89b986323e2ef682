"""One network under many processes: what does the phase space itself bring?

An `edm` network sees y and the noise level alone, so that the same weights can be sampled by CLD,
PSLD, VP, VE and flow matching, deterministically and with noise. Where training is the same, what
is left is the process. One network on the Funnel (d = 20) and one on the digits, standardised, and
every run ends at the same noise level.

    python benchmarks/one_network_study.py                    # CSV; networks in runs/one_network
    python benchmarks/one_network_study.py --data funnel --trainings 1 --steps 100 --out try.csv

`sliced_w2` to fresh data in their units, by the number of evaluations; the floor is that of exact
samples. `prior_sd` is the noise level from which a process starts.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from learning_study import (
    DATA,
    DIGITS_DRAWN,
    DRAWN,
    PROJECTIONS,
    REFERENCE,
    ROWS,
    Recipe,
    network,
    train,
)
from output import RESULTS, new_parser, write_csv
from torch import Tensor, nn

import cldfast
from cldfast.classical import VE, VP, FlowMatching
from cldfast.files import read_tensors, write_tensors
from cldfast.lab.data import Digits, make_data
from cldfast.lab.metrics import sliced_w2
from cldfast.process.noise_level import noise_level
from cldfast.training.data_scale import DataScale

NETWORKS = RESULTS.parents[1] / "runs" / "one_network"
EVALUATIONS = (5, 8, 10, 15, 20, 30, 50)
# Samples end at this noise level, 1 % of the standard deviation of the data.
LAST_SIGMA = 0.01
# The process of training: its noise levels, 1e-3 to 300, hold those of all others.
TRAINED = cldfast.CLD()
PROCESSES: dict[str, Any] = {
    "CLD, a = 2": TRAINED,
    "CLD, a = 1": cldfast.CLD(a=1.0),
    "CLD, a = 1, x_noise 0.25": cldfast.CLD(a=1.0, x_noise=0.25),
    "PSLD": cldfast.PSLD(),
    "VP": VP(),
    "VE": VE(0.005, 50.0),
    "flow matching": FlowMatching(0.99),
}
SOLVERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ODE": ("multistep", {"order": 3}),
    "SDE": ("stochastic_multistep", {"order": 2}),
}


def trained(data: str, rows: Tensor, steps: int, seed: int) -> nn.Module:
    """The averaged network of a training, kept as a file."""
    recipe = Recipe("edm", reference=REFERENCE)
    path = NETWORKS / f"{data}-{steps}-{seed}.safetensors"
    net = network(recipe, TRAINED, rows)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        average, _, _ = train(recipe, TRAINED, rows, steps, seed)
        write_tensors(path, dict(average.state_dict()))
    net.load_state_dict(read_tensors(path)[0])
    return net.eval()


def last_time(process: Any) -> float:
    """The time at which a process has the last noise level."""
    return float(noise_level(process).time(np.log(np.array([LAST_SIGMA])))[0])


def main() -> None:
    parser = new_parser(__doc__, RESULTS / "one_network_study.csv")
    parser.add_argument("--data", nargs="+", default=["funnel", "digits"], choices=list(DATA))
    parser.add_argument("--trainings", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=2, help="of sampling")
    parser.add_argument("--steps", type=int, help="training steps, for a trial")
    args = parser.parse_args()
    table: list[dict[str, Any]] = []
    for data in args.data:
        dim, steps = DATA[data]
        source = make_data(data, dim)
        if isinstance(source, Digits):
            rows, fresh, exact, drawn = source.train_x, source.test_x, source.train_x, DIGITS_DRAWN
        else:
            rows, drawn = source.sample(ROWS, seed=0), DRAWN
            fresh, exact = source.sample(DRAWN, seed=100), source.sample(DRAWN, seed=99)
        scale = DataScale.fit(rows)
        floor = sliced_w2(exact.flatten(1), fresh.flatten(1), PROJECTIONS)
        for training in range(args.trainings):
            net = trained(data, scale.standardise(rows), args.steps or steps, training)
            for name, process in PROCESSES.items():
                t_min = last_time(process)
                first = float(np.exp(noise_level(process).log_sigma(process.T)))
                for kind, (solver, options) in SOLVERS.items():
                    for evaluations in EVALUATIONS:
                        for seed in range(args.seeds):
                            with torch.no_grad():
                                x = cldfast.sample(
                                    net, process, (drawn, *rows.shape[1:]), solver, evaluations,
                                    "logistic", t_min=t_min, parameterization="edm", seed=seed,
                                    **options,
                                )  # fmt: skip
                            x = scale.restore(x)
                            w2 = sliced_w2(x.flatten(1), fresh.flatten(1), PROJECTIONS)
                            table.append(
                                {
                                    "data": data, "training": training, "process": name,
                                    "kind": kind, "evaluations": evaluations, "seed": seed,
                                    "sliced_w2": w2, "floor": floor,
                                    "prior_sd": first,
                                    "steps": args.steps or steps,
                                }
                            )  # fmt: skip
                print(f"{data} {training} {name}", file=sys.stderr)
            write_csv(Path(args.out), table)


if __name__ == "__main__":
    main()
