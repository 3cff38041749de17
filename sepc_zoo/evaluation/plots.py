"""Curves of a training run."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sepc_zoo.files import write_atomically
from sepc_zoo.inference.drawing import PALETTE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK = "#222222"
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
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('curves need matplotlib: pip install "sepc_zoo[plots]"') from error
    with open(log, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        raise ValueError("the training log has no rows yet")
    figure = Figure(figsize=(11, 4.2), dpi=150, layout="constrained")  # pyplot keeps global state
    loss_axes, ap_axes = figure.subplots(1, 2)
    _plot_losses(loss_axes, rows)
    _plot_ap(ap_axes, rows)
    for axes in (loss_axes, ap_axes):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.set_ylim(bottom=0)
    write_atomically(path, figure.savefig)


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
        color = INK if name == "loss" else PALETTE[i]
        axes.plot(steps, values, color=color, alpha=0.2, linewidth=0.8)
        axes.plot(steps, _smooth(values), color=color, linewidth=1.8, label=name)
    axes.set(title="Loss", xlabel="step")
    if names:
        axes.legend(frameon=False)


def _plot_ap(axes: "Axes", rows: Sequence[Row]) -> None:
    axes.set(title="Average precision", xlabel="epoch")
    axes.locator_params(axis="x", integer=True)
    for name, color in (("AP50", PALETTE[3]), ("AP", PALETTE[1])):
        epochs, values = _curve(rows, "epoch", name)
        if values:
            label = f"{name}, best {max(values):.3f}"
            axes.plot(epochs, values, "o-", color=color, markersize=3.5, linewidth=1.8, label=label)
    if axes.lines:
        axes.legend(frameon=False)
    else:
        axes.text(0.5, 0.5, "not validated yet", transform=axes.transAxes, ha="center", alpha=0.6)
