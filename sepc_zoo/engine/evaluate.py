"""COCO's average precision and recall, equal to pycocotools' figures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.markup import escape
from rich.table import Table
from torch import Tensor
from torchmetrics.detection import MeanAveragePrecision

from sepc_zoo.data import Annotations
from sepc_zoo.engine.results import Found, by_image

# Our key (that of the COCO leaderboard) -> torchmetrics' key.
_TORCHMETRICS_KEYS = {
    "AP": "map",
    "AP50": "map_50",
    "AP75": "map_75",
    "APs": "map_small",
    "APm": "map_medium",
    "APl": "map_large",
    "AR1": "mar_1",
    "AR10": "mar_10",
    "AR100": "mar_100",
    "ARs": "mar_small",
    "ARm": "mar_medium",
    "ARl": "mar_large",
}
METRIC_KEYS = tuple(_TORCHMETRICS_KEYS)
CLASS_METRIC_KEYS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR100")

# pycocotools' thresholds in float64: torchmetrics' own are float32, which moves AP wherever a
# recall or an overlap falls exactly on one.
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
SIZES = ("all", "small", "medium", "large")  # of objects: under 32 x 32 pixels, 96 x 96, above


@dataclass(frozen=True, eq=False)
class Evaluation:
    """COCO's figures, and the tables that they are means of.

    Both tables are for at most 100 detections of a class in an image, and hold -1 where there is
    nothing to find. T are ``IOU_THRESHOLDS``, R ``RECALLS``, K classes, S ``SIZES``.
    """

    metrics: dict[str, Any]  # ``METRIC_KEYS``, and by name under per_class ``CLASS_METRIC_KEYS``
    precision: NDArray[np.float64]  # (T, R, K, S), the best at this recall or a greater one
    recall: NDArray[np.float64]  # (T, K, S), in the end


def evaluate(found: Found, annotations: Annotations) -> Evaluation:
    """COCO's evaluation of the detections of a split.

    Its figures are those of pycocotools on the same two files, also where an overlap, an area or a
    recall is exactly a threshold: boxes go in to the last digit as they stand there.
    """
    count = len(annotations.records)
    images = [
        (
            _found(*(torch.from_numpy(c[rows]) for c in (found.bbox, found.scores, found.labels))),
            _truth(record.bbox, record.labels, record.iscrowd, record.area),
        )
        for record, rows in zip(annotations.records, by_image(found.image, count), strict=True)
    ]
    order = sorted(range(count), key=lambda i: annotations.records[i].image_id)
    return _evaluate([images[i] for i in order], annotations.label_names)


def metrics_table(metrics: Mapping[str, Any]) -> Table:
    """``Evaluation.metrics`` for the terminal: twelve figures, then each class."""
    grid = Table.grid(padding=(0, 0, 1, 0), collapse_padding=False)
    for keys in (METRIC_KEYS[:6], METRIC_KEYS[6:]):
        grid.add_row(_table(*keys, rows=[[_figure(metrics[key]) for key in keys]]))
    rows = [
        [escape(name), *(_figure(figures[key]) for key in CLASS_METRIC_KEYS)]
        for name, figures in metrics["per_class"].items()
    ]
    grid.add_row(_table("class", *CLASS_METRIC_KEYS, rows=rows))
    return grid


def _table(*header: str, rows: Sequence[Sequence[str]]) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in header:
        table.add_column(name, justify="left" if name == "class" else "right", min_width=5)
    for row in rows:
        table.add_row(*row)
    return table


def _figure(value: float) -> str:
    return "-" if value < 0 else f"{value:.3f}"


def _found(boxes: Tensor, scores: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """What torchmetrics takes for an image, its boxes as x, y, width, height."""
    return {
        "boxes": boxes.detach().cpu().double().reshape(-1, 4),
        "scores": scores.detach().cpu().double(),
        "labels": labels.cpu().long(),
    }


def _truth(boxes: Tensor, labels: Tensor, iscrowd: Tensor, area: Tensor) -> dict[str, Tensor]:
    return {
        "boxes": boxes.cpu().double().reshape(-1, 4),
        "labels": labels.cpu().long(),
        "iscrowd": iscrowd.cpu().long(),
        # torchmetrics takes an area of 0 for unknown; COCO takes it for a small object.
        "area": area.cpu().double().clamp(min=1e-6),
    }


def _evaluate(
    images: Sequence[tuple[dict[str, Tensor], dict[str, Tensor]]], label_names: Sequence[str]
) -> Evaluation:
    """What was found and what is there, image by image, both as torchmetrics takes it."""
    metric = MeanAveragePrecision(
        box_format="xywh",
        iou_thresholds=IOU_THRESHOLDS.tolist(),
        rec_thresholds=RECALLS.tolist(),
        extended_summary=True,  # figures of classes without one more evaluation for each of them
        backend="faster_coco_eval" if find_spec("faster_coco_eval") else "pycocotools",
        sync_on_compute=False,  # all that was found is here
    )
    metric.warn_on_many_detections = False  # COCO drops what exceeds 100 of a class: as intended
    metric.update([found for found, _ in images], [truth for _, truth in images])
    result = metric.compute()

    # Only classes that occur have a column in torchmetrics' tables.
    precision = np.full((len(IOU_THRESHOLDS), len(RECALLS), len(label_names), len(SIZES)), -1.0)
    recall = np.full((len(IOU_THRESHOLDS), len(label_names), len(SIZES)), -1.0)
    if labels := result["classes"].reshape(-1).tolist():
        precision[:, :, labels] = result["precision"][..., -1].numpy()  # 100 detections
        recall[:, labels] = result["recall"][..., -1].numpy()
    metrics: dict[str, Any] = {ours: float(result[k]) for ours, k in _TORCHMETRICS_KEYS.items()}
    metrics["per_class"] = {
        name: _class_metrics(precision[:, :, label], recall[:, label])
        for label, name in enumerate(label_names)
    }
    return Evaluation(metrics, precision, recall)


def _class_metrics(precision: NDArray[np.float64], recall: NDArray[np.float64]) -> dict[str, float]:
    """A class's figures from its tables of precision ``(T, R, S)`` and recall ``(T, S)``."""
    small, medium, large = (mean(precision[:, :, size]) for size in (1, 2, 3))
    overall = precision[:, :, 0]
    figures = mean(overall), mean(overall[0]), mean(overall[5]), small, medium, large
    return dict(zip(CLASS_METRIC_KEYS, (*figures, mean(recall[:, 0])), strict=True))


def mean(table: NDArray[np.float64]) -> float:
    """The mean of what a table of precision or recall knows; -1 where it knows nothing."""
    known = table[table > -1]
    return float(known.mean()) if len(known) else -1.0
