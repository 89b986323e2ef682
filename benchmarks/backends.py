"""Other codebases' own samplers and losses beside cldfast's replacements under them.

    CLDFAST_UPSTREAM=~/checkouts python benchmarks/backends.py             # every case there is
    CLDFAST_UPSTREAM=~/checkouts python benchmarks/backends.py CLD-SGM     # one codebase

CLDFAST_UPSTREAM names a folder with checkouts under their repositories' names. Each case is one
unmodified call of the codebase, with its own functions and with those that `install()` puts in
their place, on the same network, in interleaved rounds of one process; a line is a ratio of
medians. Lines of codebases that were not run are kept in `results/backends.csv`.
"""

from __future__ import annotations

import csv
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import backends_psld
import backends_strasman
import torch
import upstream_cld_sgm
from checkouts import missing
from output import RESULTS, new_parser, write_csv

from cldfast.bench.results import processor

Call = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """name: of the line. mode: of the replacement. published, replaced: the same call, without and
    with it. rounds: samples of each. target: the ratio asked for, or 0."""

    name: str
    mode: str
    published: Call
    replaced: Call
    rounds: int
    target: float = 0.0


Cases = Callable[[], AbstractContextManager[list[Case]]]


@contextmanager
def cld_sgm() -> Iterator[list[Case]]:
    """nv-tlabs/CLD-SGM: SSCS on its toy network and around a trivial one, and its loss."""
    from cldfast.compat import cld_sgm as compat

    with upstream_cld_sgm.opened() as theirs:
        toy = upstream_cld_sgm.options(n_discrete_steps=500)
        net = upstream_cld_sgm.network(theirs, toy)
        image = upstream_cld_sgm.options(is_image=True, n_discrete_steps=30)
        shape = (1024, 3, 32, 32)
        output = torch.randn(shape)

        class Trivial(torch.nn.Module):
            """A network that costs nothing, so that the integrator alone is timed."""

            def forward(self, u: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
                return output

        def sampling(config, size, model):  # type: ignore[no-untyped-def]
            sde = upstream_cld_sgm.process(theirs, config)
            function = theirs.sampling.get_sampling_fn(config, sde, size, 1e-3)
            return lambda: function(model)

        def loss(config, x, model):  # type: ignore[no-untyped-def]
            sde = upstream_cld_sgm.process(theirs, config)
            function = theirs.losses.get_loss_fn(sde, True, config)
            return lambda: function(model, x)

        def pair(make, *arguments, mode="exact"):  # type: ignore[no-untyped-def]
            published = make(*arguments)
            with compat.installed(mode):
                return published, make(*arguments)

        calls = {
            "SSCS, toy MLP, 512 x 2, 500 steps": (sampling, toy, (512, 2), net),
            "SSCS, trivial network, 1024 x 3x32x32, 30 steps": (sampling, image, shape, Trivial()),
            "HSM loss, toy MLP, 512 x 2": (loss, toy, torch.randn(512, 2), net),
            "HSM loss, trivial network, 1024 x 3x32x32": (loss, image, output, Trivial()),
        }
        rounds = dict(zip(calls, (7, 5, 101, 7), strict=True))
        # The targets are for what install() does by default.
        targets = dict(zip(calls, (2.0, 30.0, 0.0, 0.0), strict=True))
        yield [
            Case(
                name,
                mode,
                *pair(*call, mode=mode),
                rounds[name],
                targets[name] if mode == "exact" else 0.0,
            )  # fmt: skip
            for name, call in calls.items()
            for mode in ("exact", "published")
        ]


@contextmanager
def strasman() -> Iterator[list[Case]]:
    """StanislasStrasman/CLD: both samplers, for a velocity score and for both scores."""
    yield list(_pairs(backends_strasman.speed()))


@contextmanager
def psld() -> Iterator[list[Case]]:
    """mandt-lab/PSLD: Euler-Maruyama and SSCS, one and two noises, both factors."""
    yield list(_pairs(backends_psld.speed()))


def _pairs(contests: Iterable[tuple[str, dict[str, Call]]]) -> Iterator[Case]:
    """The replacement in either mode beside the codebase's own call."""
    for name, calls in contests:
        toy = "toy" in name
        for mode in ("exact", "published"):
            target = (2.0 if toy else 30.0) if mode == "exact" else 0.0
            yield Case(name, mode, calls["theirs"], calls[mode], 5 if toy else 3, target)


CODEBASES: dict[str, Cases] = {"CLD-SGM": cld_sgm, "CLD": strasman, "PSLD": psld}


def measure(case: Case) -> tuple[float, float]:
    """Median seconds of the published and of the replaced call."""
    times: tuple[list[float], list[float]] = ([], [])
    for call in (case.published, case.replaced):
        call()  # first touch
    for _ in range(case.rounds):
        for call, kept in zip((case.published, case.replaced), times, strict=True):
            start = time.perf_counter()
            call()
            kept.append(time.perf_counter() - start)
    return statistics.median(times[0]), statistics.median(times[1])


def main() -> None:
    """Measure the chosen codebases and write their lines."""
    parser = new_parser(__doc__, RESULTS / "backends.csv")
    parser.add_argument("codebases", nargs="*", metavar="codebase", help=", ".join(CODEBASES))
    arguments = parser.parse_args()
    chosen = arguments.codebases or list(CODEBASES)
    unknown = sorted(set(chosen) - set(CODEBASES))
    if unknown:
        parser.error(f"unknown codebase {unknown[0]}; expected one of {', '.join(CODEBASES)}")
    rows: list[dict[str, object]] = []
    for name in chosen:
        reason = missing(name)
        if reason:
            print(f"{name}: left out, {reason}")
            continue
        with CODEBASES[name]() as cases:
            for case in cases:
                published, replaced = measure(case)
                ratio = published / replaced
                row = {
                    "codebase": name, "case": case.name, "mode": case.mode,
                    "published_s": f"{published:.6g}", "cldfast_s": f"{replaced:.6g}",
                    "ratio": f"{ratio:.3g}", "target": str(case.target or ""),
                    "rounds": case.rounds, "threads": torch.get_num_threads(),
                    "device": processor(), "torch": torch.__version__,
                    "date": time.strftime("%Y-%m-%d"),
                }  # fmt: skip
                rows.append(row)
                print(f"{name}: {case.name} [{case.mode}]: {ratio:.3g} times", flush=True)
    if not rows:
        return
    fresh = {row["codebase"] for row in rows}
    if arguments.out.exists():
        with arguments.out.open(encoding="utf-8", newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["codebase"] not in fresh] + rows
    write_csv(arguments.out, rows)


if __name__ == "__main__":
    main()
