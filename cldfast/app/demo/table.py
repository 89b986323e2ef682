"""What the demo prints at its end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def table(report: dict[str, Any]) -> str:
    """The report as text."""
    sampling, fitted = report["sampling"], report["fitted"]
    lines = ["", *_curves(sampling["points"]), "", *_gain(sampling["equal_quality"])]
    lines += [
        "",
        f"training set to test set       {sampling['floor']:.4f}",
        f"digits read as asked for       {100.0 * fitted['read_as_asked']:.1f} %",
        f"nearest training image at      {fitted['nearest_train_over_test_median']:.2f} of a test "
        "image's distance",
    ]
    if not fitted["improved"]:
        lines.append("the plan in plans/ is the base of its fit, which the fit did not beat")
    if training := report.get("training"):
        lines.append(_training(training))
    lines.append(f"{report['seconds']:.0f} s in all")
    return "\n".join(lines)


def _curves(points: Sequence[dict[str, Any]]) -> list[str]:
    counts = sorted({point["evaluations"] for point in points})
    lines = ["sliced W2 to the test set, by network evaluations"]
    lines.append(f"  {'sampler':<18}" + "".join(f"{count:>9}" for count in counts))
    for name in dict.fromkeys(point["sampler"] for point in points):
        own = {p["evaluations"]: p for p in points if p["sampler"] == name}
        cells = "".join(f"{_cell(own.get(count)):>9}" for count in counts)
        lines.append(f"  {_shown(next(iter(own.values()))):<18}{cells}")
    return lines


def _shown(point: dict[str, Any]) -> str:
    return f"{point['sampler']} (published)" if point["published"] else str(point["sampler"])


def _cell(point: dict[str, Any] | None) -> str:
    if point is None:
        return ""
    return "diverged" if point["sliced_w2"] is None else f"{point['sliced_w2']:.4f}"


def _gain(equal: dict[str, Any]) -> list[str]:
    """What a user gains at the quality of the best published run."""
    reached = equal["points"]
    if not (published := [p for p in reached if p["published"]]):
        return ["every published sampler diverged"]
    against = min(p["evaluations"] for p in published)
    seconds = min(p["seconds"] for p in published)
    lines = [
        f"to sliced W2 <= {equal['sliced_w2']:.4f}, as the published samplers at their best",
        f"  {'sampler':<18}{'evaluations':>13}{'seconds':>10}{'gain':>9}",
    ]
    for point in reached:
        gain = "" if point["published"] else f"{against / point['evaluations']:.1f} x"
        lines.append(
            f"  {_shown(point):<18}{point['evaluations']:>13}{point['seconds']:>10.2f}{gain:>9}"
        )
    ours = [p for p in reached if not p["published"]]
    if ours:
        best = min(ours, key=lambda p: p["evaluations"])
        lines.append(
            f"  {against / best['evaluations']:.1f} times fewer evaluations, "
            f"{seconds / best['seconds']:.1f} times faster (em and sscs run by our kernels too)"
        )
    return lines


def _training(training: dict[str, Any]) -> str:
    text = (
        f"training                       {training['steps']} steps in {training['seconds']:.0f} s"
    )
    if "loss_at_first" in training:
        text += f", loss {training['loss_at_first']:.1f} -> {training['loss_at_last']:.1f}"
    else:
        text += f", validation loss {training['validation_loss']:.1f}"
    return text
