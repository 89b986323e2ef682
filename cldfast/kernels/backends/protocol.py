"""What a backend is: the one contract between the operations and whatever runs them.

A backend takes its arguments as valid: the operations of `cldfast.kernels` have checked them. It
takes any memory layout, and names the device of every tensor that it makes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch

from cldfast.kernels import philox
from cldfast.kernels.address import NoiseAddress
from cldfast.kernels.time_tables import AtTimes

# Normals by their address, or given: (B, 2C, ...), the plane z_x then the plane z_v.
Noise = NoiseAddress | torch.Tensor
# A mask with a bit for each column of a matrix.
ALL_COLUMNS = 2**64 - 1


# Samples before a recorded step's are a multiple of so many: kernels take pairs together.
STEP_SAMPLES = 4


def recorded_step(address: NoiseAddress) -> tuple[NoiseAddress, list[int]]:
    """What a step is recorded with, and what it reads from the device: the numbers of `step`.

    The numbers are the stage, 0 at first, the seed as an int64, and a multiple of `STEP_SAMPLES`:
    they are added to the recorded address. So one recording serves all seeds and, but for the
    remainder, all samples.
    """
    rest = address.first_index % STEP_SAMPLES
    seed = address.seed - 2**64 if address.seed >= 2**63 else address.seed
    recorded = NoiseAddress(0, rest, address.stage_index, address.stream)
    return recorded, [0, seed, address.first_index - rest]


class StageResult(NamedTuple):
    """What a stage makes.

    state: (B, 2C, ...). history: the new history row (B, qC, ...), None where the stage keeps none.
    seen: what the network sees, (B, sC, ...) in a dtype of its own, None where s = 0.
    """

    state: torch.Tensor
    history: torch.Tensor | None = None
    seen: torch.Tensor | None = None


class Backend(ABC):
    """One way of running the operations, on tensors of some types of device.

    Register it with `cldfast.kernels.register_backend`; docs/architecture.md has an example.

    name: as registered.
    fuses_gradients: whether `residual` makes the gradient together with the loss. A backend that
        does not is plain PyTorch, differentiable by autograd in all of its arguments.
    reads_tables: whether `stage` and `residual` read the matrices of rows from a table (`AtTimes`)
        themselves. For other backends `matrices` is called first.
    keeps_matrices: whether `stage` copies a matrix of all rows to the device, so that a caller who
        has it there already spares that copy.
    counts_steps: whether `stage` takes `step`, `used` and `row_out`, and `advance` is there: what a
        run needs to be captured as a graph.
    """

    def __init__(
        self,
        name: str,
        *,
        fuses_gradients: bool = True,
        reads_tables: bool = False,
        counts_steps: bool = False,
        keeps_matrices: bool = False,
    ) -> None:
        # Attributes of the object, not of its class, which a graph compiler cannot read.
        self.name = name
        self.fuses_gradients = fuses_gradients
        self.reads_tables = reads_tables
        self.counts_steps = counts_steps
        self.keeps_matrices = keeps_matrices

    @abstractmethod
    def stage(
        self,
        u: torch.Tensor | None,
        outputs: Sequence[torch.Tensor],
        history: Sequence[torch.Tensor],
        weights: torch.Tensor | AtTimes,
        noise: Noise,
        *,
        out: torch.Tensor | None = None,
        seen_planes: int = 0,
        seen_dtype: torch.dtype | None = None,
        step: torch.Tensor | None = None,
        used: int = ALL_COLUMNS,
        row_out: torch.Tensor | None = None,
    ) -> StageResult:
        """`(x', v', h ..., y ...) = W (x, v, o ..., h ..., z_x, z_v)` at every coordinate.

        u: state (B, 2C, ...); None where W has no columns for it, then outputs[0] is (B, C, ...).
        outputs, history: (B, rC, ...), r planes each; their dtype may differ from the state's.
        weights: float64 (R, 2 + q + s, n), R = 1 for one matrix on the host, or R = B. A column
            that is zero in all matrices is not read, so that a non-finite plane behind it does no
            harm. ValueError for a matrix on the host that is not finite.
        out: receives the state; u itself, or memory that no input shares. Without it the state is
            new memory, and the whole of it.
        seen_planes: s, the number of planes y that the network sees, the matrix's last rows;
        seen_dtype: theirs, the state's if None. They are rounded as `Tensor.to` rounds.

        Where `counts_steps`: step is an int64 (3,) on the device, see `recorded_step`; weights are
        then a table (N, 2 + q + s, n) on the device, of which the matrix number `step[0]` is
        taken, and the address of the noise is that of the step. used: a bit for each column of
        such a table that is not all zeros. row_out: receives the history row, and may be a history
        row itself.

        Where `keeps_matrices`: a matrix of all rows may lie on the device, with its `used`.
        """

    @abstractmethod
    def residual(
        self,
        output: torch.Tensor,
        offset: torch.Tensor,
        weights: torch.Tensor | AtTimes,
        *,
        scale: torch.Tensor | None = None,
        factor: float = 1.0,
        reduce: bool = False,
        gradient: bool = True,
        overwrite: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """`loss_i = factor scale_i sum |R_o o + R_e e|^2` of each row, and its gradient in o.

        output: o, (B, rC, ...). offset: e, (B, pC, ...). weights: float64 (B, q, r + p), the blocks
        R_o and R_e side by side. scale: float64 (B,). reduce: the sum over rows, (), instead of
        (B,). gradient: None is returned for it if it is not asked for. overwrite: it may take the
        memory of the offset.
        """

    def covers(self, weights: AtTimes) -> bool:
        """Whether a table covers the times of all rows; the host waits if it has to look."""
        return weights.inside or bool(weights.table.covers(weights.t).all())

    def matrices(self, weights: AtTimes) -> torch.Tensor | None:
        """A table's matrices, float64 (B, rows, columns); None where a time lies outside it."""
        return weights.table(weights.t) if self.covers(weights) else None

    def words(
        self, address: NoiseAddress, count: int, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The two words of `count` pairs, int64 (count,), as `kernels.philox.pair_words`."""
        return philox.pair_words(address, count, device)

    def advance(self, step: torch.Tensor, times: torch.Tensor, time: torch.Tensor) -> None:
        """`step[0] += 1`, then `time = times[step[0]]` while there is one; int64 (3,), (N,) and ().

        Only where `counts_steps`.
        """
        raise NotImplementedError(f"backend {self.name!r} keeps no step on the device")
