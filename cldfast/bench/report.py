"""What the numbers say: look-ups in the rows of a run, and the speed targets one by one."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from cldfast.bench import contestants as names
from cldfast.bench.cases import INTEGRATOR, LARGE, NOISE_FREE, POINTS, RANDN, SSCS, TOY, WIDE
from cldfast.bench.results import SAMPLING, STAGE, STEADY, Environment, Row

# The resident set is counted in batches of pages; less than this is nothing.
_RESIDENT_RESOLUTION = 2**20
_SIGNS = {">=": operator.ge, "<=": operator.le, "<": operator.lt}


@dataclass(frozen=True, slots=True)
class Check:
    """A target, its measured value, and whether it is met; `met` is None if not measured."""

    what: str
    target: str
    measured: str
    met: bool | None


class Results:
    """Look-ups in the rows of one run; `threads` is the largest count, `level` the core's own."""

    def __init__(self, where: Environment, rows: Sequence[Row]) -> None:
        self.where, self.rows = where, tuple(rows)
        counts = {row.threads for row in rows if row.section == STAGE} or {r.threads for r in rows}
        self.threads, self.fewest = max(counts), min(counts)
        self.quick = any(row.quick for row in rows)
        self.levels = tuple(
            dict.fromkeys(row.level for row in rows if row.contestant == names.FUSED and row.level)
        )

    def find(self, **columns: object) -> Row | None:
        """The first row with these values in these columns."""
        for row in self.rows:
            if all(getattr(row, name) == value for name, value in columns.items()):
                return row
        return None

    def stage(
        self, case: str, contestant: str, operation: str, threads: int = 0, level: str = ""
    ) -> Row | None:
        """The row of a stage; level "" is the core's own for the fused kernel."""
        of_level = {"level": level or self.where.simd} if contestant == names.FUSED else {}
        return self.find(
            section=STAGE, case=case, contestant=contestant, operation=operation,
            threads=threads or self.threads, **of_level,
        )  # fmt: skip

    def run(self, case: str, contestant: str) -> Row | None:
        """The row of a whole run."""
        return self.find(section=SAMPLING, case=case, contestant=contestant)


def checks(results: Results) -> list[Check]:
    """Each speed target with its verdict: the fused kernel against others in one run.

    Verdicts are for the larger thread count and the core's own SIMD level. A quick run has sizes
    that the targets are not for.
    """

    def check(
        what: str, sign: str, bound: float, unit: str, digits: int, value: float | None
    ) -> Check:
        target = f"{sign} {bound:g}{unit}"
        if value is None:
            return Check(what, target, "not measured", None)
        return Check(what, target, f"{value:.{digits}f}{unit}", _SIGNS[sign](value, bound))

    fused = partial(results.stage, contestant=names.FUSED)
    large, quiet = fused(LARGE, operation=SSCS), fused(LARGE, operation=NOISE_FREE)
    randn = results.stage(LARGE, names.RANDN_LIKE, RANDN)
    published = results.stage(LARGE, names.PUBLISHED, SSCS)
    call = results.stage(TOY, names.PUBLIC_OP, SSCS)
    one = None
    if results.fewest < results.threads:
        one = fused(LARGE, operation=SSCS, threads=results.fewest)
    noisy = f"{LARGE}: noisy stage"
    return [
        check(f"{noisy} against {names.RANDN_LIKE}", ">=", 6.0, "x", 1, _ratio(randn, large)),
        check(
            f"{noisy} against {names.PUBLISHED} SSCS step", ">=", 60.0, "x", 1,
            _ratio(published, large),
        ),
        check(
            f"{LARGE}: noise-free stage, in place, share of the copy_ bandwidth",
            ">=", 0.8, "", 2, None if quiet is None else quiet.copy_share,
        ),
        *(
            check(
                f"{case}: noisy stage, cost of a pair against {LARGE}", "<=", 1.7, "x", 2,
                _ratio(fused(case, operation=SSCS), large, "ns_per_pair"),
            )
            for case in (POINTS, WIDE)
        ),
        check(
            f"{TOY}: a call of cldfast.stage", "<", 8.0, " us", 1,
            None if call is None else 1e6 * call.seconds,
        ),
        check(
            f"{noisy}, {results.fewest} to {results.threads} threads", ">=", 1.85, "x", 2,
            _ratio(one, large),
        ),
        _steady(results),
        check(
            "1024x64: integrator time of a run against the reference", ">=", 10.0, "x", 1,
            _ratio(
                results.run(INTEGRATOR, names.REFERENCE), results.run(INTEGRATOR, names.FUSED),
                "integrator_seconds",
            ),
        ),
    ]  # fmt: skip


def _ratio(over: Row | None, under: Row | None, column: str = "seconds") -> float | None:
    above, below = getattr(over, column, None), getattr(under, column, None)
    return None if above is None or not below else above / below


def _steady(results: Results) -> Check:
    row = results.find(section=STEADY)
    if row is None or row.allocated_bytes is None:
        return Check("a run takes no memory after its first step", "0 bytes", "not measured", None)
    resident = row.resident_bytes or 0
    return Check(
        f"{row.shape}, {row.evaluations} steps: memory taken after the first step", "0 bytes",
        f"{row.allocated_bytes} bytes allocated"
        + ("" if row.resident_bytes is None else f", resident set +{resident / 2**20:.2f} MiB"),
        row.allocated_bytes == 0 and resident < _RESIDENT_RESOLUTION,
    )  # fmt: skip


def summary(results: Results) -> str:
    """The targets as lines of text."""
    lines = [f"Targets ({results.threads} threads, {results.where.simd}):"]
    if results.quick:
        lines.append("  a quick run: sizes are smaller than those that the targets are for")
    words = {True: "met", False: "NOT MET", None: "-"}
    lines += [
        f"  {words[check.met]:8}{check.what}: {check.measured} (target {check.target})"
        for check in checks(results)
    ]
    return "\n".join(lines)
