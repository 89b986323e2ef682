"""The benchmark suite: baselines that are right, rows that survive the file, tables, targets."""

from __future__ import annotations

import argparse
import csv
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from cldfast import bench, kernels
from cldfast.bench import contestants as names
from cldfast.bench.__main__ import _main as table_command
from cldfast.bench.baselines import MergedEager, PublishedSteps, published_sample
from cldfast.bench.cases import (
    CASES,
    COPY,
    EM,
    LARGE,
    NOISE_FREE,
    OPERATIONS,
    POINTS,
    RANDN,
    RUN_CASES,
    SSCS,
    TOY,
    WIDE,
    Case,
    Inputs,
    RunCase,
    _constant,
    stage_weights,
)
from cldfast.bench.contestants import COMPILED, contestants
from cldfast.bench.measure import measure_case, measure_run, measure_steady
from cldfast.bench.memory import AllocationRecord, allocated_peak, resident_peak
from cldfast.bench.report import Results, checks, summary
from cldfast.bench.results import COLUMNS, Environment, Row, environment, read_csv, write_csv
from cldfast.bench.tables import markdown, with_table
from cldfast.bench.timing import Effort, interleaved, takes_part
from cldfast.planner.make_plan import make_plan
from cldfast.process.sde import CLD

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "cpu.csv"
TINY = Effort(rounds=3, sample=1e-6, budget=1e-6)
needs_core = pytest.mark.skipif(
    bool(kernels.missing_backend("cpu")), reason="the compiled core is missing"
)


# --- what is compared does what it says ----------------------------------------------------------


