"""Where a seed comes from that nobody gives: PyTorch's generator, and the rank of the process."""

from __future__ import annotations

import torch
from torch import distributed

from cldfast.kernels.address import NoiseAddress, Stream

# Samples between the first ones of neighbouring ranks: more than a call can have, so that ranks
# which draw equal seeds share no sample, whatever their batch sizes. 2^63 indices of coordinates
# leave room for 1,024 ranks of samples with 2^21 coordinates.
RANK_STRIDE = 2**32


def noise_address(
    seed: int | None = None,
    first_index: int = 0,
    generator: torch.Generator | None = None,
    *,
    stream: int = Stream.SAMPLER,
) -> NoiseAddress:
    """The noise of samples `first_index` and following under a seed.

    seed: in [0, 2^64), an integer of Python or numpy, and taken at its word. None draws 63 bits
        from `generator`, or from PyTorch's default generator of the CPU, which `torch.manual_seed`
        governs; where `torch.distributed` is initialised and no generator is given, the samples of
        rank r begin at `first_index + r RANK_STRIDE`, so that no two ranks have noise in common.

    Raises ValueError for a seed and a generator at once, TypeError for what is neither.
    """
    if seed is not None:
        if generator is not None:
            raise ValueError("give seed= or generator=, not both")
        return NoiseAddress(seed, first_index, stream=stream)
    device = torch.device("cpu")
    if generator is not None:
        if not isinstance(generator, torch.Generator):
            raise TypeError(
                f"generator must be a torch.Generator, got {type(generator).__name__}: an integer "
                "goes to seed="
            )
        device = generator.device
    drawn = torch.randint(0, 2**63 - 1, (), dtype=torch.int64, generator=generator, device=device)
    if generator is None and distributed.is_available() and distributed.is_initialized():
        first_index = first_index + distributed.get_rank() * RANK_STRIDE
    return NoiseAddress(int(drawn.item()), first_index, stream=stream)
