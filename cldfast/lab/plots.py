"""Pictures of samples, quality and training, written as files that are whole or absent.

Figures are built without pyplot, so no global state, window or style of the caller is touched. The
ending of the path chooses the format (.png, .pdf, .svg).
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

PathLike = str | os.PathLike[str]

_DPI = 150

# Beyond this many points a scatter plot only gets slower and darker.
_SCATTER_LIMIT = 20_000

# Colours that stay apart in common kinds of colour blindness (Okabe and Ito 2008), each with its
# own marker so that the lines are told apart in print as well.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = "os^Dv<>"


def image_grid(images: Any, path: PathLike, rows: int = 8, columns: int = 16) -> None:
    """Draw images in a grid, row by row; cells without an image stay white.

    Args:
        images: (n, 1, H, W) grey, (n, 3, H, W) colour or (n, H, W) grey, in [-1, 1]; values
            outside are clipped, images past rows x columns left out.
        path: file to write.
        rows, columns: cells.

    Raises:
        ValueError: wrong shape, non-finite values, rows or columns below 1, a bad path.
        TypeError: not a tensor or array of numbers.
        ImportError: matplotlib is missing.
    """
    array = _array(images, "images")
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
    tall, wide = rows * (height + gap) + gap, columns * (width + gap) + gap
    canvas = np.ones((tall, wide, 3))
    for index, image in enumerate((array.clip(-1.0, 1.0) + 1.0) / 2.0):
        top = gap + (index // columns) * (height + gap)
        left = gap + (index % columns) * (width + gap)
        canvas[top : top + height, left : left + width] = image.transpose(1, 2, 0)
    # Whole repeats of each pixel, at least about 1,200 across, keep pixels sharp and square.
    zoom = max(1, -(-1200 // wide))
    canvas = canvas.repeat(zoom, axis=0).repeat(zoom, axis=1)
    figure = _figure(canvas.shape[1] / _DPI, canvas.shape[0] / _DPI)
    figure.figimage(canvas)
    _save(figure, path)


def scatter(samples: Any, reference: Any, path: PathLike) -> None:
    """Draw two-dimensional samples beside reference data, on the same axes.

    Args:
        samples, reference: (n, 2) and (m, 2); of each, the first 20,000 are drawn. The axes are
            those of the reference, so samples that ran away do not squash the picture.
        path: file to write.

    Raises:
        ValueError: wrong shape, non-finite values, a bad path.
        TypeError: not a tensor or array of numbers.
        ImportError: matplotlib is missing.
    """
    clouds = {"data": _array(reference, "reference"), "samples": _array(samples, "samples")}
    for name, cloud in clouds.items():
        if cloud.ndim != 2 or cloud.shape[1] != 2 or len(cloud) == 0:
            raise ValueError(f"{name}: expected shape (n, 2), got {cloud.shape}")
    figure = _figure(9.0, 4.6)
    low, high = clouds["data"].min(axis=0), clouds["data"].max(axis=0)
    margin = 0.08 * np.where(high > low, high - low, 1.0)
    for index, (name, cloud) in enumerate(clouds.items()):
        axes = figure.add_subplot(1, 2, index + 1)
        shown = cloud[:_SCATTER_LIMIT]
        size = float(np.clip(8000 / len(shown), 0.5, 12.0))
        axes.scatter(*shown.T, s=size, c=_COLOURS[index], linewidths=0, alpha=0.6, rasterized=True)
        axes.set_xlim(low[0] - margin[0], high[0] + margin[0])
        axes.set_ylim(low[1] - margin[1], high[1] + margin[1])
        axes.set_title(f"{name} ({len(shown):,})")
        axes.set_xlabel("$x_1$")
        axes.set_ylabel("$x_2$")
    _save(figure, path)


def quality_curve(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    floor: float | None,
    path: PathLike,
    *,
    floor_label: str = "train to test",
    ylabel: str = "sliced $W_2$ to the test set",
    title: str = "",
    ceiling: float | None = None,
) -> None:
    """Draw a distance against network evaluations, one line a sampler, both axes logarithmic.

    Args:
        series: name to (evaluations, values), both positive and of one length; a run that
            diverged (non-finite value) leaves a gap in the line and is counted in its label.
        floor: distance that no sampler is expected to pass, drawn dashed; None: no line.
        path: file to write.
        floor_label: what the floor is, for the legend.
        ylabel, title: texts.
        ceiling: top of the value axis; None: as far as the values go.

    Raises:
        ValueError: no series, lengths that differ, values not positive, a bad path.
        ImportError: matplotlib is missing.
    """
    if not series:
        raise ValueError("series: expected at least one")
    if floor is not None and not (np.isfinite(floor) and floor > 0):
        raise ValueError(f"floor: expected a positive number or None, got {floor}")
    figure = _figure(6.4, 4.4)
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
        style = {
            "color": _COLOURS[index % len(_COLOURS)],
            "marker": _MARKERS[index % len(_MARKERS)],
        }
        axes.plot(n, np.where(kept, w, np.nan), label=label, markersize=5, linewidth=1.6, **style)
        ticks.update(n.tolist())
        drawn += int(kept.sum())
    axes.set_xscale("log")
    if floor is not None:
        axes.axhline(floor, color="0.35", linestyle="--", linewidth=1.2)
        axes.plot([], [], color="0.35", linestyle="--", label=f"{floor_label}: {floor:.3g}")
    if ceiling is not None:
        axes.set_ylim(top=ceiling)
    axes.set_xticks(sorted(ticks), [f"{tick:g}" for tick in sorted(ticks)])
    # Where every run diverged there is nothing to spread a logarithmic axis over.
    if drawn:
        axes.set_yscale("log")
        _decimal_ticks(axes)
    axes.minorticks_off()
    axes.set_xlabel("network evaluations")
    axes.set_ylabel(ylabel)
    axes.set_title(title)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.legend(frameon=False)
    _save(figure, path)


def loss_curve(steps: Sequence[float], losses: Sequence[float], path: PathLike) -> None:
    """Draw the training loss against the step: every value pale, a running mean on top.

    Args:
        steps, losses: of one length; the value axis is logarithmic where all losses are positive.
        path: file to write.

    Raises:
        ValueError: empty, lengths that differ, non-finite values, a bad path.
        ImportError: matplotlib is missing.
    """
    at, loss = _array(np.asarray(steps), "steps"), _array(np.asarray(losses), "losses")
    if at.ndim != 1 or at.size == 0 or at.shape != loss.shape:
        raise ValueError(f"steps and losses: expected one length, got {at.shape} and {loss.shape}")
    figure = _figure(6.4, 4.0)
    axes = figure.add_subplot()
    axes.plot(at, loss, color=_COLOURS[0], alpha=0.3, linewidth=0.8)
    window = max(1, len(loss) // 50)
    if window > 1:
        sums = np.concatenate([[0.0], loss.cumsum()])
        mean = (sums[window:] - sums[:-window]) / window
        axes.plot(
            at[window - 1 :], mean, color=_COLOURS[0], label=f"mean of the last {window} values"
        )
        axes.legend(frameon=False)
    if (loss > 0).all():
        axes.set_yscale("log")
        _decimal_ticks(axes)
    axes.set_xlabel("training step")
    axes.set_ylabel("loss")
    axes.grid(alpha=0.25, linewidth=0.6)
    _save(figure, path)


def _figure(width: float, height: float) -> Any:
    """An empty figure, inches wide and high, on its own Agg canvas."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'cldfast[demo]'") from error
    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _decimal_ticks(axes: Any) -> None:
    """Plain numbers at 1, 2 and 5 times the powers of ten on the value axis."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _save(figure: Any, path: PathLike) -> None:
    """Draw in memory, write beside the target, then rename: no reader sees half a file."""
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
    beside = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        beside.write_bytes(drawn.getvalue())
        os.replace(beside, target)
    finally:
        beside.unlink(missing_ok=True)


def _array(value: Any, name: str) -> NDArray[np.float64]:
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().double().numpy()
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiu":
        got = value.dtype if isinstance(value, np.ndarray) else type(value).__name__
        raise TypeError(f"{name}: expected a tensor or an array of numbers, got {got}")
    if not np.isfinite(value).all():
        raise ValueError(f"{name}: expected finite numbers")
    return value.astype(np.float64)
