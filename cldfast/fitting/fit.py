"""Fitting a plan to a network: `fit_plan`."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from cldfast import kernels
from cldfast.conditions import Conditions, conditioned
from cldfast.extras import progress_bar
from cldfast.fitting.free_plan import FreePlan
from cldfast.fitting.objective import Features, Objective, Target, objective_weights
from cldfast.fitting.rollout import rollout, sizes_of_change
from cldfast.fitting.start import base_plan, has_noise, split_rows
from cldfast.fitting.targets import CHOOSE, FIT, JUDGE, Source
from cldfast.network import Network, device_of
from cldfast.planner.make_plan import make_plan
from cldfast.planner.parameterization import Parameterization
from cldfast.planner.plan import Plan
from cldfast.process.sde import LinearPhaseSDE

# Adam's step, in units of `sizes_of_change`, decays to 0 along a cosine.
STEP_SIZE = 0.003
# The averaged vector forgets with this factor a step, and faster at the start.
AVERAGE = 0.95
# Steps between looks at the rows that choose.
LOOK_EVERY = 10
# Rows of data in a step, over the samples in it: rows cost a sort, samples a network.
_ROWS_PER_SAMPLE = 2
# Samples that choose or judge a plan, over those in a step: the last gains are small.
_JUDGED = 4
_PILOT_ROWS = 512
# Intervals of the teacher that is made where none is given.
_TEACHER_STEPS = 64


@dataclass(frozen=True)
class FitResult:
    """A fitted plan, and how the fit went.

    plan: the fitted plan, or the base where the fit did not beat it. improved: which of the two.
    before, after: the objective of the base and of the fitted plan on held-out rows and noise that
        decided nothing. history: for each look (step, loss of that step, value of the averaged
        plan on the rows that choose). seconds: wall clock.
    """

    plan: Plan
    improved: bool
    before: float
    after: float
    history: list[tuple[int, float, float]]
    seconds: float


def fit_plan(
    net: Network,
    sde: LinearPhaseSDE,
    data: Tensor | None,
    evaluations: int,
    *,
    shape: tuple[int, ...] | None = None,
    base: str | Plan = "auto",
    objective: str | Mapping[str, float] = "energy",
    teacher: Plan | None = None,
    features: Features | None = None,
    held_out: Tensor | None = None,
    parameterization: Parameterization | None = None,
    t_min: float = 1e-3,
    conditions: Conditions | None = None,
    null: Conditions | None = None,
    seed: int = 0,
    steps: int = 150,
    batch_size: int = 2048,
    chunk_size: int = 512,
    projections: int = 64,
    step_size: float = STEP_SIZE,
    backend: str = "auto",
    progress: bool = False,
    callback: Callable[[int, float], Any] | None = None,
) -> FitResult:
    """Fit the coefficients, noise factors and times of a plan to a network.

    net, sde: as for `cldfast.sample`; the network's own weights stay as they are. It must be
        differentiable, and should be in evaluation mode.
    data: (n, d) or (n, C, H, W), on the scale of the samples. None: the samples of `teacher` take
        its place, and `shape`, (d,) or (C, H, W), says what a sample is.
    evaluations: network calls of the plan.
    base: where the fit starts: a plan, or the name of a solver, on its automatic grid; "auto" is
        `stochastic_multistep` of order 3 with churn 0.5, without noise for the objective "paths".
    objective: "energy", the sliced energy distance to the data; "paths", the mean squared distance
        to the end points of a deterministic teacher; or weights of both by name.
    teacher: a long plan; None is `multistep` of order 3 with 64 steps.
    features: a map of samples to rows (n, k) between which the energy distance is taken.
    held_out: data that decide which iterate is kept and whether the fit beat its base; None holds
        out a fifth of `data`.
    parameterization, t_min, backend: as for `cldfast.make_plan` and `cldfast.run`; those of a base
        that is a plan are its own.
    conditions, null: see `cldfast.run`; of one row, which all samples share. The pair that a base
        made with `guidance_scale` reads has its coefficients fitted apart.
    seed: of noise, data and directions; the fit is a function of it.
    steps, step_size: of Adam. batch_size: samples in a step. projections: directions in a step.
    chunk_size: rows that go through the network at once. A batch of more is sampled first, without
        gradients, and run again chunk by chunk, so memory does not grow with it.
    callback: `callback(step, loss)`; a true result ends the fit.

    Raises ValueError or TypeError naming what was expected.
    Sources: Watson et al. (2022), DDSS; Shaul et al. (2024), Bespoke and BNS solvers; Frankel et
        al. (2025), S4S.
    """
    began = time.perf_counter()
    for name, number, least in (
        ("evaluations", evaluations, 1), ("steps", steps, 1), ("batch_size", batch_size, 2),
        ("chunk_size", chunk_size, 1), ("projections", projections, 1),
    ):  # fmt: skip
        if isinstance(number, bool) or not isinstance(number, int) or number < least:
            raise ValueError(f"{name} must be an integer >= {least}, got {number!r}")
    if not 0.0 < step_size < float("inf"):
        raise ValueError(f"step_size must be a finite number > 0, got {step_size!r}")
    seed = kernels.check_seed(seed)
    weights = objective_weights(objective)
    plan = base_plan(sde, base, evaluations, parameterization, t_min, noise="paths" not in weights)
    net = conditioned(net, conditions, null, plan.pair)
    if data is not None:
        rows, shape = split_rows(data, held_out, seed), tuple(data.shape[1:])
    elif shape is not None:
        rows, shape = {}, tuple(shape)
    else:
        raise ValueError("without data, fit_plan needs the shape of a sample, (d,) or (C, H, W)")
    source = Source(net, seed, backend, shape, torch.float32, device_of(net), chunk_size, {}, {})
    energy, paths = "energy" in weights, "paths" in weights
    if energy:
        source.rows.update({k: r.to(source.device, source.dtype) for k, r in rows.items()})
    if paths or (energy and data is None):
        long = teacher or make_plan(
            sde, "multistep", _TEACHER_STEPS, "auto", t_min, plan.parameterization, order=3
        )
        long.check_made_for(sde, plan.parameterization)
        if paths and (has_noise(plan) or has_noise(long)):
            raise ValueError("the objective 'paths' needs a teacher and a base without noise")
        for role in (FIT, CHOOSE, JUDGE):
            count = batch_size * (_ROWS_PER_SAMPLE if role == FIT else _JUDGED)
            source.teach(long, role, count, rows=energy and data is None, ends=paths)

    free = FreePlan(plan)
    pilot = min(_PILOT_ROWS, chunk_size)
    ((few, where),) = source.chunks(FIT, pilot)
    free.scale(sizes_of_change(free, net, source.start(few, where, plan), where, backend))
    fit = _Fit(free, source, Objective(weights, projections, features), batch_size)
    best = fit.run(steps, step_size, progress, callback)
    before, after = (fit.value(vector, JUDGE) for vector in (free.zeros(), best))
    improved = after < before
    return FitResult(
        free.plan(best) if improved else plan, improved, before, after, fit.history,
        time.perf_counter() - began,
    )  # fmt: skip


class _Fit:
    """The iteration over vectors of free numbers."""

    def __init__(self, free: FreePlan, source: Source, objective: Objective, batch: int) -> None:
        self.free, self.source, self.objective, self.batch = free, source, objective, batch
        self.history: list[tuple[int, float, float]] = []
        self._generator = torch.Generator().manual_seed(source.seed)

    def value(self, vector: Tensor, role: int) -> float:
        """The objective of a vector's plan on the samples of a role; infinite for none."""
        if not bool(vector.isfinite().all()):
            return float("inf")
        plan = self.free.plan(vector)
        value = self.source.value(self.objective, plan, role, _JUDGED * self.batch)
        return value if value == value else float("inf")

    def run(
        self, steps: int, size: float, progress: bool, callback: Callable[[int, float], Any] | None
    ) -> Tensor:
        """The averaged vector that is best on the rows that choose."""
        vector = self.free.zeros().requires_grad_()
        adam = torch.optim.Adam([vector], lr=size, betas=(0.9, 0.99))
        decay = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
        average = best = self.free.zeros()
        least = self.value(best, CHOOSE)
        self.history.append((0, float("nan"), least))
        numbers: Any = range(1, steps + 1)
        for step in progress_bar(numbers, desc="fit") if progress else numbers:
            loss, vector.grad = self._gradient(vector, step)
            if not bool(vector.grad.isfinite().all()):
                break
            adam.step()
            decay.step()
            forget = min(AVERAGE, step / (step + 9))
            average = average.lerp(vector.detach(), 1.0 - forget)
            ends = callback is not None and bool(callback(step, loss))
            if step % LOOK_EVERY == 0 or step == steps or ends:
                value = self.value(average, CHOOSE)
                self.history.append((step, loss, value))
                if value < least:
                    least, best = value, average
            if ends:
                break
        return best

    def _gradient(self, vector: Tensor, step: int) -> tuple[float, Tensor]:
        """The loss of a batch and its gradient."""
        free, source = self.free, self.source
        first = FIT + (step - 1) * self.batch
        if FIT in source.ends:
            first %= len(source.ends[FIT])
        target = self._with_fewer_rows(source.target(FIT, first, self.batch))
        chunks = source.chunks(first, self.batch)

        def states(rows: slice, where: Any) -> Tensor:
            u = source.start(rows, where, free.base)
            u = rollout(free, vector, source.net, u, where, source.backend)
            return u.chunk(2, dim=1)[0]

        if len(chunks) == 1:
            loss = self.objective(states(*chunks[0]), target, self._generator)
            return loss.item(), torch.autograd.grad(loss, vector)[0]
        x = source.draw(free.plan(vector), first, self.batch).requires_grad_()
        loss = self.objective(x, target, self._generator)
        (pull,) = torch.autograd.grad(loss, x)
        parts = [
            torch.autograd.grad(states(rows, where), vector, pull[rows])[0]
            for rows, where in chunks
        ]
        return loss.item(), torch.stack(parts).sum(0)

    def _with_fewer_rows(self, target: Target) -> Target:
        """The target with as many of its rows as a step takes, other ones in each step."""
        most = _ROWS_PER_SAMPLE * self.batch
        if target.rows is None or len(target.rows) <= most:
            return target
        drawn = torch.randint(len(target.rows), (most,), generator=self._generator, device="cpu")
        return replace(target, rows=target.rows[drawn.to(target.rows.device)])
