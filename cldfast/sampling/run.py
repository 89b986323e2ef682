"""Running a plan: the loop that calls the network and one stage operation per evaluation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, overload

import torch

from cldfast import kernels
from cldfast.conditions import Conditions, check_arguments, condition_rows, conditioned, take_rows
from cldfast.extras import progress_bar
from cldfast.kernels import Backend, NoiseAddress, Stream
from cldfast.network import Network, at_times, device_of, network_dtype
from cldfast.planner.grids import Grid
from cldfast.planner.make_plan import make_plan, prediction_stage
from cldfast.planner.plan import Plan
from cldfast.planner.stage import Stage
from cldfast.process.path import Path, Process
from cldfast.sampling import graphs, recorders
from cldfast.sampling.brownian import BrownianNoise
from cldfast.sampling.callbacks import Callback, StepInfo, as_info_callback
from cldfast.sampling.inpainting import Inpainting
from cldfast.sampling.kept_graphs import key_of, recordings
from cldfast.sampling.nonfinite import FiniteWatch, check_choice, finite
from cldfast.sampling.packing import Packing
from cldfast.sampling.steps import (
    Guidance,
    Outputs,
    Steps,
    look,
    network_arguments,
    plan_tables,
    planes_seen,
    stage_times,
)
from cldfast.training.trained import check_training

# A state has two numbers of at most 8 bytes for each one of its samples, and memory 2^63 bytes.
_MOST_NUMBERS = 2**59
GivenNoise = Sequence[torch.Tensor | None] | torch.Tensor | str | None


class StopSampling(Exception):
    """Raised by a callback to end a run early; the state it saw is returned."""


def run(
    plan: Plan,
    net: Network,
    u: torch.Tensor,
    *,
    seed: int | None = None,
    first_index: int = 0,
    generator: torch.Generator | None = None,
    backend: str = "auto",
    noise: GivenNoise = None,
    conditions: Conditions | None = None,
    null: Conditions | None = None,
    guidance: Guidance | None = None,
    inpaint: Inpainting | None = None,
    callback: Callback | None = None,
    progress: bool = False,
    differentiable: bool = False,
    graph: bool = False,
    nonfinite: str = "raise",
) -> torch.Tensor:
    """Take states at `plan.grid[0]` through the plan; returns the final states, shaped like u.

    net: `net(u, t)` with t (B,), a broadcast view of one time; returns what the plan's
        parameterisation says, (B, C, ...) or (B, 2C, ...). It may use another float dtype. A
        parameterisation of y asks `net(y, argument)` instead, y (B, C, ...) in the dtype of the
        module's parameters; see `cldfast.planner.data_forms`.
    u: (B, 2d) or (B, 2C, H, W), float32 or float64; not changed.
    seed, first_index, generator: noise key, and the global sample index of row 0; None draws a seed
        from `generator`, see `sample`.
    noise: normals to use instead, one (B, 2C, ...) tensor per stage (None where a stage needs
        none); "brownian" takes them from one Brownian path per sample, the same for every grid, see
        `cldfast.sampling.brownian`.
    conditions: further arguments of the network by name, such as labels, with a row for each row
        of u or one for all; see `cldfast.conditions.condition_rows`. For a plan made with
        `guidance_scale` the network is called once on twice the rows, of which the second half has
        the conditions `null`, by name; None is the network's attribute `null`.
    guidance: `guidance(u, t)`, a term added to the velocity score (both rows for full
        parameterisations); the plan must be made with `guidance_term=True`.
    inpaint: known data, see `cldfast.Inpainting`.
    callback: `callback(info)` after each stage, with `info.step`, `t`, `state` and the prediction
        of the data `x0`, see `cldfast.StepInfo`; or `callback(step, t, state)`. A returned tensor
        replaces the state, `cldfast.StopSampling` ends the run.
    progress: a tqdm bar over the stages. differentiable: keep the autograd graph through the run.
    graph: capture steps (network and stage) as CUDA graphs and replay them; the network must do the
        same at every step, without looking at values. Where that cannot be, a
        `cldfast.GraphWarning` says why and the run goes step by step. The captures of a module are
        kept for later runs of the same plan and shape, see `cldfast.sampling.kept_graphs`.
    nonfinite: "raise" a ValueError for final states that are not finite, which says in what stage
        they ceased to be, or "return" them. To say so the network is called again, without the
        callback; with a callback every state is looked at, and on the CPU it sees finite ones only.

    Raises ValueError or TypeError for states, networks or noise of the wrong shape, dtype or
    device. An error of the network passes, with a note that says where in the run it was raised.
    """
    if not isinstance(plan, Plan):
        raise TypeError(f"plan must be a cldfast.Plan from make_plan, got {type(plan).__name__}")
    if not callable(net):
        raise TypeError(f"net must be callable as net(u, t), got {type(net).__name__}")
    check_training(net, plan.parameterization)
    kernels.check_state("u", u)
    check_choice(nonfinite)
    address = kernels.noise_address(seed, first_index, generator)
    kernels.check_noise(address, tuple(u.shape), u)
    again = partial(
        run, plan, net, u, seed=address.seed, first_index=address.first_index, backend=backend,
        noise=noise, conditions=conditions, null=null, guidance=guidance, inpaint=inpaint,
        callback=lambda step, t, u: None,
    )  # fmt: skip
    if isinstance(noise, str):
        if noise != "brownian":
            raise ValueError(f"noise must be 'brownian', normals or None, got {noise!r}")
        noise = BrownianNoise(plan, u, address)
    if noise is not None and len(noise) != len(plan.stages):
        raise ValueError(
            f"noise must hold one entry per stage, {len(plan.stages)}, got {len(noise)}"
        )
    if guidance is not None and not plan.guidance_term:
        raise ValueError("guidance needs a plan made with guidance_term=True")
    given = net
    net = conditioned(net, conditions, null, plan.pair)
    if inpaint is not None:
        inpaint.check(plan.sde, u)
    stages: Any = plan.stages
    if progress:
        stages = progress_bar(stages, desc=plan.solver)
    found = kernels.resolve_backend(backend, u.device)
    tell = None if callback is None else as_info_callback(callback)
    watch = None if callback is None or nonfinite == "return" else FiniteWatch(plan, u)
    loop = _Loop(plan, net, guidance, u, address, found, differentiable, tell is not None)
    if watch is not None:
        loop.outputs = watch.outputs(net, guidance)
    if graph:
        host = {"callbacks": callback, "given noise": noise, "inpainting": inpaint}
        refused = {name: value is not None for name, value in host.items()}
        reason = graphs.obstacle(plan, u, found, {**refused, "differentiable runs": differentiable})
        if not reason:
            own = given is net and guidance is None
            key = key_of(plan, net, u, address, found) if own else None
            with torch.no_grad():
                record = recorders.CudaGraphs(u.device)
                make = partial(graphs.Recording, plan, u, address, found, record, loop.dtype)
                recording = recordings.take(key, make)
                loop.u = recording.run(stages, loop.outputs, u, address)
            recordings.give(key, net, recording)
            stages = ()
        else:
            graphs.warn(reason)
    with torch.set_grad_enabled(differentiable and torch.is_grad_enabled()):
        for index, stage in enumerate(stages):
            state = loop.step(index, stage, None if noise is None else noise[index])
            if inpaint is not None:
                last = index == len(plan.stages) - 1
                where = address.at_stage(index)
                state = inpaint.apply(plan.sde, state, stage.t_next, last, where, found)
                loop.take_over(state)
            if watch is not None:
                watch.note(state)
            if tell is not None:
                # The callback may keep what it is shown, so the state is not overwritten after it.
                loop.owned = False
                try:
                    replacement = tell(StepInfo(index, stage.t_next, state, loop.prediction()))
                except StopSampling:
                    break
                if replacement is not None:
                    loop.replace(replacement)
    if nonfinite == "raise" and not finite(loop.u):
        if watch is None:
            watch = FiniteWatch(plan, u)
            # Noise is addressed: a run with a look at every state is the same run, and raises.
            again()
        raise watch.error(loop.u)
    return loop.u


class _Loop:
    """The state of one run, and how a stage changes it."""

    def __init__(
        self,
        plan: Plan,
        net: Network,
        guidance: Guidance | None,
        u: torch.Tensor,
        address: NoiseAddress,
        backend: Backend,
        differentiable: bool,
        watched: bool,
    ) -> None:
        self.plan, self.u, self.address, self.backend = plan, u, address, backend
        self.outputs = Outputs(net, plan, guidance)
        self.dtype = network_dtype(net) or u.dtype
        self.steps = Steps(
            plan_tables(plan), plan.history_length, planes_seen(plan.stages), backend, self.dtype
        )
        self.differentiable = differentiable
        # Whether u is memory of this run that nobody else holds, and so may be written in place.
        self.owned = False
        # What the next network sees, where the stage before it has made that.
        self.seen: torch.Tensor | None = None
        # Whether evaluations are kept for a callback, and the last one: its time, the state that it
        # was asked about and what it returned.
        self.watched = watched
        self.evaluated: tuple[float, torch.Tensor, Sequence[torch.Tensor]] | None = None
        # For each stage the times of all rows, and the network's arguments: views of one number.
        numbers = stage_times(plan, u), network_arguments(plan, u)
        self.times, self.arguments = (n[:, None].expand(-1, len(u)).unbind(0) for n in numbers)
        self.nets = None if differentiable else at_times(net, numbers[1])

    def step(self, index: int, stage: Stage, given: torch.Tensor | None) -> torch.Tensor:
        outputs: tuple[torch.Tensor, ...] = ()
        if stage.evaluates:
            seen = self.u
            if stage.seen is not None:
                seen = look(stage.seen, self.u, self.dtype) if self.seen is None else self.seen
            if self.nets is not None:
                self.outputs.net = self.nets[index]
            outputs = self.outputs(stage, self.u, self.times[index], seen, self.arguments[index])
            if self.watched and stage.t is not None:
                self.evaluated = stage.t, self.u, outputs
        noise = self.address.at_stage(index) if given is None else given
        if self.differentiable or given is not None:
            made = self.steps.take(index, stage, self.u, outputs, noise, checked=True)
        else:
            u, reuse = self.u, self.owned
            for output in outputs:
                # Our state is the whole of its memory, so a view of the state begins inside it.
                if reuse and 0 <= output.data_ptr() - u.data_ptr() < u.nbytes:
                    reuse = False
            made = self.steps.take(index, stage, u, outputs, noise, out=u if reuse else None)
            self.owned = True
        self.u, _, self.seen = made
        return self.u

    def prediction(self) -> Callable[[], torch.Tensor | None]:
        """A function that makes `E[x0 | u]` of the last evaluation."""
        last = self.evaluated

        def predict() -> torch.Tensor | None:
            if last is None:
                return None
            t, u, outputs = last
            weights = torch.from_numpy(prediction_stage(self.plan, t).matrix())[None]
            made = kernels.stage(u, outputs, (), weights, backend=self.backend).state
            both = isinstance(self.plan.sde, Path) and self.plan.sde.paired
            return made if both else made.chunk(2, dim=1)[0].contiguous()

        return predict

    def take_over(self, u: torch.Tensor) -> None:
        """Go on with another state, of which the last stage has not made what a network sees."""
        self.u, self.seen = u, None

    def replace(self, u: torch.Tensor) -> None:
        kernels.check_state("the callback's state", u)
        if u.shape != self.u.shape or u.dtype != self.u.dtype or u.device != self.u.device:
            raise ValueError(
                f"the callback must return a state like {tuple(self.u.shape)} {self.u.dtype} on "
                f"{self.u.device}, got {tuple(u.shape)} {u.dtype} on {u.device}"
            )
        self.take_over(u)


def initial_state(
    sde: Process,
    shape: Sequence[int],
    *,
    seed: int | None = None,
    first_index: int = 0,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
    backend: str = "auto",
) -> torch.Tensor:
    """States from the stationary law, (n, 2d) or (n, 2C, H, W) for data (n, d) or (n, C, H, W).

    Addressed noise of a stream of its own: row i depends on (seed, first_index + i) alone.
    seed, generator: None draws a seed from `generator`, see `sample`.
    """
    address = kernels.noise_address(seed, first_index, generator, stream=Stream.INITIAL_STATE)
    return kernels.normals(
        shape, address, factor=sde.prior().factor, dtype=dtype, device=device, backend=backend
    )


# For type checkers and editors; a test holds the first to the parameters of the function.
@overload
def sample(
    net: Network,
    sde: Process,
    shape: Sequence[int],
    solver: str = "auto",
    steps: int | None = None,
    grid: Grid | None = None,
    *,
    seed: int | None = None,
    first_index: int = 0,
    generator: torch.Generator | None = None,
    batch_size: int | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
    backend: str = "auto",
    plan: Plan | None = None,
    noise: GivenNoise = None,
    init: torch.Tensor | None = None,
    conditions: Conditions | None = None,
    null: Conditions | None = None,
    guidance: Guidance | None = None,
    inpaint: Inpainting | None = None,
    callback: Callback | None = None,
    progress: bool = False,
    return_velocity: Literal[False] = False,
    graph: bool = False,
    nonfinite: str = "raise",
    **plan_options: Any,
) -> torch.Tensor: ...
@overload
def sample(
    net: Network,
    sde: Process,
    shape: Sequence[int],
    solver: str = "auto",
    steps: int | None = None,
    grid: Grid | None = None,
    *,
    return_velocity: Literal[True],
    **options: Any,
) -> tuple[torch.Tensor, torch.Tensor]: ...
def sample(
    net: Network,
    sde: Process,
    shape: Sequence[int],
    solver: str = "auto",
    steps: int | None = None,
    grid: Grid | None = None,
    *,
    seed: int | None = None,
    first_index: int = 0,
    generator: torch.Generator | None = None,
    batch_size: int | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
    backend: str = "auto",
    plan: Plan | None = None,
    noise: GivenNoise = None,
    init: torch.Tensor | None = None,
    conditions: Conditions | None = None,
    null: Conditions | None = None,
    guidance: Guidance | None = None,
    inpaint: Inpainting | None = None,
    callback: Callback | None = None,
    progress: bool = False,
    return_velocity: bool = False,
    graph: bool = False,
    nonfinite: str = "raise",
    **plan_options: Any,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Draw samples: `x` of the given shape, or `(x, v)` with `return_velocity`.

    net, sde: the network `net(u, t)` (see `run`) and the forward process it was trained on.
    shape: of the samples, (n, d) or (n, C, H, W).
    solver, steps, grid, plan_options: of `make_plan`, the latter with `parameterization` (what the
        network returns), `t_min`, `denoise`, `guidance_scale`, `nfe` (a budget of network
        evaluations in place of steps) and the solver's own options; steps None is 20.
    seed, first_index: sample i of a run is sample `first_index + i` of that seed, whatever the
        batch size, thread count or device. seed None draws one from `generator`, or from PyTorch's
        default generator of the CPU, so that `torch.manual_seed` governs it; the ranks of an
        initialised `torch.distributed` then draw different samples, also from equal seeds.
    batch_size: rows per network call; None is all at once.
    device: of the samples; None is that of the network's parameters, or PyTorch's default.
    dtype: of the state, float32 or float64. backend: see `cldfast.stage`.
    plan: to be run instead of one made here, such as `cldfast.fit_plan` makes; it must be for this
        process, and for this `parameterization` where one is given.
    noise: normals per stage for all n rows, see `run`. init: states at T, (n, 2d) or (n, 2C, H, W).
    conditions, null: see `run`; a condition has a row for each of the n samples, or one for all.
    guidance, inpaint: see `run`.
    callback, progress, graph, nonfinite: see `run`; the callback is called per batch.

    Raises ValueError or TypeError naming what was expected.
    """
    shape = _check_shape(shape)
    if plan is None:
        term = guidance is not None
        plan = make_plan(sde, solver, steps, grid, guidance_term=term, **plan_options)
    else:
        given = {"solver": solver != "auto", "steps": steps is not None, "grid": grid is not None}
        _check_plan(plan, sde, {name for name, said in given.items() if said}, plan_options)
    target = device_of(net) if device is None else torch.device(device)
    if conditions is not None:
        check_arguments(net, conditions)
        conditions = condition_rows(conditions, shape[0], target)
    packing = Packing(shape) if isinstance(sde, Path) and sde.paired else None
    if packing is not None:
        if return_velocity:
            raise ValueError(f"samples of {sde} have no velocity: leave out return_velocity")
        check_training(net, plan.parameterization)  # `run` sees a function around it
        shape, net = packing.shape, packing.network(net)
        guidance = guidance and packing.guidance(guidance)
        callback = None if callback is None else packing.callback(as_info_callback(callback))
        init = None if init is None else packing.pack("init", init)
    address = kernels.noise_address(seed, first_index, generator)
    if dtype not in kernels.STATE_DTYPES:
        raise TypeError(f"dtype must be torch.float32 or torch.float64, got {dtype}")
    n = shape[0]
    batch_size = n if batch_size is None else batch_size
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size must be an integer >= 1 or None, got {batch_size!r}")
    if init is not None:
        kernels.check_state("init", init)
        expected = (n, 2 * shape[1], *shape[2:])
        if tuple(init.shape) != expected or init.device.type != target.type:
            raise ValueError(
                f"init must be {expected} on {target}, got {tuple(init.shape)} on {init.device}"
            )
    if inpaint is not None and inpaint.known.shape[0] != n:
        raise ValueError(
            f"known data must have one row per sample, {n}, got {inpaint.known.shape[0]}"
        )
    parts = []
    for start in range(0, n, batch_size):
        stop = min(start + batch_size, n)
        own: dict[str, Any] = {
            "seed": address.seed, "first_index": address.first_index + start, "backend": backend
        }  # fmt: skip
        if init is None:
            u = initial_state(sde, (stop - start, *shape[1:]), device=target, dtype=dtype, **own)
        else:
            u = init[start:stop].to(dtype)
        rows = noise
        if noise is not None and not isinstance(noise, str):
            rows = [None if z is None else z[start:stop] for z in noise]
        u = run(
            plan, net, u, **own, noise=rows, null=null, guidance=guidance, callback=callback,
            conditions=conditions and take_rows(conditions, slice(start, stop)),
            inpaint=None if inpaint is None else inpaint.rows(start, stop),
            progress=progress, graph=graph, nonfinite=nonfinite,
        )  # fmt: skip
        parts.append(u)
    u = torch.cat(parts) if len(parts) > 1 else parts[0]
    if packing is not None:
        return packing.unpack(u).contiguous()
    x, v = u.chunk(2, dim=1)
    return (x.contiguous(), v.contiguous()) if return_velocity else x.contiguous()


def _check_plan(plan: Plan, sde: Process, chosen: set[str], options: dict[str, Any]) -> None:
    """That a plan is one for this process, and that nothing else says how to make one."""
    if not isinstance(plan, Plan):
        raise TypeError(f"plan must be a cldfast.Plan, got {type(plan).__name__}")
    if taken := sorted(chosen | (options.keys() - {"parameterization"})):
        raise ValueError(f"a plan says all of a sampler: leave out {', '.join(taken)}")
    plan.check_made_for(sde, options.get("parameterization"))


def _check_shape(shape: Sequence[int]) -> tuple[int, ...]:
    sizes = tuple(shape)
    if len(sizes) < 2 or any(isinstance(s, bool) or not isinstance(s, int) or s < 1 for s in sizes):
        raise ValueError(f"shape must be (n, d) or (n, C, H, W) of integers >= 1, got {sizes}")
    if math.prod(sizes) >= _MOST_NUMBERS:
        raise ValueError(f"shape must hold fewer than 2^59 numbers, got {sizes}")
    return sizes
