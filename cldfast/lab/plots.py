"""Pictures of samples, quality and training, written as files that are whole or absent.

Figures are built without pyplot, so no global state, window or style of the caller is touched. The
ending of the path chooses the format (.png, .pdf, .svg).

Every function raises ValueError for values that do not fit and for a path that cannot be written,
TypeError for what is no tensor or array of numbers, and ImportError without matplotlib.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cldfast.extras import extra_module
from cldfast.files import PathLike, write_atomic
from cldfast.lab.arrays import as_float64

_DPI = 150

# Beyond this many points a scatter plot only gets slower and darker.
_SCATTER_LIMIT = 20_000

# Colours that stay apart in common kinds of colour blindness (Okabe and Ito 2008). Each has a
# marker of its own, so that lines can be told apart in print too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "os^Dv<>"


def image_grid(images: Any, path: PathLike, rows: int = 8, columns: int = 16) -> None:
    """Draw images in a grid, row by row; cells without an image stay white.

    images: (n, 1, H, W) grey, (n, 3, H, W) colour or (n, H, W) grey, in [-1, 1]; values outside are
    clipped, images past rows x columns left out.
    """
    array = as_float64(images, "images", integers=True)
    if array.ndim == 3:
        array = array[:, None]
    if array.ndim != 4 or array.size == 0 or array.shape[1] not in (1, 3):
        raise ValueError(
            f"images: expected shape (n, 1 or 3, H, W) or (n, H, W), got {tuple(images.shape)}"
        )
    if rows < 1 or columns < 1:
        raise ValueError(f"rows and columns: expected at least 1, got {rows} and {columns}")
    array = array[: rows * columns]
    height, width = array.shape[2:]
    gap = max(1, min(height, width) // 8)
    # A cell has its gap above and to the left; one more gap closes the grid.
    tall, wide = height + gap, width + gap
    cells = np.ones((rows * columns, tall, wide, 3))
    cells[: len(array), gap:, gap:] = (array.clip(-1.0, 1.0).transpose(0, 2, 3, 1) + 1.0) / 2.0
    canvas = cells.reshape(rows, columns, tall, wide, 3).swapaxes(1, 2)
    canvas = canvas.reshape(rows * tall, columns * wide, 3)
    canvas = np.pad(canvas, ((0, gap), (0, gap), (0, 0)), constant_values=1.0)
    # Whole repeats of each pixel, at least about 1,200 across, keep pixels sharp and square.
    zoom = max(1, -(-1200 // canvas.shape[1]))
    canvas = canvas.repeat(zoom, axis=0).repeat(zoom, axis=1)
    figure = new_figure(canvas.shape[1] / _DPI, canvas.shape[0] / _DPI)
    figure.figimage(canvas)
    save(figure, path)


def scatter(samples: Any, reference: Any, path: PathLike) -> None:
    """Draw two-dimensional samples beside reference data, on the same axes.

    samples, reference: (n, 2) and (m, 2); of each, the first 20,000 are drawn. The axes are those
    of the reference, so samples that ran away do not squash the picture.
    """
    given = {"data": reference, "samples": samples}
    clouds = {name: as_float64(value, name, integers=True) for name, value in given.items()}
    for name, cloud in clouds.items():
        if cloud.ndim != 2 or cloud.shape[1] != 2 or len(cloud) == 0:
            raise ValueError(f"{name}: expected shape (n, 2), got {cloud.shape}")
    figure = new_figure(9.0, 4.6)
    low, high = clouds["data"].min(axis=0), clouds["data"].max(axis=0)
    margin = 0.08 * np.where(high > low, high - low, 1.0)
    for index, (name, cloud) in enumerate(clouds.items()):
        axes = figure.add_subplot(1, 2, index + 1)
        shown = cloud[:_SCATTER_LIMIT]
        size = float(np.clip(8000 / len(shown), 0.5, 12.0))
        axes.scatter(*shown.T, s=size, c=COLOURS[index], linewidths=0, alpha=0.6, rasterized=True)
        axes.set_xlim(low[0] - margin[0], high[0] + margin[0])
        axes.set_ylim(low[1] - margin[1], high[1] + margin[1])
        axes.set(title=f"{name} ({len(shown):,})", xlabel="$x_1$", ylabel="$x_2$")
    save(figure, path)


def quality_curve(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    floor: float | None,
    path: PathLike,
    title: str = "",
) -> None:
    """Draw a distance against network evaluations, one line a sampler, both axes logarithmic.

    series: name to (evaluations, values), both positive and of one length; a run that diverged
        (non-finite value) leaves a gap in the line and is counted in its label.
    floor: distance of the training set to the test set, drawn dashed; None: no line.
    """
    if not series:
        raise ValueError("series: expected at least one")
    if floor is not None and not (np.isfinite(floor) and floor > 0):
        raise ValueError(f"floor: expected a positive number or None, got {floor}")
    figure = new_figure(6.4, 4.4)
    axes = figure.add_subplot()
    ticks: set[float] = set()
    drawn = 0
    for index, (name, (evaluations, values)) in enumerate(series.items()):
        n, w = (np.asarray(part, dtype=np.float64) for part in (evaluations, values))
        if n.ndim != 1 or n.size == 0 or n.shape != w.shape:
            raise ValueError(
                f"{name}: expected two sequences of one length, got {n.shape}, {w.shape}"
            )
        if not (np.isfinite(n).all() and (n > 0).all()) or (w <= 0).any():
            raise ValueError(f"{name}: expected positive evaluations and values")
        kept = np.isfinite(w)
        lost = int((~kept).sum())
        label = f"{name} ({lost} diverged)" if lost else name
        look = index % len(COLOURS)
        axes.plot(
            n, np.where(kept, w, np.nan), label=label, markersize=5, linewidth=1.6,
            color=COLOURS[look], marker=MARKERS[look],
        )  # fmt: skip
        ticks.update(n.tolist())
        drawn += int(kept.sum())
    axes.set_xscale("log")
    if floor is not None:
        axes.axhline(floor, color="0.35", linestyle="--", linewidth=1.2)
        axes.plot([], [], color="0.35", linestyle="--", label=f"train to test: {floor:.3g}")
    axes.set_xticks(sorted(ticks), [f"{tick:g}" for tick in sorted(ticks)])
    # A logarithmic axis needs a value, and there is none where every run diverged.
    if drawn:
        axes.set_yscale("log")
        decimal_ticks(axes)
    axes.minorticks_off()
    distance = "sliced $W_2$ to the test set"
    axes.set(xlabel="network evaluations", ylabel=distance, title=title)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.legend(frameon=False)
    save(figure, path)


def loss_curve(steps: Sequence[float], losses: Sequence[float], path: PathLike) -> None:
    """Draw the training loss against the step: every value pale, a running mean on top.

    steps, losses: of one length; the value axis is logarithmic where all losses are positive.
    """
    at = as_float64(np.asarray(steps), "steps", integers=True)
    loss = as_float64(np.asarray(losses), "losses", integers=True)
    if at.ndim != 1 or at.size == 0 or at.shape != loss.shape:
        raise ValueError(f"steps and losses: expected one length, got {at.shape} and {loss.shape}")
    figure = new_figure(6.4, 4.0)
    axes = figure.add_subplot()
    axes.plot(at, loss, color=COLOURS[0], alpha=0.3, linewidth=0.8)
    window = max(1, len(loss) // 50)
    if window > 1:
        mean = np.convolve(loss, np.full(window, 1.0 / window), "valid")
        axes.plot(
            at[window - 1 :], mean, color=COLOURS[0], label=f"mean of the last {window} values"
        )
        axes.legend(frameon=False)
    if (loss > 0).all():
        axes.set_yscale("log")
        decimal_ticks(axes)
    axes.set(xlabel="training step", ylabel="loss")
    axes.grid(alpha=0.25, linewidth=0.6)
    save(figure, path)


def new_figure(width: float, height: float) -> Any:
    """An empty figure, inches wide and high."""
    kind = extra_module("matplotlib.figure", "plots need matplotlib").Figure
    return kind(figsize=(width, height), dpi=_DPI, layout="constrained")


def decimal_ticks(axes: Any) -> None:
    """Plain numbers at 1, 2 and 5 times the powers of ten on the value axis."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def save(figure: Any, path: PathLike) -> None:
    """Draw in memory, then write the whole file, in the format that its ending names."""
    target = Path(path)
    if not target.parent.is_dir():
        raise ValueError(f"{target}: the directory {target.parent} does not exist")
    ending = target.suffix.lstrip(".").lower()
    known = figure.canvas.get_supported_filetypes()
    if ending not in known:
        raise ValueError(
            f"{target.name}: unknown format {ending!r}; expected one of {', '.join(sorted(known))}"
        )
    drawn = io.BytesIO()
    figure.savefig(drawn, format=ending, dpi=_DPI)
    write_atomic(target, drawn.getvalue())
