"""Charts of an evaluation as SVG to stand in a page, in whose colours and letters they are drawn.

They need matplotlib, which is an extra. Colours are the page's CSS variables, so that a chart
follows the page from light to dark.
"""

import io
import re
from collections.abc import Callable, Sequence
from functools import wraps
from html import escape
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ParamSpec

import numpy as np
from numpy.typing import NDArray

from sepc_zoo.evaluation.metrics import IOU_THRESHOLDS, RECALL_THRESHOLDS
from sepc_zoo.evaluation.report.diagnosis import Calibration, Sweep, Threshold

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# What matplotlib draws with, and the page's variable that takes its place.
INK, MUTED, LINE, FIRST, SECOND = (f"#00000{i}" for i in range(1, 6))
VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    LINE: "--line",
    FIRST: "--first",
    SECOND: "--second",
}
STYLE: Any = {
    "svg.fonttype": "none",  # letters stay letters, in the page's own
    "svg.hashsalt": "sepc_zoo",
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
REPLACEMENTS = (
    (r"<metadata>.*?</metadata>", ""),
    (r"<style.*?</style>", ""),  # would be the whole page's
    (r'(<svg[^>]*?) width="[^"]*" height="[^"]*"', r"\1"),
    (r'<g id="[^"]*"', "<g"),
    (r' clip-path="[^"]*"', ""),
    (r"<clipPath.*?</clipPath>", ""),
    (r" font-family: [^;\"]*;", ""),
    (r"font: ([\d.]+px) [^;\"]*;", r"font-size: \1;"),  # by matplotlib before 3.11
    (r" transform=\"rotate\(-0 [^\"]*\"", ""),
    (r"(\.\d\d)\d{2,}", r"\1"),
    (r"<defs>\s*</defs>", ""),
    (r"\s*\n\s*", " "),
    (r"> <", "><"),
)
IN_POINTS: dict[str, Any] = {"textcoords": "offset points", "annotation_clip": False}
QUARTERS = (0.0, 0.25, 0.5, 0.75, 1.0)
Floats = NDArray[np.float64]
P = ParamSpec("P")


def need_matplotlib() -> None:
    """Raises ImportError, with the way out, where matplotlib is not installed."""
    if not find_spec("matplotlib"):
        raise ImportError('a report needs matplotlib: pip install "sepc_zoo[plots]"')


def styled(draw: Callable[P, str]) -> Callable[P, str]:
    """Draw in our style, and leave matplotlib's settings as they are for others."""

    @wraps(draw)
    def chart(*args: P.args, **kwargs: P.kwargs) -> str:
        from matplotlib import rc_context

        with rc_context(STYLE):
            return draw(*args, **kwargs)

    return chart


@styled
def precision_recall(precision: Floats, label: str) -> str:
    """A class's precision ``(T, R)`` over recall at IoU 0.5 (first colour) and 0.75 (second)."""
    figure, axes = _figure(2.6, 1.8)
    for row, color in ((5, SECOND), (0, FIRST)):
        axes.plot(RECALL_THRESHOLDS, precision[row], color=color, clip_on=False)
    _unit_square(axes)
    return _svg(figure, label)


@styled
def mean_precision_recall(precision: Floats) -> str:
    """Precision ``(T, R)``, the mean over classes, at each IoU threshold."""
    figure, axes = _figure(4.0, 2.9)
    for row in range(len(IOU_THRESHOLDS) - 1, -1, -1):
        marked = {0: FIRST, 5: SECOND}.get(row)
        axes.plot(
            RECALL_THRESHOLDS, precision[row], color=marked or MUTED, linewidth=2 if marked else 0.7
        )
    _unit_square(axes, "recall", "precision")
    return _svg(figure, "precision over recall at each IoU threshold, mean of the classes")


@styled
def ap_by_iou(values: Sequence[float]) -> str:
    """AP at each IoU threshold."""
    figure, axes = _figure(4.0, 2.9)
    axes.plot(IOU_THRESHOLDS, values, "o-", color=FIRST, markersize=4, clip_on=False)
    for x, y in zip(IOU_THRESHOLDS, values, strict=True):
        axes.annotate(_short(y), (x, y), (2, 5), color=INK, **IN_POINTS)
    axes.set(xlabel="IoU threshold", ylabel="AP", ylim=(0, max(0.1, *values) * 1.15))
    axes.yaxis.set_major_formatter(lambda value, _: _short(value))
    axes.set_xticks(IOU_THRESHOLDS, [_short(value) for value in IOU_THRESHOLDS])
    axes.grid(axis="x", visible=False)
    return _svg(figure, "AP at each IoU threshold")


@styled
def ap_by_size(names: Sequence[str], ap: Sequence[float], ar: Sequence[float]) -> str:
    """AP and AR of the sizes of objects, each row with its name; -1 where there are none."""
    figure, axes = _figure(4.0, 2.9)
    rows = np.arange(len(names))[::-1]
    for offset, values, color, name in ((0.19, ap, FIRST, "AP"), (-0.19, ar, SECOND, "AR")):
        axes.barh(rows + offset, np.maximum(values, 0), 0.34, color=color)
        for row, value in zip(rows, values, strict=True):
            text = f"{name} {_short(value) if value >= 0 else '-'}"
            place = max(value, 0), row + offset
            axes.annotate(text, place, (5, 0), va="center", color=INK, **IN_POINTS)
    axes.set_yticks(rows, names)
    axes.tick_params(axis="y", labelcolor=INK)
    axes.set(xlim=(0, 1), xticks=QUARTERS, xticklabels=map(_short, QUARTERS))
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    return _svg(figure, "AP and AR by size of the objects")


@styled
def reliability(calibration: Calibration) -> str:
    """The share of correct detections over their score, and below how many there are."""
    figure, (axes, counts) = _figure(4.6, 3.6, rows=(4, 1))
    known = calibration.detections > 0
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8, dashes=(4, 3))
    axes.plot(calibration.score[known], calibration.correct[known], "o-", color=FIRST, markersize=5)
    axes.text(0.03, 0.92, "too cautious", color=MUTED)
    axes.text(0.97, 0.05, "too sure", color=MUTED, ha="right")
    _unit_square(axes, ylabel="correct")
    axes.set_xticklabels([])
    bins = len(known)
    centers = (np.arange(bins) + 0.5) / bins
    counts.bar(centers, calibration.detections, 0.8 / bins, color=MUTED)
    _unit_square(counts, "score", "number")
    counts.set_ylim(0, max(1, calibration.detections.max()))
    counts.set_yticks([])
    counts.spines["left"].set_visible(False)
    return _svg(figure, "share of correct detections by score")


