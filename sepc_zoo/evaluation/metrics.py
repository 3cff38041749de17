"""COCO's average precision and recall: torchmetrics' evaluation, pycocotools' figures."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from rich.markup import escape
from rich.table import Table

from sepc_zoo.data import Annotations
from sepc_zoo.evaluation.average_precision import IOU_THRESHOLDS, RECALL_THRESHOLDS, Floats, Ints
from sepc_zoo.evaluation.results import (
    MAX_PER_CLASS,
    SplitDetections,
    SplitTargets,
    collect_targets,
    federation_of,
    indices_by_image,
    max_per_class,
)
from sepc_zoo.metric_names import CLASS_METRICS, METRICS

# COCO's object sizes, in the order of the evaluator's tables.
SIZES = ("all", "small", "medium", "large")  # area limits: 32 x 32 and 96 x 96 pixels
# LVIS's figures: AP of classes by the number of training images that they are in.
FREQUENCIES = {"APr": "r", "APc": "c", "APf": "f"}  # rare, common, frequent
MAX_IMAGES = {"r": 10, "c": 100}  # training images that a rare or a common class may be in


@dataclass(frozen=True, eq=False)
class Evaluation:
    """COCO's figures, and the tables behind them.

    Both tables count at most 100 detections of a class in an image (LVIS: 300), and hold -1 where
    there is no object. T are ``IOU_THRESHOLDS``, R ``RECALL_THRESHOLDS``, K classes, S ``SIZES``.
    """

    # keys of METRICS, with known frequencies of FREQUENCIES; "per_class": CLASS_METRICS by class
    metrics: dict[str, Any]
    precision: Floats  # (T, R, K, S), the highest at this or a higher recall
    recall: Floats  # (T, K, S), with all detections


def evaluate(detections: SplitDetections, annotations: Annotations) -> Evaluation:
    """Compute COCO's figures for the detections of a split.

    They equal pycocotools' on the same two files, also where an overlap, an area or a recall is
    exactly at a threshold: boxes and scores stay in float64. Where the annotations are LVIS's, they
    equal those of LVIS's evaluation, and AR1 is undefined.
    """
    from sepc_zoo.evaluation.mean_ap import split_metric  # imports torchmetrics

    names = annotations.label_names
    limits = [10, 100, max_per_class(annotations)] if federation_of(annotations) else [1, 10, 100]
    metric = split_metric(len(names), limits)
    targets = collect_targets(annotations)
    order = np.argsort(annotations.records.image_ids)
    metric.update(_per_image(detections, order), _per_image(targets, order))
    result = metric.compute()
    shape = len(IOU_THRESHOLDS), len(RECALL_THRESHOLDS), len(names), len(SIZES)
    precision, recall = np.full(shape, -1.0), np.full((shape[0], *shape[2:]), -1.0)
    if annotations.records:
        # the last axis is the limits
        precision = result["precision"][..., -1].numpy()
        recall = result["recall"][..., limits.index(MAX_PER_CLASS)].numpy()
    metrics: dict[str, Any] = {
        name: float(result.get(m.result_key, -1)) for name, m in METRICS.items()
    }
    if annotations.federation is not None and annotations.federation.frequency:
        known = annotations.federation.frequency
        of_label = [None if i is None else known.get(i) for i in annotations.category_ids]
        metrics |= frequency_metrics(precision, of_label)
    metrics["per_class"] = {
        name: _class_metrics(precision[:, :, label], recall[:, label])
        for label, name in enumerate(names)
    }
    return Evaluation(metrics, precision, recall)


def frequency_metrics(precision: Floats, frequencies: Sequence[str | None]) -> dict[str, float]:
    """AP of rare, common and frequent classes, from ``Evaluation.precision``.

    Args:
        frequencies: r, c or f of each label; None belongs to none of them.
    """
    return {
        name: mean(precision[:, :, [own == letter for own in frequencies], 0])
        for name, letter in FREQUENCIES.items()
    }


def count_frequencies(annotations: Annotations) -> list[str]:
    """Whether each label is rare, common or frequent in a training split: r, c or f."""
    records, num_classes = annotations.records, len(annotations.label_names)
    pairs = np.unique(records.image * num_classes + records.labels)
    counts = np.bincount(pairs % num_classes, minlength=num_classes)
    return [next((f for f, most in MAX_IMAGES.items() if n <= most), "f") for n in counts.tolist()]


def metrics_table(metrics: Mapping[str, Any]) -> Table:
    """Lay out ``Evaluation.metrics`` for the terminal: the twelve figures, then each class."""
    grid = Table.grid(padding=(0, 0, 1, 0), collapse_padding=False)
    names = tuple(METRICS)
    for keys in (names[:6], names[6:], tuple(name for name in FREQUENCIES if name in metrics)):
        if keys:
            grid.add_row(plain_table(keys, [[format_figure(metrics[key]) for key in keys]]))
    rows = [
        [escape(name), *(format_figure(figures[key]) for key in CLASS_METRICS)]
        for name, figures in metrics["per_class"].items()
    ]
    grid.add_row(plain_table(("class", *CLASS_METRICS), rows))
    return grid


def plain_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A table without lines; figures are to the right, a column of names to the left."""
    table = Table(box=None, pad_edge=False)
    for name in header:
        table.add_column(name, justify="left" if name in ("", "class") else "right", min_width=5)
    for row in rows:
        table.add_row(*row)
    return table


def format_figure(value: float) -> str:
    """A figure in 0…1 with three digits; a dash for -1, which means undefined."""
    return "-" if value < 0 else f"{value:.3f}"


def mean(table: Floats) -> float:
    """Average the defined values of a table of precision or recall; -1 where there are none."""
    known = table[table > -1]
    return float(known.mean()) if len(known) else -1.0


def _per_image(boxes: SplitDetections | SplitTargets, order: Ints) -> list[dict[str, torch.Tensor]]:
    """One dict per image, as ``MeanAveragePrecision.update`` takes them."""
    columns = {f.name: torch.from_numpy(getattr(boxes, f.name)) for f in fields(boxes)}
    columns["boxes"] = columns.pop("bbox")
    indices = indices_by_image(boxes.image, len(order))
    return [{key: column[indices[i]] for key, column in columns.items()} for i in order.tolist()]


def _class_metrics(precision: Floats, recall: Floats) -> dict[str, float]:
    """Compute a class's figures from its precision ``(T, R, S)`` and recall ``(T, S)``."""
    small, medium, large = (mean(precision[:, :, size]) for size in (1, 2, 3))
    overall = precision[:, :, 0]
    figures = mean(overall), mean(overall[0]), mean(overall[5]), small, medium, large
    return dict(zip(CLASS_METRICS, (*figures, mean(recall[:, 0])), strict=True))
