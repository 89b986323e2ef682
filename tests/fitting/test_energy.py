"""The sliced energy distance against its definition."""

from __future__ import annotations

import pytest
import torch

from cldfast.fitting.energy import directions, sliced_energy


def pairwise(x: torch.Tensor, y: torch.Tensor, along: torch.Tensor) -> torch.Tensor:
    """The same estimate from all pairs."""
    a, b = (x @ along).T, (y @ along).T
    n, m = len(x), len(y)

    def total(s: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return (s[:, :, None] - t[:, None, :]).abs().sum((1, 2))

    mean = 2.0 * total(a, b) / (n * m) - total(a, a) / (n * (n - 1)) - total(b, b) / (m * (m - 1))
    return mean.mean()


@pytest.mark.parametrize(("n", "m"), [(2, 2), (7, 5), (4, 9)])
def test_it_is_the_mean_over_pairs(n: int, m: int) -> None:
    generator = torch.Generator().manual_seed(n)
    x = torch.randn(n, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    y = torch.randn(m, 3, generator=generator, dtype=torch.float64) + 0.3
    along = directions(3, 6, generator).double()
    value, wanted = sliced_energy(x, y, along), pairwise(x, y, along)
    torch.testing.assert_close(value, wanted, rtol=1e-12, atol=1e-12)
    gradients = [torch.autograd.grad(v, x)[0] for v in (value, wanted)]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)


def test_stretched_tails_are_a_map_of_projections() -> None:
    """Far out the map multiplies distances by `1 + 2 tails |a|/s`."""
    generator = torch.Generator().manual_seed(4)
    x, y = (torch.randn(6, 1, generator=generator, dtype=torch.float64) for _ in range(2))
    one = torch.ones(1, 1, dtype=torch.float64)
    size = y.square().mean().sqrt()
    stretched = [z + 0.7 * z * z.abs() / size for z in (x, y)]
    made, wanted = sliced_energy(x, y, one, 0.7), pairwise(*stretched, one)
    torch.testing.assert_close(made, wanted, rtol=1e-12, atol=1e-12)


def test_it_is_unbiased() -> None:
    """N(0, 1) and N(1, 1): `2 E|Z sqrt2 + 1| - 2 E|Z sqrt2|` in closed form."""
    density = torch.exp(torch.tensor(-0.25, dtype=torch.float64)) / torch.pi**0.5
    moved = 2.0 * density + torch.erf(torch.tensor(0.5, dtype=torch.float64))
    exact = 2.0 * (moved - 2.0 / torch.pi**0.5)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 5, 1, generator=generator, dtype=torch.float64)
    y = torch.randn(4000, 4, 1, generator=generator, dtype=torch.float64) + 1.0
    one = torch.ones(1, 1, dtype=torch.float64)
    values = torch.stack([sliced_energy(a, b, one) for a, b in zip(x, y, strict=True)])
    error = values.std() / len(values) ** 0.5
    assert abs(values.mean() - exact) < 4.0 * error and error < 0.02


def test_directions_are_unit_vectors_of_their_generator() -> None:
    made = [directions(4, 9, torch.Generator().manual_seed(3)) for _ in range(2)]
    assert torch.equal(*made)
    torch.testing.assert_close(made[0].norm(dim=0), torch.ones(9))
