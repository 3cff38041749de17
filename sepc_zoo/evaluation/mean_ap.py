"""torchmetrics' ``MeanAveragePrecision``, fast and exact for a whole split.

State, input checks and evaluation are torchmetrics' own. What differs: the conversion to COCO's
format, which reads single numbers out of tensors there (minutes for COCO's val2017), and the
thresholds, which are rounded to float32 there.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor
from torchmetrics.detection import MeanAveragePrecision
from torchmetrics.detection.helpers import CocoBackend

from sepc_zoo.evaluation.average_precision import IOU_THRESHOLDS, RECALL_THRESHOLDS

Backend = Literal["faster_coco_eval", "pycocotools"]


def split_metric(num_classes: int, limits: list[int]) -> MeanAveragePrecision:
    """Make the metric of COCO's average precision and recall, equal to pycocotools' figures.

    ``update`` takes boxes as x, y, width, height in float64, and images by ascending id. An
    annotated area of 0 stays 0, as in pycocotools. States are not synchronized: every process gets
    the whole split, because the order of images decides between equal scores.

    Args:
        num_classes: K, of labels 0...K-1.
        limits: three numbers of detections of a class in an image; AP is at the last.
    """
    backend = best_backend()
    metric = MeanAveragePrecision(
        box_format="xywh",
        iou_thresholds=IOU_THRESHOLDS.tolist(),
        rec_thresholds=RECALL_THRESHOLDS.tolist(),
        max_detection_thresholds=limits,
        extended_summary=True,
        backend=backend,
        sync_on_compute=False,
    )
    metric.warn_on_many_detections = False
    metric._coco_backend = ColumnBackend(backend, num_classes)
    return metric


class ColumnBackend(CocoBackend):
    """Converts tensors to COCO's format column by column, with all classes of a data set."""

    def __init__(self, backend: Backend, num_classes: int) -> None:
        super().__init__(backend)
        self.num_classes = num_classes

    @property
    def cocoeval(self) -> Any:
        evaluator: Any = super().cocoeval
        return type("Evaluator", (WithoutOverlaps, evaluator), {})

    def _get_coco_format(  # type: ignore[override]  # what only masks need is left out
        self,
        labels: list[Tensor],
        *,
        boxes: list[Tensor] | None = None,
        scores: list[Tensor] | None = None,
        crowds: list[Tensor] | None = None,
        area: list[Tensor] | None = None,
        **_: Any,
    ) -> dict[str, Any]:
        counts = torch.tensor([len(own) for own in labels], dtype=torch.int64)
        bbox = _join(boxes).reshape(-1, 4)
        columns = (
            torch.repeat_interleave(torch.arange(len(labels)), counts),
            _join(labels),
            bbox,
            bbox[:, 2:].prod(dim=1) if area is None else _join(area),
            torch.zeros(len(bbox), dtype=torch.int64) if crowds is None else _join(crowds).long(),
            torch.zeros(len(bbox)) if scores is None else _join(scores),
        )
        rows = zip(*(column.tolist() for column in columns), strict=True)
        keys = ("id", "image_id", "category_id", "bbox", "area", "iscrowd", "score")
        annotations = [  # ids from 1: evaluators take id 0 for "not matched"
            dict(zip(keys, (i, *row), strict=True)) for i, row in enumerate(rows, start=1)
        ]
        return {
            "images": [{"id": i} for i in range(len(labels))],
            "categories": [{"id": label} for label in range(self.num_classes)],
            "annotations": annotations,
        }


class WithoutOverlaps:
    """Mixin: drops the overlap of each pair, which would take seconds to convert to tensors."""

    ious: dict[Any, Any]

    def accumulate(self) -> None:
        super().accumulate()  # type: ignore[misc]
        self.ious = {}


def best_backend() -> Backend:
    """The faster installed evaluator."""
    return "faster_coco_eval" if find_spec("faster_coco_eval") else "pycocotools"


def _join(parts: Sequence[Tensor] | None) -> Tensor:
    return torch.cat([*parts]) if parts else torch.empty(0)
