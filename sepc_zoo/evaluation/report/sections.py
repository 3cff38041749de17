"""Figures, tables and charts of the report, as plain data for its template."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sepc_zoo.evaluation.metrics import SIZES, mean
from sepc_zoo.evaluation.report import charts
from sepc_zoo.evaluation.report.context import ReportContext
from sepc_zoo.evaluation.report.diagnosis import (
    CORRECT,
    IGNORED,
    MISTAKES,
    Calibration,
    calibrate,
    confusion_matrix,
    sweep_scores,
)
from sepc_zoo.metric_names import CLASS_METRICS

MAX_OPEN_CLASSES = 20  # with more, curves are grouped and the confusion matrix is cut
CURVES_PER_GROUP = 12
MAX_CURVES = 120
MAX_CONFUSED_CLASSES = 14  # in a matrix that is cut
MAX_CONFUSIONS = 12  # in the list beside the matrix


class Outcomes(NamedTuple):
    """What the detections over the score threshold are."""

    total: int
    missed: int  # objects
    counts: dict[str, int]  # detections by outcome


class ApCharts(NamedTuple):
    """Charts of AP by recall, IoU threshold and object size."""

    precision_recall: str
    by_iou: str
    by_size: str


class ClassRow(NamedTuple):
    """A row of the table of classes; -1 where a figure is undefined."""

    name: str
    num_objects: int
    num_detections: int
    metrics: list[float]  # in the order of CLASS_METRICS
    threshold: float  # score threshold of the highest F1
    f1: float


class Curve(NamedTuple):
    """Precision over recall of a class."""

    name: str
    svg: str
    ap: float
    ap50: float
    ap75: float


class Curves(NamedTuple):
    """Curves in groups; a single group needs no heading."""

    groups: list[list[Curve]]
    shown: int
    total: int  # classes with objects


class Cell(NamedTuple):
    """A cell of the confusion matrix."""

    number: int
    share: float  # of its row
    color: str  # CSS variable


class Confusion(NamedTuple):
    """The confusion matrix, whole or of the most confused classes."""

    names: list[str]  # of rows and columns
    rows: list[list[Cell]]  # one per name, and background; the last column is "missed"
    pairs: list[tuple[str, str, int]]  # annotated class, detected class, number
    num_classes: int
    is_cut: bool


class ScoreCharts(NamedTuple):
    """What scores are worth; the calibration is None where scores are not probabilities."""

    threshold_choice: str
    calibration: Calibration | None
    reliability: str


def outcomes(context: ReportContext) -> Outcomes:
    kind = context.diagnosis.kind[context.detections.scores >= context.min_score]
    names = {CORRECT: "correct", **MISTAKES}
    missed = (context.diagnosis.matched_by(context.min_score) < 0) & ~context.targets.iscrowd
    return Outcomes(
        int((kind != IGNORED).sum()),
        int(missed.sum()),
        {name: int((kind == number).sum()) for number, name in names.items()},
    )


def ap_charts(context: ReportContext) -> ApCharts | None:
    """Charts of all classes together; None without objects."""
    if not context.num_objects.any():
        return None
    precision, recall = context.evaluation.precision, context.evaluation.recall
    area = context.targets.area[~context.targets.iscrowd]
    counts, _ = np.histogram(area, [-np.inf, 32**2, 96**2, np.inf])
    sizes = [f"{name}\n{count:,}" for name, count in zip(SIZES[1:], counts, strict=True)]
    by_size = [[mean(table[..., size]) for size in (1, 2, 3)] for table in (precision, recall)]
    return ApCharts(
        charts.mean_precision_recall(precision[:, :, context.num_objects > 0, 0].mean(axis=2)),
        charts.ap_by_iou([mean(table) for table in precision[..., 0]]),
        charts.ap_by_size(sizes, *by_size),
    )


def class_rows(context: ReportContext) -> list[ClassRow]:
    num_detections = np.bincount(context.detections.labels, minlength=len(context.names))
    rows = []
    for label in context.labels_by_ap():
        best = sweep_scores(context.diagnosis, label).best()
        rows.append(
            ClassRow(
                context.names[label],
                int(context.num_objects[label]),
                int(num_detections[label]),
                [context.class_metric(label, key) for key in CLASS_METRICS],
                best.score if best else -1.0,
                best.f1 if best else -1.0,
            )
        )
    return rows


def curves(context: ReportContext) -> Curves:
    """Curves of the classes with objects by falling AP, of many classes the most frequent ones."""
    known = [label for label in context.labels_by_ap() if context.num_objects[label]]
    frequent = set(sorted(known, key=lambda label: -context.num_objects[label])[:MAX_CURVES])
    shown = [_curve(context, label) for label in known if label in frequent]
    size = CURVES_PER_GROUP if len(shown) > MAX_OPEN_CLASSES else max(1, len(shown))
    groups = [shown[i : i + size] for i in range(0, len(shown), size)]
    return Curves(groups, len(shown), len(known))


def confusion(context: ReportContext) -> Confusion:
    """Objects (rows) against the classes that they are detected as (columns)."""
    names, num_classes = context.names, len(context.names)
    matrix = confusion_matrix(context.diagnosis, num_classes, context.min_score)
    between = matrix[:num_classes, :num_classes] - np.diag(matrix.diagonal()[:num_classes])
    is_cut = num_classes > MAX_OPEN_CLASSES
    shown = _most_confused(between) if is_cut else list(range(num_classes))
    pairs = [
        (names[i // num_classes], names[i % num_classes], int(between.flat[i]))
        for i in np.argsort(-between, axis=None, kind="stable")[:MAX_CONFUSIONS].tolist()
        if between.flat[i]
    ]
    others = [label for label in range(num_classes) if label not in set(shown)]
    groups = [*([label] for label in shown), *([others] if others else []), [num_classes]]
    columns = np.stack([matrix[:, group].sum(axis=1) for group in groups], axis=1)
    table = np.stack([columns[group].sum(axis=0) for group in groups])
    colors = ["--right"] * len(shown) + ["--mixed"] * bool(others)
    return Confusion(
        [names[label] for label in shown] + ["other classes"] * bool(others),
        [_cells(row, i, colors) for i, row in enumerate(table)],
        pairs,
        num_classes,
        is_cut,
    )


def score_charts(context: ReportContext) -> ScoreCharts | None:
    """Charts of score thresholds and calibration; None if no detection is correct."""
    if context.best is None:
        return None
    calibration = calibrate(context.diagnosis)
    if calibration is None:
        return ScoreCharts("", None, "")
    return ScoreCharts(
        charts.threshold_choice(context.sweep, context.best),
        calibration,
        charts.reliability(calibration),
    )


def _curve(context: ReportContext, label: int) -> Curve:
    name, precision = context.names[label], context.evaluation.precision[:, :, label, 0]
    svg = charts.precision_recall(precision, f"curve-{label}", f"precision and recall: {name}")
    return Curve(name, svg, *(context.class_metric(label, key) for key in CLASS_METRICS[:3]))


def _most_confused(between: NDArray[np.int64]) -> list[int]:
    """Labels of the largest counts ``(K, K)`` of objects of one class detected as another."""
    labels: list[int] = []
    both_ways = between + between.T
    for i in np.argsort(-both_ways, axis=None, kind="stable").tolist():
        if len(labels) >= MAX_CONFUSED_CLASSES or not both_ways.flat[i]:
            break
        labels += [label for label in divmod(i, len(between)) if label not in labels]
    return sorted(labels)


def _cells(row: NDArray[np.int64], own: int, colors: list[str]) -> list[Cell]:
    """Cells of row ``own``; its diagonal, if any, has its own color."""
    total = max(1, int(row.sum()))
    return [
        Cell(number, number / total, colors[own] if i == own < len(colors) else "--wrong")
        for i, number in enumerate(row.tolist())
    ]
