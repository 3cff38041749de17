"""Curves of a training run, and histograms of a data set."""

import csv
import io
import warnings
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sepc_zoo.files import write_atomically
from sepc_zoo.terminal import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from sepc_zoo.data.listing import ListedImages

INK = "#222222"
LINES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # Okabe and Ito
MAX_CLASSES = 16  # bars
MAX_NAME = 32  # characters of a class or split
SPLIT_COLORS = ("#2f6fbf", "#e08a1e", "#3a9d5d", "#9c5bb5", "#6b6b6b")
Row = Mapping[str, str]


def plot_curves(log: str | Path, path: str | Path) -> None:
    """Plot a training log: the losses by step, and AP and AP50 by epoch.

    Args:
        log: the CSV file of a run: ``step``, ``epoch``, ``loss``, its terms ``loss_…``, and on rows
            that end an epoch ``AP`` and ``AP50``, which are empty elsewhere.
        path: image file to write, in the format of its suffix (``.png``, ``.svg``, …).

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: the log has no rows.
    """
    write_atomically(path, draw_curves(log).savefig)


def draw_curves(log: str | Path) -> "Figure":
    """The figure of ``plot_curves``, with the same errors; a notebook shows it."""
    figure = _new_figure(11, 4.2)
    with open(log, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        raise ValueError("the training log has no rows yet")
    loss_axes, ap_axes = figure.subplots(1, 2)
    _plot_losses(loss_axes, rows)
    _plot_ap(ap_axes, rows)
    for axes in (loss_axes, ap_axes):
        axes.set_ylim(bottom=0)
    _style(figure)
    return figure


def plot_statistics(
    splits: Mapping[str, "ListedImages"],
    class_counts: Mapping[str, Sequence[int]],
    path: str | Path,
) -> None:
    """Draw the figures of a data set: its classes, sizes and shapes, split by split.

    Args:
        class_counts: boxes of each class in each of these splits, the most frequent class first.
        path: the picture to write; its suffix is one that matplotlib knows.

    Raises:
        ImportError: matplotlib is not installed.
    """
    figure = _new_figure(13, 7.4)
    axes = figure.subplots(2, 3).flatten()
    shapes = {split: own for split, own in splits.items() if len(own.image)}
    sides = {split: np.sqrt(own.box_sizes.prod(axis=1)) for split, own in shapes.items()}
    shares = {
        split: 100 * sides[split] / np.sqrt(own.sizes[own.image].prod(axis=1))
        for split, own in shapes.items()
    }
    _plot_classes(axes[0], list(splits), class_counts)
    _plot_histogram(axes[1], sides, "Box side", "pixels, square root of width x height", log=True)
    for limit, name in ((32, "medium"), (96, "large")):
        axes[1].axvline(limit, color=INK, linewidth=0.8, alpha=0.5)
        top = axes[1].get_xaxis_transform()
        axes[1].text(limit * 1.04, 0.97, name, transform=top, va="top", fontsize=8, alpha=0.7)
    _plot_histogram(axes[2], shares, "Box side in its image", "% of the image's side", log=True)
    shape = {split: own.box_sizes[:, 0] / own.box_sizes[:, 1] for split, own in shapes.items()}
    _plot_histogram(axes[3], shape, "Box shape", "height / width", log=True)
    crowding = {split: own.counts for split, own in splits.items()}
    _plot_histogram(axes[4], crowding, "Boxes per image", "boxes", unit="images")
    _plot_sizes(axes[5], splits)
    _style(figure)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph", UserWarning)  # drawn as an empty box
        write_atomically(path, figure.savefig)


def _new_figure(width: float, height: float) -> "Figure":
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('plots need matplotlib: pip install "sepc_zoo[plots]"') from error

    class ShownFigure(Figure):
        """A figure that a notebook shows although pyplot, which has global state, is not used."""

        def _repr_png_(self) -> bytes:
            content = io.BytesIO()
            self.savefig(content, format="png")
            return content.getvalue()

    return ShownFigure(figsize=(width, height), dpi=150, layout="constrained")


def _style(figure: "Figure") -> None:
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.set_axisbelow(True)


def _curve(rows: Sequence[Row], x: str, y: str) -> tuple[list[float], list[float]]:
    """Points of the rows that have both columns; a metric of -1 is undefined and left out."""
    points = [(float(row[x]), float(row[y])) for row in rows if row.get(x) and row.get(y)]
    return [a for a, b in points if b != -1], [b for _, b in points if b != -1]


def _smooth(values: Sequence[float]) -> list[float]:
    """Average each value with its neighbours: a twentieth of the curve, at most 51 values."""
    reach = min(25, len(values) // 40)
    parts = [values[max(0, i - reach) : i + reach + 1] for i in range(len(values))]
    return [sum(part) / len(part) for part in parts]


def _plot_losses(axes: "Axes", rows: Sequence[Row]) -> None:
    names = [name for name in rows[0] if name == "loss" or name.startswith("loss_")]
    for i, name in enumerate(sorted(names, key="loss".__ne__)):  # the total first
        steps, values = _curve(rows, "step", name)
        color = INK if name == "loss" else LINES[(i - 1) % len(LINES)]
        axes.plot(steps, values, color=color, alpha=0.2, linewidth=0.8)
        axes.plot(steps, _smooth(values), color=color, linewidth=1.8, label=name)
    axes.set(title="Loss", xlabel="step")
    if names:
        axes.legend(frameon=False)


def _plot_ap(axes: "Axes", rows: Sequence[Row]) -> None:
    axes.set(title="Average precision", xlabel="epoch")
    for name, color in (("AP50", LINES[1]), ("AP", LINES[0])):
        epochs, values = _curve(rows, "epoch", name)
        if values:
            axes.plot(epochs, values, "o-", color=color, markersize=3.5, linewidth=1.8, label=name)
    if not axes.lines:
        axes.text(0.5, 0.5, "not validated yet", transform=axes.transAxes, ha="center", alpha=0.6)
        return
    epochs, values = _curve(rows, "epoch", "AP")
    if values:
        best = values.index(max(values))
        label = f"best AP: {values[best]:.3f}, epoch {epochs[best]:.0f}"
        axes.axvline(epochs[best], color=INK, linewidth=0.8, linestyle=":")
        axes.plot(epochs[best], values[best], "*", color=LINES[0], markersize=13, label=label)
    axes.set_xlim(0, 1.04 * float(rows[-1]["epoch"]))
    axes.locator_params(axis="x", integer=True, min_n_ticks=1)
    axes.legend(frameon=False)


def plain(text: str) -> str:
    """Shorten a name, and escape control characters and the dollar signs of formulas."""
    shown = printable(" ".join(text.split()))
    shown = shown if len(shown) <= MAX_NAME else f"{shown[: MAX_NAME - 1]}…"
    return shown.replace("$", r"\$")


def _plot_classes(
    axes: "Axes", splits: Sequence[str], class_counts: Mapping[str, Sequence[int]]
) -> None:
    """Plot bars of the most frequent classes, with the splits side by side."""
    names = list(class_counts)[:MAX_CLASSES]
    left = np.zeros(len(names))
    for i, (split, color) in enumerate(zip(splits, cycle(SPLIT_COLORS), strict=False)):
        widths = np.array([class_counts[name][i] for name in names], dtype=float)
        axes.barh(range(len(names)), widths, 0.7, left, color=color, label=plain(split))
        left += widths
    more = len(class_counts) - len(names)
    axes.set(title="Classes" + (f" (and {more} more)" if more else ""), xlabel="boxes")
    axes.set_yticks(range(len(names)), map(plain, names), fontsize=8)
    axes.set_ylim(max(len(names), 6) - 0.5, -0.5)
    axes.locator_params(axis="x", nbins=5)
    if names:
        axes.legend(frameon=False, loc="lower right")


def _plot_histogram(
    axes: "Axes",
    values: Mapping[str, np.ndarray],
    title: str,
    label: str,
    unit: str = "boxes",
    log: bool = False,
) -> None:
    """Plot a histogram in percent, with an outline for each split."""
    from matplotlib.ticker import MaxNLocator

    axes.set(title=title, xlabel=label, ylabel=f"% of {unit}")
    everything = np.concatenate([*values.values(), np.empty(0)])
    if not len(everything):
        return
    low, high = everything.min(), everything.max()
    if log:
        steps = np.geomspace(low * 0.98, high * 1.02, 41)
        axes.set_xscale("log")
        # On an axis of few decades, matplotlib labels the minor ticks too, as powers.
        axes.minorticks_off()
        parts = (1, 2, 5) if steps[-1] < 1000 * steps[0] else (1,)
        ticks = [part * 10.0**power for power in range(-3, 5) for part in parts]
        axes.set_xticks([tick for tick in ticks if steps[0] <= tick <= steps[-1]])
        if steps[-1] < 10 * steps[0]:
            axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter("{x:g}")
    else:
        width = max(1, -(-int(high - low + 1) // 40))  # whole numbers, as many to each step
        steps = np.arange(low, high + 2 * width, width) - 0.5
    for own, color in zip(values.values(), cycle(SPLIT_COLORS), strict=False):
        if len(own):
            heights = 100 * np.histogram(own, steps)[0] / len(own)
            axes.stairs(heights, steps, color=color, linewidth=1.6)
            axes.stairs(heights, steps, color=color, fill=True, alpha=0.12)
    axes.set_ylim(0, 1.1 * axes.get_ylim()[1])


def _plot_sizes(axes: "Axes", splits: Mapping[str, "ListedImages"]) -> None:
    """Plot a disc for each image size; its area shows how many images have it."""
    axes.set(title="Image size", xlabel="width, pixels", ylabel="height, pixels")
    for own, color in zip(splits.values(), cycle(SPLIT_COLORS), strict=False):
        sizes, counts = np.unique(own.sizes, axis=0, return_counts=True)
        area = 12 + 400 * counts / max(1, counts.sum())
        axes.scatter(sizes[:, 1], sizes[:, 0], s=area, color=color, alpha=0.35)
    axes.margins(0.08)
    axes.set(xlim=(0, None), ylim=(0, None))
