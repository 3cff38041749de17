"""Charts of the report, as SVG elements in the colors and fonts of its page.

Charts need matplotlib, an optional dependency. Colors are CSS variables of the page, so that charts
follow its light and dark mode.
"""

import io
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from html import escape
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from sepc_zoo.evaluation.average_precision import IOU_THRESHOLDS, RECALL_THRESHOLDS, Floats
from sepc_zoo.evaluation.diagnosis import Calibration, Sweep, Threshold

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Colors to draw with, each replaced by a CSS variable of the page.
INK, MUTED, LINE, FIRST, SECOND = (f"#00000{i}" for i in range(1, 6))
VARIABLES = {INK: "ink", MUTED: "muted", LINE: "line", FIRST: "first", SECOND: "second"}
STYLE: Any = {
    "svg.fonttype": "none",  # text elements, in the page's font
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": LINE,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.bottom": False,
    "ytick.left": False,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
}
NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))
IN_POINTS: dict[str, Any] = {"textcoords": "offset points", "annotation_clip": False}
QUARTERS = (0.0, 0.25, 0.5, 0.75, 1.0)


def style() -> AbstractContextManager[None]:
    """Let charts that are drawn inside ``with style():`` have the report's style.

    Raises:
        ImportError: matplotlib is not installed.
    """
    if not find_spec("matplotlib"):
        raise ImportError('a report needs matplotlib: pip install "sepc_zoo[plots]"')
    from matplotlib import rc_context

    return rc_context(STYLE)


def precision_recall(precision: Floats, svg_id: str, label: str) -> str:
    """Plot a class's precision ``(T, R)`` over recall at IoU 0.5 and 0.75."""
    figure, axes = _figure(2.6, 1.8)
    for row, color in ((5, SECOND), (0, FIRST)):
        axes.plot(RECALL_THRESHOLDS, precision[row], color=color, clip_on=False)
    _unit_square(axes)
    return _svg(figure, svg_id, label)


def mean_precision_recall(precision: Floats) -> str:
    """Plot precision ``(T, R)``, averaged over classes, at each IoU threshold."""
    figure, axes = _figure(4.0, 2.9)
    for row in range(len(IOU_THRESHOLDS) - 1, -1, -1):
        marked = {0: FIRST, 5: SECOND}.get(row)
        axes.plot(
            RECALL_THRESHOLDS, precision[row], color=marked or MUTED, linewidth=2 if marked else 0.7
        )
    _unit_square(axes, "recall", "precision")
    return _svg(figure, "mean-curves", "mean precision over recall at each IoU threshold")


def ap_by_iou(values: Sequence[float]) -> str:
    """Plot AP at each IoU threshold."""
    figure, axes = _figure(4.0, 2.9)
    axes.plot(IOU_THRESHOLDS, values, "o-", color=FIRST, markersize=4, clip_on=False)
    for x, y in zip(IOU_THRESHOLDS, values, strict=True):
        axes.annotate(_short(y), (x, y), (2, 5), color=INK, **IN_POINTS)
    axes.set(xlabel="IoU threshold", ylabel="AP", ylim=(0, max(0.1, *values) * 1.15))
    axes.yaxis.set_major_formatter(lambda value, _: _short(value))
    axes.set_xticks(IOU_THRESHOLDS, [_short(value) for value in IOU_THRESHOLDS])
    axes.grid(axis="x", visible=False)
    return _svg(figure, "ap-by-iou", "AP at each IoU threshold")


def ap_by_size(names: Sequence[str], ap: Sequence[float], ar: Sequence[float]) -> str:
    """Plot AP and AR of each object size; -1 where there are no objects."""
    figure, axes = _figure(4.0, 2.9)
    rows = np.arange(len(names))[::-1]
    for offset, values, color, name in ((0.19, ap, FIRST, "AP"), (-0.19, ar, SECOND, "AR")):
        bars = axes.barh(rows + offset, np.maximum(values, 0), 0.34, color=color)
        texts = [f"{name} {_short(value) if value >= 0 else '-'}" for value in values]
        axes.bar_label(bars, texts, padding=5, color=INK)
    axes.set_yticks(rows, names)
    axes.tick_params(axis="y", labelcolor=INK)
    axes.set(xlim=(0, 1), xticks=QUARTERS, xticklabels=map(_short, QUARTERS))
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    return _svg(figure, "ap-by-size", "AP and AR by object size")