def scalar(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


@pytest.mark.parametrize("a", [2.0, 0.7])
def test_published_half_step_is_the_reversed_transition(
    a: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    sde = CLD(a=a, beta=3.0)
    dt = 0.05
    exact = sde.reversed_transition(np.array([3.0 * dt]))
    # With unit vectors for the state and for the noise, the step shows its matrices.
    u, z = torch.eye(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64)
    monkeypatch.setattr(torch, "randn_like", lambda like: torch.zeros_like(like))
    step = PublishedSteps(sde).half_step
    np.testing.assert_allclose(step(u, scalar(0.5), scalar(dt)).T, exact.phi[0], rtol=1e-12)
    monkeypatch.setattr(torch, "randn_like", lambda like: z)
    factor = step(torch.zeros_like(u), scalar(0.5), scalar(dt)).T
    np.testing.assert_allclose(factor, exact.factor[0], rtol=1e-5, atol=1e-9)


def test_published_kick_is_the_unmerged_stage() -> None:
    sde = CLD()
    stage = make_plan(sde, "sscs", steps=10, grid="linear", merge=False).stages[1]
    u, score = torch.randn(5, 2, dtype=torch.float64), torch.randn(5, 1, dtype=torch.float64)
    assert stage.evaluates
    dt = (sde.T - 1e-3) / 10
    expected = u @ torch.from_numpy(stage.P).T + score @ torch.from_numpy(stage.E[0]).T
    torch.testing.assert_close(
        PublishedSteps(sde).kick(u, score, scalar(0.5), scalar(dt)), expected
    )


def test_published_em_is_the_em_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    sde = CLD()
    plan = make_plan(sde, "em", steps=10, grid="linear")
    matrix = torch.from_numpy(plan.stages[4].matrix())
    t, dt = plan.grid[4], plan.grid[4] - plan.grid[5]
    u, score, z = (torch.randn(6, k, dtype=torch.float64) for k in (2, 1, 2))
    monkeypatch.setattr(torch, "randn_like", lambda like: z)
    got = PublishedSteps(sde).em(u, score, scalar(t), scalar(dt))
    torch.testing.assert_close(got, torch.cat((u, score, z), dim=1) @ matrix.T)


@pytest.mark.parametrize("shape", [(7, 3), (2, 3, 4, 4)])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_merged_eager_is_the_stage(operation: str, shape: tuple[int, ...]) -> None:
    inputs = Inputs(shape)
    merged = MergedEager(stage_weights(operation), inputs.u)
    first = inputs.u.clone()
    merged(inputs.u, inputs.output)
    noise = torch.cat([torch.zeros(shape) if z is None else z for z in merged.noise], dim=1)
    weights = stage_weights(operation)
    expected, _, _ = kernels.stage(first, (inputs.output,), weights=weights, noise=noise)
    torch.testing.assert_close(inputs.u, expected)


def test_a_repeated_stage_stays_in_range() -> None:
    for operation in OPERATIONS:
        state = stage_weights(operation)[0, :, :2].numpy()
        assert np.abs(np.linalg.eigvals(state)).max() < 1.0


def test_published_loop_samples_like_the_plan() -> None:
    # A zero-mean Gaussian is closed under all three parts, so the law of x follows from the plan.
    sde = CLD()
    plan = make_plan(sde, "sscs", steps=20)
    law = plan.gaussian_law(data_mean=0.0, data_var=1.0)

    def score(u: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        kernel = sde.marginal(float(t[0]))
        precision = np.linalg.inv(np.outer(kernel.mean, kernel.mean) + kernel.cov)
        return -(precision[1, 0] * u[:, :1] + precision[1, 1] * u[:, 1:])

    torch.manual_seed(0)
    x = published_sample(PublishedSteps(sde), score, (20_000, 1), plan.grid.tolist())
    # Published SSCS takes times at the start of a step, so the laws differ by the step's order.
    assert float(x.var()) == pytest.approx(float(law.cov[0, 0]), rel=0.05)


def test_contestants_all_run_and_are_told_apart() -> None:
    found = contestants(Inputs((5, 2)), compiled=False)
    for contestant in found:
        contestant.call()
    keys = [(c.name, c.operation, c.level) for c in found]
    assert len(set(keys)) == len(keys)
    fused = {c.level for c in found if c.name == names.FUSED}
    assert fused == set(names.levels())


@pytest.mark.parametrize("rounds", [3, 7, 15])
def test_slow_contestants_are_spread_over_the_rounds(rounds: int) -> None:
    part = [takes_part(index, rounds, 15) for index in range(15)]
    assert sum(part) == rounds
    longest = max(len(gap) for gap in "".join("x" if p else "." for p in part).split("x"))
    assert longest <= 15 // rounds


def test_rounds_interleave_contestants_and_thread_counts() -> None:
    order: list[tuple[str, int]] = []
    calls = [lambda n=name: order.append((n, torch.get_num_threads())) for name in "ab"]
    before = torch.get_num_threads()
    timings = interleaved(calls, (1, 2), Effort(rounds=3, sample=0.0, budget=1.0))
    assert torch.get_num_threads() == before
    assert [len(t.samples) for row in timings for t in row] == [3] * 4
    changes = [entry for i, entry in enumerate(order) if i == 0 or entry != order[i - 1]]
    assert changes == [("a", 1), ("a", 2), ("b", 1), ("b", 2)] * 4  # calibration and three rounds


def test_memory_measures_see_an_allocation(capfd: pytest.CaptureFixture[str]) -> None:
    size = 32 * 2**20
    like = torch.zeros(size // 4)
    assert allocated_peak(lambda: like.clone()) == size
    assert allocated_peak(lambda: like.add_(like)) == 0
    resident = resident_peak(lambda: like.clone())
    assert resident is None or abs(resident - size) < 2 * 2**20
    assert capfd.readouterr().err == ""  # the profiler's notes stay inside


def test_allocations_that_reuse_memory_count_in_the_total() -> None:
    like, record = torch.zeros(1000), AllocationRecord()
    record.start()
    for _ in range(3):
        like.clone()
    record.stop()
    assert record.peak == 4000 and record.total == 12_000
    record.stop()  # once more does nothing


@needs_core
def test_a_run_takes_no_memory_after_its_first_step() -> None:
    row = measure_steady((100_000, 2), 50)
    assert row.allocated_bytes == 0
    assert row.resident_bytes is None or row.resident_bytes < 2**20


# --- rows, files, tables -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny_rows() -> list[Row]:
    """Every section at sizes that take a moment."""
    case = Case(TOY, (4, 2), (4, 2))
    rows = measure_case(case, (1, 2), quick=True, effort=TINY)
    run = RunCase("sample-1024x64", (3, 2), 2, (3, 2), 2, _constant, "a test")
    return [*rows, *measure_run(run, quick=True), measure_steady((50, 2), 3, quick=True)]


def test_rows_are_complete(tiny_rows: list[Row]) -> None:
    stages = [row for row in tiny_rows if row.section == "stage"]
    assert {row.threads for row in stages} == {1, 2}
    for row in stages:
        assert row.seconds > 0 and row.rounds == 3 and row.calls >= 1
        assert row.seconds_q1 is not None and row.seconds_q3 is not None
        assert row.seconds_q1 <= row.seconds <= row.seconds_q3
        assert row.ns_per_pair == pytest.approx(row.seconds * 1e9 / 8)
        assert row.copy_share is not None and row.copy_share > 0
        assert (row.allocated_bytes is not None) == (row.threads == 2)
        if row.operation == COPY:
            assert row.copy_share == 1.0
    (noisy,) = (r for r in stages if (r.contestant, r.threads) == (names.RANDN_LIKE, 2))
    assert noisy.allocated_bytes == 4 * 2 * 2 * 4
    for row in tiny_rows:
        if row.section == "sampling":
            assert row.network_seconds is not None and row.integrator_seconds is not None
            assert 0 < row.integrator_seconds < row.seconds * 1.5


def test_csv_round_trip(tiny_rows: list[Row], tmp_path: Path) -> None:
    path, where = tmp_path / "a.csv", environment()
    write_csv(path, where, tiny_rows)
    again, rows = read_csv(path)
    assert again == where and len(rows) == len(tiny_rows)
    for got, row in zip(rows, tiny_rows, strict=True):
        for name in ("case", "quick", "contestant", "level", "threads", "allocated_bytes"):
            assert getattr(got, name) == getattr(row, name)
        assert got.seconds == pytest.approx(row.seconds, rel=1e-4)
    with open(path, newline="") as file:
        assert tuple(next(csv.reader(file))) == COLUMNS
    assert [p.name for p in tmp_path.iterdir()] == ["a.csv"]  # no temporary file stays


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", "expected the columns"),
        (",".join(COLUMNS) + "\n", "at least one row"),
        (",".join(COLUMNS) + "\n" + ",".join("?" for _ in COLUMNS) + "\n", "must be a number"),
    ],
)
def test_bad_csv(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_csv(path)


WHERE = Environment("2026-01-01", "a processor", 2, "avx512", "3.11", "2.13", "2.4", "0.1")


def stage_row(
    case: str, contestant: str, operation: str, seconds: float, threads: int = 2, level: str = "",
    share: float | None = None,
) -> Row:  # fmt: skip
    shape = CASES[case].shape
    return Row(
        "stage", case, "x".join(map(str, shape)), int(np.prod(shape)), False, operation, contestant,
        level, threads, 15, 1, seconds, seconds, seconds, seconds * 1e9 / np.prod(shape), 1.0, share,
    )  # fmt: skip


def good_rows() -> list[Row]:
    """A run in which every target is met."""
    large = int(np.prod(CASES[LARGE].shape))
    per_pair = {level: ns * 1e-9 for level, ns in (("avx512", 1.0), ("avx2", 2.0))}
    rows = [
        stage_row(LARGE, names.FUSED, SSCS, large * s, 2, level) for level, s in per_pair.items()
    ]
    rows += [
        stage_row(LARGE, names.FUSED, SSCS, large * 1.9e-9, 1, "avx512"),
        stage_row(LARGE, names.FUSED, NOISE_FREE, large * 0.4e-9, 2, "avx512", 0.9),
        stage_row(LARGE, names.FUSED, EM, large * 0.8e-9, 2, "avx512"),
        stage_row(LARGE, names.RANDN_LIKE, RANDN, large * 7e-9),
        stage_row(LARGE, names.PUBLISHED, SSCS, large * 70e-9),
        stage_row(POINTS, names.FUSED, SSCS, 2e6 * 1.5e-9, 2, "avx512"),
        stage_row(WIDE, names.FUSED, SSCS, 5e6 * 1.5e-9, 2, "avx512"),
        stage_row(TOY, names.PUBLIC_OP, SSCS, 6e-6, 2, "avx512"),
        stage_row(TOY, names.PUBLISHED, SSCS, 2e-4),
    ]
    run = replace(
        rows[0], section="sampling", case="sample-1024x64", evaluations=50, network_seconds=0.0
    )
    rows += [
        replace(run, contestant=names.FUSED, seconds=0.01, integrator_seconds=0.01),
        replace(run, contestant=names.REFERENCE, seconds=0.5, integrator_seconds=0.5),
        replace(
            run, section="steady", case=bench.ALL_CASES[-1], allocated_bytes=0, resident_bytes=4096
        ),
    ]
    return rows


def test_targets_met() -> None:
    found = checks(Results(WHERE, good_rows()))
    assert [check.met for check in found] == [True] * 9
    text = summary(Results(WHERE, good_rows()))
    assert "NOT MET" not in text and "7.0x" in text


def test_targets_missed_and_not_measured() -> None:
    slow = [replace(row, seconds=row.seconds * 20) if i == 0 else row
            for i, row in enumerate(good_rows())]  # fmt: skip
    text = summary(Results(WHERE, slow))
    assert text.count("NOT MET") >= 3
    only = [stage_row(TOY, names.PUBLIC_OP, SSCS, 9e-6)]
    found = checks(Results(WHERE, only))
    assert [check.met for check in found].count(None) == 8
    assert [check.met for check in found].count(False) == 1


def test_memory_target_counts_both_measures() -> None:
    for change in ({"allocated_bytes": 8}, {"resident_bytes": 2**24}):
        rows = good_rows()
        rows[-1] = replace(rows[-1], **change)
        (check,) = (c for c in checks(Results(WHERE, rows)) if "memory" in c.what)
        assert check.met is False


def test_markdown() -> None:
    text = markdown(WHERE, good_rows())
    lines = text.splitlines()
    assert "a processor, avx512" in lines[0]
    tables = [line for line in lines if line.startswith("|")]
    assert len({line.count("|") for line in tables}) <= 3  # columns line up within each table
    (large,) = (line for line in tables if line.startswith("| 4096x3x32x32 |"))
    assert large.split("|")[2:5] == [" 1.00 ", " 0.80 ", " 0.40 "]
    assert "| avx2 | 2.00 |" in text and "6.0 us" in text


def test_table_command(
    tiny_rows: list[Row], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, document = tmp_path / "a.csv", tmp_path / "R.md"
    begin, end = "<!-- speed:begin -->", "<!-- speed:end -->"
    write_csv(source, WHERE, tiny_rows)
    document.write_text(f"before\n{begin}\nold\n{end}\nafter\n")
    for _ in range(2):  # twice is as once
        assert table_command([str(source), str(document)]) == 0
        table = markdown(*read_csv(source)).strip()
        assert document.read_text() == f"before\n{begin}\n\n{table}\n\n{end}\nafter\n"
    document.write_text("no markers")
    assert table_command([str(source), str(document)]) == 2
    assert table_command([str(tmp_path / "none.csv"), str(document)]) == 2
    assert table_command([]) == 2
    assert document.read_text() == "no markers"
    assert "markers" in capsys.readouterr().err


def test_the_table_is_that_of_the_committed_results() -> None:
    if not RESULTS.exists():
        pytest.skip("no results are committed yet (benchmarks/results/cpu.csv)")
    text = (ROOT / "docs" / "speed.md").read_text(encoding="utf-8")
    expected = with_table(text, markdown(*read_csv(RESULTS)))
    assert text == expected, "run python -m cldfast.bench benchmarks/results/cpu.csv docs/speed.md"


def test_cases_do_not_share_compiled_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each case compiles the published steps for its own shape, whatever the number of cases."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    with torch._dynamo.config.patch(recompile_limit=1):
        for rows in (3, 4, 5):
            for contestant in contestants(Inputs((rows, 2))):
                if contestant.name == COMPILED:
                    contestant.call()


# --- the command ---------------------------------------------------------------------------------


def arguments(**values: object) -> argparse.Namespace:
    given = {"quick": True, "threads": 1, "out": None, "cases": None} | values
    return argparse.Namespace(**given)


def test_quick_run_writes_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "results"
    assert bench.main(arguments(out=str(out), cases=[TOY])) == 0
    stem = "cpu-quick-part"
    assert sorted(p.name for p in out.iterdir()) == [f"{stem}.csv", f"{stem}.md", f"{stem}.png"]
    where, rows = read_csv(out / f"{stem}.csv")
    assert where.torch == torch.__version__ and {row.case for row in rows} == {TOY}
    assert (out / f"{stem}.md").read_text() == markdown(where, rows)
    printed = capsys.readouterr()
    assert "Targets" in printed.out and "64x2" in printed.err


def test_out_may_be_a_csv_file(tmp_path: Path) -> None:
    case = next(iter(RUN_CASES))
    bench.main(arguments(out=tmp_path / "mine.csv", cases=[case]))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine.csv", "mine.md"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"cases": ["65x2"]}, "unknown case '65x2'; expected some of 1x3x256x256, 64x2"),
        ({"threads": 0}, "threads must be at least 1"),
        ({"out": "/nowhere/at/all"}, "does not exist"),
    ],
)
def test_bad_arguments(values: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        bench.main(arguments(**({"out": tmp_path / "r"} | values)))
    assert list(tmp_path.iterdir()) == []
