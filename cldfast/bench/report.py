"""What the numbers say: look-ups in the rows of a run, and the speed targets one by one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cldfast.bench import contestants as names
from cldfast.bench.cases import LARGE, NOISE_FREE, POINTS, RANDN, SSCS, TOY, WIDE
from cldfast.bench.results import SAMPLING, STAGE, STEADY, Environment, Row
from cldfast.bench.runs import INTEGRATOR

# Targets: fused against others in one run, at the larger thread count.
_OVER_RANDN, _OVER_PUBLISHED, _COPY_SHARE = 6.0, 60.0, 0.8
_PER_PAIR_LIMIT, _CALL_LIMIT, _SCALING = 1.7, 8e-6, 1.85
_INTEGRATOR_RATIO = 10.0
# The resident set is counted in batches of pages; less than this is nothing.
_RESIDENT_RESOLUTION = 2**20


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

    def stage(
        self, case: str, contestant: str, operation: str, threads: int = 0, level: str = ""
    ) -> Row | None:
        """The row of a stage; level "" is the core's own for the fused kernel."""
        if contestant == names.FUSED:
            level = level or self.where.simd
        for row in self.rows:
            if (
                (row.section, row.case, row.contestant) == (STAGE, case, contestant)
                and (row.operation, row.threads) == (operation, threads or self.threads)
                and (contestant != names.FUSED or row.level == level)
            ):
                return row
        return None

    def run(self, section: str, case: str, contestant: str) -> Row | None:
        """The row of a whole run."""
        for row in self.rows:
            if (row.section, row.case, row.contestant) == (section, case, contestant):
                return row
        return None

    def fused(self, case: str, operation: str, level: str = "") -> Row | None:
        """The row of the fused kernel, in place."""
        return self.stage(case, names.FUSED, operation, level=level)


def checks(results: Results) -> list[Check]:
    """Each speed target with its verdict. Sizes of a quick run are not those of the targets."""
    return [
        _times_faster(results, names.RANDN_LIKE, RANDN, _OVER_RANDN),
        _times_faster(results, names.PUBLISHED, SSCS, _OVER_PUBLISHED),
        _noise_free_bandwidth(results),
        *(_per_pair(results, case) for case in (POINTS, WIDE)),
        _call_cost(results),
        _scaling(results),
        _steady(results),
        _integrator(results),
    ]


def _seconds_ratio(over: Row | None, under: Row | None) -> float | None:
    return over.seconds / under.seconds if over is not None and under is not None else None


def _beside(results: Results, value: Callable[[str], float | None], form: str) -> str:
    """The same number at the other SIMD levels, in brackets."""
    others = [level for level in results.levels if level != results.where.simd]
    found = [(level, value(level)) for level in reversed(others)]
    text = ", ".join(f"{level} {form.format(v)}" for level, v in found if v is not None)
    return f" ({text})" if text else ""


def _check(what: str, target: str, value: float | None, form: str, met: bool, beside: str) -> Check:
    if value is None:
        return Check(what, target, "not measured", None)
    return Check(what, target, form.format(value) + beside, met)


def _times_faster(results: Results, contestant: str, operation: str, target: float) -> Check:
    other = results.stage(LARGE, contestant, operation)

    def ratio(level: str) -> float | None:
        return _seconds_ratio(other, results.fused(LARGE, SSCS, level))

    value, form = ratio(""), "{:.1f}x"
    step = " SSCS step" if contestant == names.PUBLISHED else ""
    return _check(
        f"{LARGE}: noisy stage against {contestant}{step}", f">= {target:g}x", value, form,
        value is not None and value >= target, _beside(results, ratio, form),
    )  # fmt: skip


def _noise_free_bandwidth(results: Results) -> Check:
    def share(level: str) -> float | None:
        row = results.fused(LARGE, NOISE_FREE, level)
        return None if row is None else row.copy_share

    value, form = share(""), "{:.0%}"
    beside = _beside(results, share, form)
    elsewhere = results.stage(LARGE, names.FUSED_OUT, NOISE_FREE)
    if elsewhere is not None and elsewhere.copy_share is not None:
        beside += f"; to other memory {elsewhere.copy_share:.0%}"
    return _check(
        f"{LARGE}: noise-free stage, in place, share of the copy_ bandwidth",
        f">= {_COPY_SHARE:.0%}", value, form, value is not None and value >= _COPY_SHARE, beside,
    )  # fmt: skip


