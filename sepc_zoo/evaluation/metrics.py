"""COCO's average precision and recall, equal to pycocotools' figures."""

from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from io import StringIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.markup import escape
from rich.table import Table

from sepc_zoo.data import Annotations
from sepc_zoo.evaluation.results import Found, Truth, truth_of

METRIC_KEYS = (
    *("AP", "AP50", "AP75", "APs", "APm", "APl"),
    *("AR1", "AR10", "AR100", "ARs", "ARm", "ARl"),
)
CLASS_METRIC_KEYS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR100")

# COCO's, in the order of the tables that its evaluators make.
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
    coco, evaluator = _evaluators()
    truth = truth_of(annotations)
    there = {"area": truth.area, "iscrowd": truth.iscrowd.astype(int)}
    seen = {"area": found.bbox[:, 2:].prod(axis=1), "score": found.scores}
    with redirect_stdout(StringIO()):  # pycocotools tells what it does
        sides = [
            _index(coco(), annotations, boxes, columns)
            for boxes, columns in ((truth, there), (found, seen))
        ]
        evaluation = evaluator(*sides, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    precision, recall = (np.asarray(evaluation.eval[name]) for name in ("precision", "recall"))
    return _evaluation(precision, recall, annotations.label_names)


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


def _evaluators() -> tuple[Any, Any]:
    """The index and the evaluator of pycocotools, or the same of a library that is faster."""
    if find_spec("faster_coco_eval"):
        import faster_coco_eval

        return faster_coco_eval.COCO, faster_coco_eval.COCOeval_faster
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    return COCO, COCOeval


def _index(
    index: Any, annotations: Annotations, boxes: Truth | Found, more: Mapping[str, NDArray[Any]]
) -> Any:
    """Fill an evaluator's index with boxes, of which each array has a row, and more of each."""
    ids = np.array([record.image_id for record in annotations.records], dtype=np.int64)
    columns = {
        "id": np.arange(1, len(boxes) + 1),  # with 0 a box would count as none
        "image_id": ids[boxes.image],
        "category_id": boxes.labels,
        "bbox": boxes.bbox,
        **more,
    }
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    index.dataset = {
        "images": [{"id": image_id} for image_id in ids.tolist()],
        "categories": [{"id": label} for label in range(len(annotations.label_names))],
        "annotations": [dict(zip(columns, row, strict=True)) for row in rows],
    }
    index.createIndex()
    return index


def _evaluation(
    precision: NDArray[np.float64], recall: NDArray[np.float64], label_names: Sequence[str]
) -> Evaluation:
    """From tables ``(T, R, K, S, 3)`` and ``(T, K, S, 3)``, for at most 1, 10, 100 detections."""
    *few, recall = np.moveaxis(recall, -1, 0)
    precision = precision[..., -1]
    overall = precision[:, :, :, 0]
    figures = (
        *(mean(overall), mean(overall[0]), mean(overall[5])),
        *(mean(precision[..., size]) for size in (1, 2, 3)),
        *(mean(table[..., 0]) for table in (*few, recall)),
        *(mean(recall[..., size]) for size in (1, 2, 3)),
    )
    metrics: dict[str, Any] = dict(zip(METRIC_KEYS, figures, strict=True))
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
