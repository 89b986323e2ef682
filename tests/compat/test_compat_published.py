"""What the served codebases share: laws, steps, folding outputs in, installing, schedules."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cldfast.compat.install import Installer
from cldfast.compat.laws import checked, exact, jittered, naive, naive_covariance
from cldfast.compat.published import check_mode
from cldfast.compat.schedule import FunctionBeta
from cldfast.compat.steps import euler, fold, splitting
from cldfast.planner.make_plan import make_plan
from cldfast.planner.parameterization import LinearMap
from cldfast.planner.plan import Plan
from cldfast.planner.stage import Stage
from cldfast.process.schedules import LinearBeta
from cldfast.process.sde import CLD, PSLD, LinearPhaseSDE

RNG = np.random.default_rng(5)


def stage(t: float | None) -> Stage:
    E = (RNG.normal(size=(2, 2)),) if t is not None else ()
    L = np.tril(RNG.normal(size=(2, 2)))
    return Stage(t=t, t_next=0.5, P=RNG.normal(size=(2, 2)), E=E, L=L)


def apply(row: Stage, u: np.ndarray, o: np.ndarray, z: np.ndarray) -> np.ndarray:
    return row.P @ u + sum(E @ o for E in row.E) + row.L @ z


def test_folding_is_substitution() -> None:
    rows = (stage(0.7), stage(None), stage(0.3))

    def output_map(t: np.ndarray) -> LinearMap:
        assert t.tolist() == [0.7, 0.3]
        weight = t[:, None, None]
        return LinearMap(weight * np.array([[2.0], [3.0]]), weight * np.eye(2))

    u, o, z = RNG.normal(size=(2, 1)), RNG.normal(size=(1, 1)), RNG.normal(size=(2, 1))
    for row, folded in zip(rows, fold(rows, output_map), strict=True):
        t = row.t or 0.0
        score = t * np.array([[2.0], [3.0]]) @ o + t * u
        np.testing.assert_allclose(apply(folded, u, o, z), apply(row, u, score, z), rtol=1e-13)


@pytest.mark.parametrize(
    "process",
    [CLD.from_mass(2.25), PSLD(0.3, 3.0), PSLD(4.0, 0.0), CLD(1.5, 1.2, 0.25)],
    ids=["velocity noise", "both", "position noise", "correlated"],
)
def test_naive_laws_are_the_exact_ones(process: LinearPhaseSDE) -> None:
    tau = torch.tensor([0.05, 0.7, 4.0], dtype=torch.float64)
    pairs = [(naive(process, tau, 0.2, 0.05), exact(process, tau, 0.2, 0.05))]
    pairs.append((naive(process, tau, reverse=True), process.reversed_transition(tau)))
    for got, wanted in pairs:
        # Differences of numbers of order 1, in which some units of rounding are left.
        torch.testing.assert_close(got.phi, wanted.phi, rtol=0.0, atol=1e-15)
        torch.testing.assert_close(got.cov, wanted.cov, rtol=0.0, atol=2e-15)


def test_jitter_is_on_the_diagonal() -> None:
    own = exact(CLD(), torch.tensor([0.05, 0.7], dtype=torch.float64))
    more = jittered(own.covariance, 1e-3)
    torch.testing.assert_close(more.matrix, own.cov + 1e-3 * torch.eye(2, dtype=torch.float64))
    torch.testing.assert_close(more.det, torch.linalg.det(more.matrix))


def test_indefinite_covariances_are_refused() -> None:
    one = torch.ones(2, dtype=torch.float64)
    checked(naive_covariance(one, 0.5 * one, one), "jitter")
    with pytest.raises(ValueError, match="numerical precision error: .* increase jitter"):
        checked(naive_covariance(one, torch.tensor([0.5, 1.1]), one), "jitter")


def test_steps_are_those_of_the_solvers() -> None:
    """With exact laws and times the published steps are our own solvers' before merging."""
    process = CLD(1.5, 1.2, 0.25, beta=LinearBeta(1.0, 6.0))
    grid = np.array([1.0, 0.6, 0.1])
    t, s = grid[:-1], grid[1:]
    middle = 0.5 * (t + s)
    tau, tau_middle = process.tau(grid), process.tau(middle)
    halves = [process.reversed_transition(w) for w in (tau[:-1] - tau_middle, tau_middle - tau[1:])]
    wanted = {
        "em": euler(process, t, s, (t - s) * process.beta(t)),
        "sscs": splitting(process, (t, middle, s), tuple(halves), middle, tau[:-1] - tau[1:]),
    }
    for solver, stages in wanted.items():
        options = {} if solver == "em" else {"merge": False}
        plan = make_plan(process, solver, grid=grid, parameterization="full_score", **options)
        law = Plan(tuple(stages), process, solver, 1, "full_score", grid).gaussian_law(data_var=0.5)
        np.testing.assert_allclose(law.cov, plan.gaussian_law(data_var=0.5).cov, rtol=1e-12)


def test_modes() -> None:
    assert check_mode("exact") == "exact"
    with pytest.raises(ValueError, match="mode must be one of exact, published, got 'fast'"):
        check_mode("fast")


def test_a_schedule_of_functions_is_that_of_the_closed_form() -> None:
    other = LinearBeta(1.0, 3.0)
    mine = FunctionBeta(lambda t: 1.0 + 2.0 * t, antiderivative=lambda t: t + t**2)
    t = np.linspace(0.0, 1.0, 7)
    np.testing.assert_allclose(mine.beta(t), other.beta(t), rtol=1e-15)
    np.testing.assert_allclose(mine.integral(t), other.integral(t), rtol=1e-15)
    np.testing.assert_allclose(mine.inverse(other.integral(t)), t, atol=1e-14)
    assert torch.equal(mine.beta(torch.tensor(t)), torch.tensor(mine.beta(t)))
    assert FunctionBeta(lambda t: 4.0, antiderivative=lambda t: 4.0 * t).beta(t).shape == t.shape
    with pytest.raises(ValueError, match="tau must lie in"):
        mine.inverse(np.array([2.5]))


def test_installing_replaces_by_identity_and_takes_back() -> None:
    class Theirs:
        pass

    class Ours:
        mode = "exact"

    def loss(mode: str) -> str:
        return mode

    original, changed = len, sum
    one = {"__name__": "one", "Model": Theirs, "loss": original, "kept": Theirs()}
    two = {"__name__": "two", "Alias": Theirs, "other": changed}
    before = [dict(one), dict(two)]
    switch = Installer(lambda: ([(Theirs, Ours), (original, loss)], [one, two]))
    with switch.installed("published") as names:
        assert names == ["one.Model", "one.loss", "two.Alias"]
        assert issubclass(one["Model"], Ours) and two["Alias"] is one["Model"]
        assert one["Model"].mode == "published" and one["loss"]() == "published"
        with pytest.raises(RuntimeError, match="already installed"):
            switch.install()
        one["loss"] = changed
    assert [one, two] == [{**before[0], "loss": changed}, before[1]], "what others changed stays"
    switch.install()
    with pytest.raises(RuntimeError, match="already installed"), switch.installed():
        pass
    assert two["Alias"] is not Theirs, "a refused `with` block leaves what is installed"
    switch.uninstall()
    with pytest.raises(ValueError, match="mode must be one of"):
        switch.install("fast")
