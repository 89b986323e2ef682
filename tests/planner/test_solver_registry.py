"""How solvers make themselves known, and what is checked of their options."""

from __future__ import annotations

import importlib.util
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

import cldfast
from cldfast import CLD, LinearBeta, Plan, Stage, make_plan
from cldfast.planner.solvers import SOLVERS, solver

SDE = CLD(beta=LinearBeta(0.5, 8.0))


@pytest.fixture(autouse=True)
def _no_trace() -> Iterator[None]:
    """Solvers that a test registers are forgotten after it."""
    before = dict(SOLVERS)
    yield
    SOLVERS.clear()
    SOLVERS.update(before)


def load(source: str, folder: Path, name: str = "my_solver") -> ModuleType:
    """A file of a user's own, written and imported."""
    path = folder / f"{name}.py"
    path.write_text(textwrap.dedent(source), encoding="utf-8")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def net(u: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return -u.chunk(2, 1)[1]


def the_documented_example() -> str:
    """The block of docs/architecture.md that makes a solver known."""
    page = Path(__file__).resolve().parents[2] / "docs" / "architecture.md"
    blocks = page.read_text(encoding="utf-8").split("```python\n")
    (found,) = (block.partition("```")[0] for block in blocks if '@solver("warm"' in block)
    return found


def test_a_solver_from_outside_in_one_file(tmp_path: Path) -> None:
    """The documented example is Euler's method with the exact integral of beta as its step."""
    assert "warm" not in SOLVERS
    load(the_documented_example(), tmp_path)
    plan = make_plan(SDE, "warm", 200, "linear", 0.05)
    assert (plan.solver, plan.order, plan.evaluations) == ("warm", 1, 200)
    exact = cldfast.planner.law.marginal_law(SDE, 0.05, 0.7, 0.3)
    errors = [
        abs(plan.gaussian_law(data_mean=0.7, data_var=0.3).cov - exact.cov).max()
        for plan in (plan, make_plan(SDE, "warm", 400, "linear", 0.05))
    ]
    assert 1.8 < errors[0] / errors[1] < 2.2
    x = cldfast.sample(net, SDE, (16, 3), solver="warm", steps=10, seed=0)
    assert x.shape == (16, 3) and torch.all(torch.isfinite(x))
    calm = cldfast.sample(net, SDE, (16, 3), solver="warm", steps=10, temperature=0.0, seed=0)
    assert not torch.equal(calm, x)
    with pytest.raises(TypeError, match="it takes temperature: float = 1.0"):
        cldfast.sample(net, SDE, (16, 3), solver="warm", steps=10, temprature=0.0)


def test_a_file_may_be_imported_again_but_a_name_is_taken_once(tmp_path: Path) -> None:
    source = the_documented_example()
    load(source, tmp_path)
    load(source.replace("1.0", "0.5"), tmp_path)
    assert SOLVERS["warm"].options["temperature"].default == 0.5
    with pytest.raises(ValueError, match="name 'warm' is taken by the solver my_solver.warm"):
        load(source, tmp_path, "other")
    with pytest.raises(ValueError, match="name 'em' is taken by the solver cldfast.planner.solver"):
        load(source.replace('"warm"', '"em"'), tmp_path)


def test_what_depends_on_options_is_asked_with_the_defaults(tmp_path: Path) -> None:
    load(
        """
        from cldfast.planner.solvers import solver
        from cldfast.planner.solvers.em import em

        @solver("twofold", order=lambda k, half: 2 * k, quadratic_from=lambda k, half: 10 * k)
        def twofold(sde, grid, parameterization, *, k: int = 1, half=None):
            return list(em(sde, grid, parameterization))
        """,
        tmp_path,
    )
    assert make_plan(SDE, "twofold", 3).order == 2
    assert make_plan(SDE, "twofold", 3, k=3, half="anything").order == 6
    for steps, k, grid in ((9, 1, "logistic"), (10, 1, "quadratic"), (10, 2, "logistic")):
        got = make_plan(SDE, "twofold", steps, "auto", k=k).grid
        assert np.array_equal(got, make_plan(SDE, "em", steps, grid).grid)


def test_an_inner_type_error_is_shown_as_it_is(tmp_path: Path) -> None:
    load(
        """
        from cldfast.planner.solvers import solver

        @solver("broken", order=1)
        def broken(sde, grid, parameterization, *, order: int = 1):
            return len(order)
        """,
        tmp_path,
    )
    with pytest.raises(TypeError, match=r"^object of type 'int' has no len\(\)$") as caught:
        make_plan(SDE, "broken", 3, order=2)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("em", {"ordr": 2}, "solver 'em' takes no option 'ordr'; it takes none"),
        (
            "unipc",
            {"ordr": 2},
            "takes no option 'ordr'; it takes order: int = 2, form: str = 'x0', variable: str = 't'",
        ),
        ("multistep", {"order": "3"}, r"'order' of solver 'multistep' .* got '3' \(str\)"),
        ("multistep", {"order": True}, r"declared as 'order: int = 2', got True \(bool\)"),
        ("multistep", {"correct": 1}, r"declared as 'correct: bool = False', got 1 \(int\)"),
        ("stochastic_multistep", {"churn": "1"}, r"'churn: float = 1.0', got '1' \(str\)"),
        ("stochastic_multistep", {"churn": None}, r"'churn: float = 1.0', got None \(NoneType\)"),
        ("sscs", {"merge": "no"}, r"declared as 'merge: bool = True', got 'no' \(str\)"),
    ],
)
def test_options_are_checked(name: str, options: dict, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        make_plan(SDE, name, 4, **options)


def test_numbers_of_numpy_and_whole_numbers_for_reals_are_options_too() -> None:
    plans = [
        make_plan(SDE, "stochastic_multistep", 4, churn=churn, order=order)
        for churn, order in ((1.0, 3), (1, np.int64(3)), (np.float32(1.0), 3))
    ]
    for plan in plans[1:]:
        for one, two in zip(plan.matrices(), plans[0].matrices(), strict=True):
            assert np.array_equal(one, two)


def test_annotations_that_say_no_plain_type(tmp_path: Path) -> None:
    """`X | None` is checked; what is known to a type checker alone is not."""
    load(
        """
        from __future__ import annotations

        from typing import TYPE_CHECKING

        from cldfast.planner.solvers import solver
        from cldfast.planner.solvers.em import em

        if TYPE_CHECKING:
            from somewhere import Thing

        @solver("typed", order=1)
        def typed(
            sde, grid, parameterization, *, k: int | None = None, names: list[str] = [], a: Thing = 0
        ):
            return em(sde, grid, parameterization)
        """,
        tmp_path,
    )
    for options in ({"k": 3}, {"k": None}, {"names": ["a"]}, {"a": object()}):
        assert make_plan(SDE, "typed", 3, **options).steps == 3
    with pytest.raises(TypeError, match=r"'k: int \| None = None', got 'x' \(str\)"):
        make_plan(SDE, "typed", 3, k="x")


@pytest.mark.parametrize("name", SOLVERS)
def test_evaluations_per_step(name: str) -> None:
    entry = SOLVERS[name]
    assert entry.name == name
    assert make_plan(SDE, name, 10).evaluations == 10 * entry.evaluations_per_step
    assert make_plan(SDE, name, 10).order == entry.order_in_law(entry.settings({}))


def test_an_option_that_make_plan_takes_for_itself_is_refused() -> None:
    with pytest.raises(
        ValueError, match="may not call its options rho, seed: arguments of make_plan"
    ):

        @solver("swallowed", order=1)
        def swallowed(sde, grid, parameterization, *, rho: float = 1.0, seed: int = 0):
            return ()

    assert "swallowed" not in SOLVERS


def test_stages_must_lead_to_the_end_of_the_grid() -> None:
    @solver("short", order=1)
    def short(sde, grid, parameterization):
        return make_plan(sde, "em", grid=grid).stages[:-1]

    with pytest.raises(ValueError, match="must lead to the end of the grid, 0.001, and lead to"):
        make_plan(CLD(), "short", 5)


def test_a_block_without_its_tuple_is_named() -> None:
    with pytest.raises(TypeError, match="stage 0: E must be a tuple of blocks, got ndarray"):
        stage = Stage(1.0, 0.5, np.eye(2), np.zeros((2, 1)))
        Plan((stage,), CLD(), "em", 1, "score", np.array([1.0, 0.5]))


def test_blocks_of_single_precision_are_taken_as_what_they_are() -> None:
    @solver("single", order=1)
    def single(sde, grid, parameterization):
        for stage in make_plan(sde, "em", grid=grid, parameterization=parameterization).stages:
            blocks = [np.float32(block) for block in (stage.P, *stage.E, stage.L)]
            yield Stage(stage.t, stage.t_next, blocks[0], (blocks[1],), L=blocks[2])

    made, wanted = (cldfast.sample(net, SDE, (5, 3), name, 6, seed=1) for name in ("single", "em"))
    # Coefficients of size about 1 are rounded to 6e-8, over six steps.
    assert torch.allclose(made, wanted, rtol=1e-5, atol=1e-5)
