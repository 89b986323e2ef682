"""Plans written to files and read back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cldfast.planner.data_forms import DataPrediction, Preconditioned
from cldfast.planner.make_plan import make_plan
from cldfast.planner.parameterization import Parameterization
from cldfast.planner.plan import Plan
from cldfast.process.schedules import LinearBeta
from cldfast.process.sde import CLD

SDE = CLD(a=1.5, x_noise=0.25, beta=LinearBeta(2.0, 5.0))


def a_plan() -> Plan:
    return make_plan(SDE, "stochastic_multistep", 4, "auto", parameterization="mixed", order=3)


def test_a_plan_comes_back_bit_for_bit(tmp_path: Path) -> None:
    plan = a_plan()
    plan.save(tmp_path / "4.json", {"fitted": 0.25})
    read = Plan.load(tmp_path / "4.json", SDE, "mixed")
    for made, wanted in zip(read.matrices(), plan.matrices(), strict=True):
        assert np.array_equal(made, wanted)
    assert [(s.t, s.t_next) for s in read.stages] == [(s.t, s.t_next) for s in plan.stages]
    assert np.array_equal(read.grid, plan.grid) and read.sde.config() == SDE.config()
    for name in ("solver", "order", "parameterization", "guidance_term", "evaluations"):
        assert getattr(read, name) == getattr(plan, name)
    assert Plan.figures(tmp_path / "4.json") == {"fitted": 0.25}


@pytest.mark.parametrize(
    ("sde", "parameterization", "words"),
    [
        (CLD(a=1.5, x_noise=0.25), "mixed", "another process"),
        (CLD(a=1.5, beta=LinearBeta(2.0, 5.0)), "mixed", "another process"),
        (SDE, "noise", "parameterization 'mixed', not 'noise'"),
    ],
)
def test_a_plan_for_something_else_is_refused(
    tmp_path: Path, sde: CLD, parameterization: str, words: str
) -> None:
    a_plan().save(tmp_path / "plan.json")
    with pytest.raises(ValueError, match=words) as caught:
        Plan.load(tmp_path / "plan.json", sde, parameterization)
    assert str(tmp_path / "plan.json") in str(caught.value)


@pytest.mark.parametrize("form", ["denoiser", "edm", Preconditioned(0.5)])
def test_a_plan_for_a_network_that_sees_y(tmp_path: Path, form: Parameterization) -> None:
    """What the network sees, and the form's own setting, are in the file."""
    plan = make_plan(SDE, "unipc", 3, "auto", parameterization=form)
    plan.save(tmp_path / "plan.json")
    read = Plan.load(tmp_path / "plan.json", SDE, form)
    for made, wanted in zip(read.stages, plan.stages, strict=True):
        assert np.array_equal(made.seen, wanted.seen) and made.argument == wanted.argument
    with pytest.raises(ValueError, match="sigma_data=2"):
        Plan.load(tmp_path / "plan.json", SDE, Preconditioned(2.0))


def test_a_form_of_ones_own_cannot_be_written(tmp_path: Path) -> None:
    class Own(DataPrediction):
        name = "own"

    with pytest.raises(ValueError, match="own"):
        make_plan(SDE, "em", 2, parameterization=Own()).save(tmp_path / "plan.json")


def test_a_rate_of_ones_own_cannot_be_written(tmp_path: Path) -> None:
    plan = make_plan(CLD(beta=lambda t: 4.0 + 0.0 * t), "em", 2)
    with pytest.raises(ValueError, match="can be written to a file"):
        plan.save(tmp_path / "plan.json")
    assert not list(tmp_path.iterdir())


def deep(values: Any, *path: Any) -> tuple[Any, Any]:
    *front, last = path
    for key in front:
        values = values[key]
    return values, last


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("format",), "other", "expected format 'cldfast plan', got 'other'"),
        (("version",), 2, "expected version 1, got 2"),
        (("more",), 1, "unknown or missing more"),
        (("sde", "kind"), "vp", "unknown SDE kind"),
        (("order",), "3", "order: expected int"),
        (("stages",), {}, "stages: expected list"),
        (("stages",), [], "at least one stage"),
        (("grid",), [0.1, 1.0], "descending"),
        (("grid",), 1.0, "grid: expected finite numbers in 1 dimensions"),
        (("stages", 1), 3, "stage 1: expected an object"),
        (("stages", 0, "t"), "soon", "stage 0: t: expected finite numbers"),
        (("stages", 0, "P", 0, 0), "1", "stage 0: P: expected finite numbers"),
        (("stages", 0, "P", 0, 0), True, "stage 0: P: expected finite numbers"),
        (("stages", 0, "E"), None, "stage 0: E: expected a list of matrices"),
        (("stages", 2, "H"), [[[1.0]]], "must have shape"),
        (("stages", 0, "L"), [[1.0, 2.0], [0.0, 1.0]], "lower triangular"),
        (("stages", 0, "P"), [[1.0, 2.0], [3.0]], "stage 0: P"),
    ],
)
def test_broken_files_are_refused(tmp_path: Path, path: Any, value: Any, words: str) -> None:
    """One line that names the file and what is wrong with it."""
    file = tmp_path / "plan.json"
    a_plan().save(file)
    values = json.loads(file.read_text())
    place, key = deep(values, *path)
    place[key] = value
    file.write_text(json.dumps(values))
    with pytest.raises(ValueError, match="plan.json") as caught:
        Plan.load(file)
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "[1]", '{"format": ', '{"a": NaN}', "9" * 100])
def test_what_is_no_json_object_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(ValueError, match="plan.json"):
        Plan.load(tmp_path / "plan.json")


def test_a_missing_file_and_a_huge_one(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file"):
        Plan.load(tmp_path / "none.json")
    with open(tmp_path / "huge.json", "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ValueError, match="at most"):
        Plan.load(tmp_path / "huge.json")
