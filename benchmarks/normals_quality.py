"""Statistical quality of the addressed normals.

    python benchmarks/normals_quality.py --count 1e8

prints moments, the Kolmogorov-Smirnov distance, tail counts up to 5.5 sigma and correlations, each
in units of its standard error, and writes them to benchmarks/results/normals_quality.csv. The words
are standard Philox4x32-10, which passes TestU01's BigCrush (Salmon et al. 2011, table 2); what is
measured here is what is made of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from output import RESULTS, new_parser, write_csv

from cldfast import NoiseAddress, kernels

# Even moments of a standard normal, 0!!, 2 - 1!!, ...: E z^(2k) = (2k - 1)!!.
_MOMENTS = {0: 1, 2: 1, 4: 3, 6: 15, 8: 105}


def normals(
    seed: int, first_pair: int, count: int, stage_index: int = 0, stream: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """(z_x, z_v) in float32 of `count` pairs, from the fastest kernel of this machine.

    They are what a stage of noise alone makes.
    """
    noise = NoiseAddress(seed, first_pair, stage_index, stream)
    weights = torch.tensor([[[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]], dtype=torch.float64)
    state = kernels.stage(None, (torch.empty(count, 1),), (), weights, noise=noise).state
    return state[:, 0].contiguous(), state[:, 1].contiguous()


def moments(z: torch.Tensor) -> Iterator[tuple[str, float, float]]:
    """Name, deviation from the normal law's value, and standard error of the first four moments."""
    z = z.double()
    for power in range(1, 5):
        expected = _MOMENTS.get(power, 0)
        variance = _MOMENTS[2 * power] - expected**2
        yield f"moment {power}", float((z**power).mean()) - expected, math.sqrt(variance / len(z))


def kolmogorov_smirnov(z: torch.Tensor) -> float:
    """The largest distance of the empirical distribution function from the normal law's."""
    law = torch.special.ndtr(z.sort().values.double())
    steps = torch.arange(len(z) + 1, dtype=torch.float64) / len(z)
    return float(torch.maximum((law - steps[:-1]).max(), (steps[1:] - law).max()))


def tails(z: torch.Tensor) -> Iterator[tuple[float, int, float]]:
    """Threshold, how many values lie beyond it on either side, and how many should."""
    size = z.abs()
    for threshold in (1.0, 2.0, 3.0, 4.0, 4.5, 5.0, 5.5):
        expected = len(z) * math.erfc(threshold / math.sqrt(2.0))
        yield threshold, int((size > threshold).sum()), expected


def correlations(count: int) -> Iterator[tuple[str, float]]:
    """Name and correlation over `count` pairs of what must be independent.

    The values, and their squares: Box and Muller's two normals share a radius, which shows there if
    anything is left of it.
    """
    z_x, z_v = normals(1, 0, count)
    partners = {"the pair's two normals": z_v}
    for lag in (1, 2, 3, 4, 8, 16, 32, 64):
        partners[f"pair + {lag}"] = normals(1, lag, count)[0]
        partners[f"pair + {lag}, the other normal"] = normals(1, lag, count)[1]
    for step in (1, 2, 3, 2**16, 2**31):
        partners[f"step + {step}"] = normals(1, 0, count, stage_index=step)[0]
        partners[f"stream + {step}"] = normals(1, 0, count, stream=step)[0]
        partners[f"seed + {step}"] = normals(1 + step, 0, count)[0]
    partners["seed + 2^32"] = normals(1 + 2**32, 0, count)[0]
    partners["pair + 2^33"] = normals(1, 2**33, count)[0]

    def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
        a, b = a.double() - a.double().mean(), b.double() - b.double().mean()
        return float((a @ b) / (a.norm() * b.norm()))

    for name, partner in partners.items():
        yield name, correlation(z_x, partner)
        yield f"{name}, squares", correlation(z_x**2, partner**2)


def main() -> None:
    """Write the table."""
    parser = new_parser(__doc__, RESULTS / "normals_quality.csv")
    parser.add_argument("--count", type=float, default=1e8, help="normals drawn (default 1e8)")
    arguments = parser.parse_args()
    count = int(arguments.count)
    z = torch.stack(normals(2024, 0, count // 2), dim=1).reshape(-1)
    rows: list[tuple[str, int, float, float]] = []
    for name, deviation, error in moments(z):
        rows.append((name, len(z), deviation, deviation / error))
    distance = kolmogorov_smirnov(z)
    # In units of the statistic's 5 % point, 1.358 / sqrt(n).
    rows.append(("Kolmogorov-Smirnov", len(z), distance, distance * math.sqrt(len(z)) / 1.358))
    for threshold, found, expected in tails(z):
        excess = (found - expected) / math.sqrt(expected)
        rows.append((f"beyond {threshold} sigma", len(z), found / expected, excess))
    del z
    pairs = count // 10
    for name, r in correlations(pairs):
        rows.append((f"correlation: {name}", pairs, r, r * math.sqrt(pairs)))
    columns = ("statistic", "values", "figure", "in standard errors")
    cells = ((name, n, f"{figure:.6g}", f"{score:.2f}") for name, n, figure, score in rows)
    write_csv(arguments.out, [dict(zip(columns, row, strict=True)) for row in cells])
    for name, n, figure, score in rows:
        print(f"{name:45s} n = {n:<11d} {figure:12.4e} {score:7.2f}")


if __name__ == "__main__":
    main()