@styled
def threshold_choice(sweep: Sweep, best: Threshold) -> str:
    """Precision (first colour), recall (second) and F1 over the least score, and the best F1."""
    figure, axes = _figure(4.6, 3.6)
    at = np.linspace(0, 1, 201)
    rows = np.searchsorted(-sweep.scores, -at, side="right") - 1  # the last that is high enough
    lines = ((sweep.precision, FIRST), (sweep.recall, SECOND), (sweep.f1, INK))
    for values, color in lines:
        axes.plot(at, np.where(rows >= 0, values[rows], np.nan), color=color, clip_on=False)
    axes.axvline(best.score, color=MUTED, linewidth=0.8, dashes=(4, 3))
    axes.plot(best.score, best.f1, "o", color=INK, markersize=5)
    place = (4, 5) if best.score < 0.8 else (-28, 5)
    axes.annotate(f"{best.score:.3f}", (best.score, 0), place, color=INK, **IN_POINTS)
    _unit_square(axes, "score threshold")
    return _svg(figure, "precision, recall and F1 by score threshold")


def _figure(width: float, height: float, rows: Sequence[int] = (1,)) -> "tuple[Figure, Any]":
    """An empty chart, in inches, its axes in rows of these heights; pyplot would keep it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    figure.patch.set_visible(False)
    return figure, figure.subplots(len(rows), height_ratios=rows)


def _unit_square(axes: "Axes", xlabel: str = "", ylabel: str = "") -> None:
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel=xlabel, ylabel=ylabel)
    axes.set(xticks=QUARTERS, yticks=QUARTERS)
    axes.set_xticklabels(map(_short, QUARTERS))
    axes.set_yticklabels(map(_short, QUARTERS))


def _short(value: float) -> str:
    """Two digits, as tables of AP have them: .43, 1, 0."""
    text = f"{value:.2f}"
    return {"0.00": "0", "1.00": "1"}.get(text, text.removeprefix("0"))


def _svg(figure: "Figure", label: str) -> str:
    """The chart as an SVG element, as wide as its place, without what a page has no use for."""
    file = io.StringIO()
    figure.savefig(file, format="svg")
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    for pattern, replacement in REPLACEMENTS:
        svg = re.sub(pattern, replacement, svg, flags=re.DOTALL)
    for color, variable in VARIABLES.items():
        svg = svg.replace(color, f"var({variable})")
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1).strip()