def error_costs(costs: Mapping[str, float]) -> str:
    """Plot the AP that each kind of error costs; the last two kinds contain the others."""
    figure, axes = _figure(4.0, 3.4)
    rows = np.arange(len(costs), 0, -1) - 0.5 * (np.arange(len(costs)) >= len(costs) - 2)
    colors = [FIRST] * (len(costs) - 2) + [MUTED] * 2
    bars = axes.barh(rows, [*costs.values()], 0.64, color=colors)
    texts = [f"{value:.3f}".removeprefix("0") for value in costs.values()]
    axes.bar_label(bars, texts, padding=5, color=INK)
    axes.set_yticks(rows, [*costs])
    axes.tick_params(axis="y", labelcolor=INK)
    axes.set(xlim=(0, 1.15 * max(0.01, *costs.values())), xlabel="AP50 to gain")
    axes.locator_params(axis="x", nbins=5)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.3g}".removeprefix("0") or "0")
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    return _svg(figure, "error-costs", "AP50 that each kind of error costs")


def reliability(calibration: Calibration) -> str:
    """Plot the share of correct detections over their score, and below it their number."""
    figure, (axes, counts) = _figure(4.6, 3.6, rows=(4, 1))
    known = calibration.detections > 0
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8, dashes=(4, 3))
    axes.plot(calibration.score[known], calibration.correct[known], "o-", color=FIRST, markersize=5)
    axes.text(0.03, 0.92, "underconfident", color=MUTED)
    axes.text(0.97, 0.05, "overconfident", color=MUTED, ha="right")
    _unit_square(axes, ylabel="correct")
    axes.set_xticklabels([])
    bins = len(known)
    counts.bar((np.arange(bins) + 0.5) / bins, calibration.detections, 0.8 / bins, color=MUTED)
    _unit_square(counts, "score", "number")
    counts.set_ylim(0, max(1, calibration.detections.max()))
    counts.set_yticks([])
    counts.spines["left"].set_visible(False)
    return _svg(figure, "reliability", "share of correct detections by score")


def threshold_choice(sweep: Sweep, best: Threshold) -> str:
    """Plot precision, recall and F1 over the score threshold, and mark the best F1."""
    figure, axes = _figure(4.6, 3.6)
    at = np.linspace(0, 1, 201)
    rows = np.searchsorted(-sweep.scores, -at, side="right") - 1  # last score over the threshold
    for values, color in zip(sweep[1:], (FIRST, SECOND, INK), strict=True):
        axes.plot(at, np.where(rows >= 0, values[rows], np.nan), color=color, clip_on=False)
    axes.axvline(best.score, color=MUTED, linewidth=0.8, dashes=(4, 3))
    axes.plot(best.score, best.f1, "o", color=INK, markersize=5)
    place = (4, 5) if best.score < 0.8 else (-28, 5)
    axes.annotate(f"{best.score:.3f}", (best.score, 0), place, color=INK, **IN_POINTS)
    _unit_square(axes, "score threshold")
    return _svg(figure, "threshold-choice", "precision, recall and F1 by score threshold")


def _figure(width: float, height: float, rows: Sequence[int] = (1,)) -> "tuple[Figure, Any]":
    """Create an empty chart, in inches, with axes of these relative heights, without pyplot."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    figure.patch.set_visible(False)
    return figure, figure.subplots(len(rows), height_ratios=rows)


def _unit_square(axes: "Axes", xlabel: str = "", ylabel: str = "") -> None:
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel=xlabel, ylabel=ylabel)
    axes.set_xticks(QUARTERS, map(_short, QUARTERS))
    axes.set_yticks(QUARTERS, map(_short, QUARTERS))


def _short(value: float) -> str:
    """Format with two digits, as tables of AP do: .43, 1, 0."""
    text = f"{value:.2f}"
    return {"0.00": "0", "1.00": "1"}.get(text, text.removeprefix("0"))


def _svg(figure: "Figure", svg_id: str, label: str) -> str:
    """Render the chart as an SVG element whose ids are unique in the page."""
    from matplotlib import rc_context

    file = io.StringIO()
    with rc_context({"svg.hashsalt": svg_id}):
        figure.savefig(file, format="svg", metadata=NO_METADATA)
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :].replace('<g id="', f'<g id="{svg_id}-')
    for color, variable in VARIABLES.items():
        svg = svg.replace(color, f"var(--{variable})")
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1).strip()
