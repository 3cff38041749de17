"""COCO's average precision and recall, equal to pycocotools' figures."""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from rich.markup import escape
from rich.table import Table
from torch import Tensor
from torch import distributed as dist
from torchmetrics.detection import MeanAveragePrecision

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
CLASS_METRIC_KEYS = ("AP", "AP50", "AR100")


class CocoMetrics:
    """Collects detections image by image and computes COCO's twelve figures over all of them.

    Under ``torch.distributed`` each process updates with its own images, and ``compute`` (to be
    called by all) gathers them: any number of images per process, and an image that a sampler gave
    to two processes counts once. Images are evaluated by rising id, as pycocotools does it, since
    the order decides between equal scores.
    """

    def __init__(self) -> None:
        self._images: dict[int, tuple[dict[str, Tensor], dict[str, Tensor]]] = {}

    def update(
        self, detections: Sequence[Mapping[str, Tensor]], targets: Sequence[Mapping[str, Tensor]]
    ) -> None:
        """Add images, in the same pixels for detections and targets.

        Args:
            detections: per image ``boxes (D, 4)`` xyxy, ``scores (D,)``, ``labels (D,)``.
            targets: per image ``image_id``, ``boxes (G, 4)`` xyxy, ``labels (G,)``; where known
                ``iscrowd (G,)`` (else 0) and ``area (G,)`` in square pixels (else width x height).

        Raises:
            ValueError: detections and targets differ in number.
            KeyError: a target without ``image_id``.
        """
        for detection, target in zip(detections, targets, strict=True):
            self._images[int(target["image_id"])] = _found(detection), _truth(target)

    def compute(self, label_names: Sequence[str]) -> dict[str, Any]:
        """The figures of ``METRIC_KEYS``, and under ``per_class`` those of each name.

        All lie in 0…1, or are -1 where there is nothing to find (as with pycocotools).
        """
        images = _gather(self._images)
        metric = _mean_average_precision()
        metric.update(
            [images[image_id][0] for image_id in sorted(images)],
            [images[image_id][1] for image_id in sorted(images)],
        )
        result = metric.compute()
        metrics: dict[str, Any] = {ours: float(result[k]) for ours, k in _TORCHMETRICS_KEYS.items()}
        metrics["per_class"] = _per_class(result, label_names)
        return metrics


def metrics_table(metrics: Mapping[str, Any]) -> Table:
    """The result of ``CocoMetrics.compute`` for the terminal: twelve figures, then each class."""
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


def _found(detection: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        "boxes": detection["boxes"].detach().cpu().double().reshape(-1, 4),
        "scores": detection["scores"].detach().cpu().double(),
        "labels": detection["labels"].cpu().long(),
    }


def _truth(target: Mapping[str, Tensor]) -> dict[str, Tensor]:
    boxes = target["boxes"].cpu().double().reshape(-1, 4)
    sides = boxes[:, 2:] - boxes[:, :2]
    area = target.get("area", sides.prod(dim=1)).cpu().double()
    iscrowd = target.get("iscrowd", torch.zeros(len(boxes)))
    return {
        "boxes": boxes,
        "labels": target["labels"].cpu().long(),
        "iscrowd": iscrowd.cpu().long(),
        # torchmetrics takes an area of 0 for unknown; COCO takes it for a small object.
        "area": area.clamp(min=1e-6),
    }


def _gather(images: dict[int, Any]) -> dict[int, Any]:
    """The images of all processes; torchmetrics' own gathering wants equally many of each."""
    if not (dist.is_available() and dist.is_initialized()):
        return images
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, images)
    return {image_id: image for part in parts for image_id, image in part.items()}


def _mean_average_precision() -> MeanAveragePrecision:
    metric = MeanAveragePrecision(
        # pycocotools' thresholds in float64: torchmetrics' own are float32, which moves AP wherever
        # a recall or an overlap falls exactly on one.
        iou_thresholds=np.linspace(0.5, 0.95, 10).tolist(),
        rec_thresholds=np.linspace(0.0, 1.0, 101).tolist(),
        extended_summary=True,  # figures of classes without one more evaluation for each of them
        backend="faster_coco_eval" if find_spec("faster_coco_eval") else "pycocotools",
        sync_on_compute=False,  # see _gather
    )
    metric.warn_on_many_detections = False  # COCO drops what exceeds 100 of a class: as intended
    return metric


def _per_class(
    result: Mapping[str, Tensor], label_names: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Figures of every class from the tables of precision ``(T, R, K, A, M)`` and recall.

    Only classes that occur have a column, in the order of ``result["classes"]``.
    """
    per_class = {name: dict.fromkeys(CLASS_METRIC_KEYS, -1.0) for name in label_names}
    for column, label in enumerate(result["classes"].reshape(-1).tolist()):
        precision = result["precision"][:, :, column, 0, -1]  # all sizes, 100 detections
        recall = result["recall"][:, column, 0, -1]
        figures = (_mean(precision), _mean(precision[0]), _mean(recall))
        per_class[label_names[label]] = dict(zip(CLASS_METRIC_KEYS, figures, strict=True))
    return per_class


def _mean(values: Tensor) -> float:
    known = values[values > -1]
    return float(known.mean()) if len(known) else -1.0
