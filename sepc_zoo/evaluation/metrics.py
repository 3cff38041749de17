"""COCO's average precision and recall: torchmetrics' evaluation, pycocotools' figures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.markup import escape
from rich.table import Table

from sepc_zoo.data import Annotations
from sepc_zoo.evaluation.results import (
    SplitDetections,
    SplitTargets,
    collect_targets,
    indices_by_image,
)
from sepc_zoo.metric_names import CLASS_METRICS, METRICS

# COCO's thresholds and object sizes, in the order of the evaluator's tables.
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALL_THRESHOLDS = np.linspace(0.0, 1.0, 101)
SIZES = ("all", "small", "medium", "large")  # area limits: 32 x 32 and 96 x 96 pixels


@dataclass(frozen=True, eq=False)
class Evaluation:
    """COCO's figures, and the tables behind them.

    Both tables count at most 100 detections of a class in an image, and hold -1 where there is no
    object. T are ``IOU_THRESHOLDS``, R ``RECALL_THRESHOLDS``, K classes, S ``SIZES``.
    """

    metrics: dict[str, Any]  # keys of METRICS; under "per_class", by name, those of CLASS_METRICS
    precision: NDArray[np.float64]  # (T, R, K, S), the highest at this or a higher recall
    recall: NDArray[np.float64]  # (T, K, S), with all detections


def evaluate(detections: SplitDetections, annotations: Annotations) -> Evaluation:
    """Compute COCO's figures for the detections of a split.

    They equal pycocotools' on the same two files, also where an overlap, an area or a recall is
    exactly at a threshold: boxes and scores stay in float64.
    """
    from sepc_zoo.evaluation.mean_ap import SplitMeanAveragePrecision  # imports torchmetrics

    names = annotations.label_names
    metric = SplitMeanAveragePrecision(len(names), IOU_THRESHOLDS, RECALL_THRESHOLDS)
    targets = collect_targets(annotations)
    order = np.argsort([record.image_id for record in annotations.records])
    metric.update(_per_image(detections, order), _per_image(targets, order))
    result = metric.compute()
    shape = len(IOU_THRESHOLDS), len(RECALL_THRESHOLDS), len(names), len(SIZES)
    precision, recall = np.full(shape, -1.0), np.full((shape[0], *shape[2:]), -1.0)
    if annotations.records:
        # the last axis is at most 1, 10, 100 detections
        precision, recall = (result[key][..., -1].numpy() for key in ("precision", "recall"))
    metrics: dict[str, Any] = {name: float(result[m.result_key]) for name, m in METRICS.items()}
    metrics["per_class"] = {
        name: _class_metrics(precision[:, :, label], recall[:, label])
        for label, name in enumerate(names)
    }
    return Evaluation(metrics, precision, recall)


def metrics_table(metrics: Mapping[str, Any]) -> Table:
    """Lay out ``Evaluation.metrics`` for the terminal: the twelve figures, then each class."""
    grid = Table.grid(padding=(0, 0, 1, 0), collapse_padding=False)
    names = tuple(METRICS)
    for keys in (names[:6], names[6:]):
        grid.add_row(_table(*keys, rows=[[format_figure(metrics[key]) for key in keys]]))
    rows = [
        [escape(name), *(format_figure(figures[key]) for key in CLASS_METRICS)]
        for name, figures in metrics["per_class"].items()
    ]
    grid.add_row(_table("class", *CLASS_METRICS, rows=rows))
    return grid


def format_figure(value: float) -> str:
    """A figure in 0…1 with three digits; a dash for -1, which means undefined."""
    return "-" if value < 0 else f"{value:.3f}"


def mean(table: NDArray[np.float64]) -> float:
    """Average the defined values of a table of precision or recall; -1 where there are none."""
    known = table[table > -1]
    return float(known.mean()) if len(known) else -1.0


def _per_image(
    boxes: SplitDetections | SplitTargets, order: NDArray[np.int64]
) -> list[dict[str, torch.Tensor]]:
    """One dict per image, as ``MeanAveragePrecision.update`` takes them."""
    columns = {"boxes": boxes.bbox, "labels": boxes.labels}
    if isinstance(boxes, SplitDetections):
        columns |= {"scores": boxes.scores}
    else:
        columns |= {"iscrowd": boxes.iscrowd.astype(np.int64), "area": boxes.area}
    indices = indices_by_image(boxes.image, len(order))
    return [
        {key: torch.from_numpy(column[indices[i]]) for key, column in columns.items()}
        for i in order.tolist()
    ]


def _class_metrics(precision: NDArray[np.float64], recall: NDArray[np.float64]) -> dict[str, float]:
    """Compute a class's figures from its precision ``(T, R, S)`` and recall ``(T, S)``."""
    small, medium, large = (mean(precision[:, :, size]) for size in (1, 2, 3))
    overall = precision[:, :, 0]
    figures = mean(overall), mean(overall[0]), mean(overall[5]), small, medium, large
    return dict(zip(CLASS_METRICS, (*figures, mean(recall[:, 0])), strict=True))


def _table(*header: str, rows: Sequence[Sequence[str]]) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in header:
        table.add_column(name, justify="left" if name == "class" else "right", min_width=5)
    for row in rows:
        table.add_row(*row)
    return table
