"""Fuzz one target: by atheris where it is installed (extra `fuzz`), else by random bytes.

    python -m fuzz config --runs 1000000

A crash, two seconds for one input or a gibibyte of memory end it with an exit code other than 0.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

SECONDS, MEBIBYTES = 2, 1024
# The modules whose branches lead atheris.
_READERS = [
    "cldfast.files", "cldfast.model.run_folder", "cldfast.planner.plan",
    "cldfast.planner.plan_file", "cldfast.process.sde", "cldfast.process.schedules",
    "cldfast.app.options", "cldfast.app.process_options", "cldfast.app.commands.sample",
]  # fmt: skip


def by_atheris(name: str, runs: int, seconds: int, out: str) -> None:
    import atheris

    with atheris.instrument_imports(include=_READERS):
        from fuzz.targets import CORPUS, TARGETS
    # By the clock of the wall, which a busy machine stops: seconds of this process are counted too.
    limits = ["-timeout=60", f"-rss_limit_mb={MEBIBYTES}", f"-artifact_prefix={out}/"]
    ends = [f"-runs={runs}", f"-max_total_time={seconds}", "-print_final_stats=1"]
    # New inputs go to the first folder, which is not the project's own.
    one = partial(_timed, TARGETS[name])
    atheris.Setup([sys.argv[0], *limits, *ends, out, str(CORPUS / name)], one)
    atheris.Fuzz()


def _timed(one: Callable[[bytes], None], data: bytes) -> None:
    """Try one input; TimeoutError where it takes too long."""
    start = time.process_time()
    one(data)
    if time.process_time() - start > SECONDS:
        raise TimeoutError(f"over {SECONDS} s for {data!r}")


def by_chance(name: str, runs: int, seconds: int, seed: int = 0) -> int:
    """The inputs of the corpus, then as many random strings; returns how many were tried."""
    from fuzz.targets import TARGETS, files

    draw, one, known = random.Random(seed), TARGETS[name], files(name)
    end = time.monotonic() + seconds if seconds else float("inf")
    for tried in range(runs):
        if tried < len(known):
            data = known[tried]
        elif tried % 4:
            data = draw.randbytes(draw.randrange(32))
        else:  # a text of the corpus with some bytes changed
            text = bytearray(draw.choice(known))
            for _ in range(draw.randrange(1, 6)):
                text[draw.randrange(len(text))] = draw.randrange(256)
            data = bytes(text)
        try:
            _timed(one, data)
        except BaseException:
            print(f"{name}: {data!r}", file=sys.stderr)
            raise
        if time.monotonic() > end:
            break
    return tried + 1


def main() -> None:
    kind = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="fuzz", description=__doc__, formatter_class=kind)
    parser.add_argument("target", choices=("config", "plan", "header", "arguments"))
    parser.add_argument("--runs", type=int, default=1_000_000, help="inputs (%(default)s)")
    parser.add_argument("--seconds", type=int, default=0, help="at most so long; 0: no limit")
    parser.add_argument("--out", help="folder for new inputs and crashes (a new one)")
    args = parser.parse_args()
    out = args.out or tempfile.mkdtemp(prefix=f"fuzz-{args.target}-")
    Path(out).mkdir(parents=True, exist_ok=True)
    if find_spec("atheris") is not None:
        by_atheris(args.target, args.runs, args.seconds, out)
    else:
        print("atheris is not installed (pip install 'cldfast[fuzz]'): random inputs", flush=True)
        print(by_chance(args.target, args.runs, args.seconds), "inputs")


if __name__ == "__main__":
    main()