def _per_pair(results: Results, case: str) -> Check:
    def ratio(level: str) -> float | None:
        row, large = results.fused(case, SSCS, level), results.fused(LARGE, SSCS, level)
        if row is None or large is None or row.ns_per_pair is None or large.ns_per_pair is None:
            return None
        return row.ns_per_pair / large.ns_per_pair

    value, form = ratio(""), "{:.2f}x"
    return _check(
        f"{case}: noisy stage, cost of a pair against {LARGE}", f"<= {_PER_PAIR_LIMIT:g}x", value,
        form, value is not None and value <= _PER_PAIR_LIMIT, _beside(results, ratio, form),
    )  # fmt: skip


def _call_cost(results: Results) -> Check:
    row = results.stage(TOY, names.PUBLIC_OP, SSCS)
    value = None if row is None else row.seconds
    published, plain = (
        results.stage(TOY, contestant, SSCS) for contestant in (names.PUBLISHED, names.REFERENCE)
    )
    beside = "".join(
        f"; {other.contestant} {other.seconds * 1e6:.0f} us"
        for other in (published, plain)
        if other is not None
    )
    return Check(
        f"{TOY}: a call of cldfast.stage", f"< {_CALL_LIMIT * 1e6:g} us",
        "not measured" if value is None else f"{value * 1e6:.1f} us{beside}",
        None if value is None else value < _CALL_LIMIT,
    )  # fmt: skip


def _scaling(results: Results) -> Check:
    def ratio(level: str) -> float | None:
        if results.threads == results.fewest:
            return None
        one = results.stage(LARGE, names.FUSED, SSCS, results.fewest, level)
        return _seconds_ratio(one, results.fused(LARGE, SSCS, level))

    value, form = ratio(""), "{:.2f}x"
    return _check(
        f"{LARGE}: noisy stage, {results.fewest} to {results.threads} threads",
        f">= {_SCALING:g}x", value, form, value is not None and value >= _SCALING,
        _beside(results, ratio, form),
    )  # fmt: skip


def _steady(results: Results) -> Check:
    row = next((r for r in results.rows if r.section == STEADY), None)
    if row is None or row.allocated_bytes is None:
        return Check("a run takes no memory after its first step", "0 bytes", "not measured", None)
    text = f"{row.allocated_bytes} bytes allocated"
    met = row.allocated_bytes == 0
    if row.resident_bytes is not None:
        text += f", resident set +{row.resident_bytes / 2**20:.2f} MiB"
        met = met and row.resident_bytes < _RESIDENT_RESOLUTION
    return Check(
        f"{row.shape}, {row.evaluations} steps: memory taken after the first step",
        "0 bytes", text, met,
    )  # fmt: skip


def _integrator(results: Results) -> Check:
    fused, plain, published = (
        results.run(SAMPLING, INTEGRATOR, contestant)
        for contestant in (names.FUSED, names.REFERENCE, names.PUBLISHED)
    )
    value = _integrator_ratio(plain, fused)
    against = _integrator_ratio(published, fused)
    beside = "" if against is None else f"; against published {against:.1f}x"
    return _check(
        "1024x64: integrator time of a run against the reference", f">= {_INTEGRATOR_RATIO:g}x",
        value, "{:.1f}x", value is not None and value >= _INTEGRATOR_RATIO, beside,
    )  # fmt: skip


def _integrator_ratio(over: Row | None, under: Row | None) -> float | None:
    if over is None or under is None:
        return None
    if over.integrator_seconds is None or not under.integrator_seconds:
        return None
    return over.integrator_seconds / under.integrator_seconds


def summary(results: Results) -> str:
    """The targets as lines of text."""
    lines = [f"Targets ({results.threads} threads, {results.where.simd}):"]
    if results.quick:
        lines.append("  a quick run: sizes are smaller than those that the targets are for")
    words = {True: "met", False: "NOT MET", None: "-"}
    for check in checks(results):
        lines.append(
            f"  {words[check.met]:8}{check.what}: {check.measured} (target {check.target})"
        )
    return "\n".join(lines)
