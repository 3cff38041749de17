"""Figures, tables and charts of the report, as plain data for its template."""

from typing import Any

import numpy as np

from sepc_zoo.data.quality.statistics import count_sizes
from sepc_zoo.evaluation.average_precision import Ints
from sepc_zoo.evaluation.diagnosis import (
    CORRECT,
    IGNORED,
    MISTAKES,
    calibrate,
    confusion_matrix,
    sweep_scores,
)
from sepc_zoo.evaluation.errors import ERROR_KINDS
from sepc_zoo.evaluation.metrics import mean
from sepc_zoo.evaluation.report import charts
from sepc_zoo.evaluation.report.context import ReportContext
from sepc_zoo.metric_names import CLASS_METRICS

MAX_OPEN_CLASSES = 20  # more classes group the curves and cut the confusion matrix
CURVES_PER_GROUP = 12
MAX_CURVES = 120
MAX_CONFUSED_CLASSES = 14  # classes of a matrix that is cut
MAX_CONFUSIONS = 12  # rows of the list beside the matrix


def outcomes(context: ReportContext) -> dict[str, Any]:
    """Count what the detections over the score threshold are, and the objects not found."""
    diagnosis = context.diagnosis
    kind = diagnosis.kind[diagnosis.detections.scores >= diagnosis.min_score]
    names = {CORRECT: "correct", **MISTAKES}
    return {
        "total": int((kind != IGNORED).sum()),
        "not_found": int(diagnosis.not_found(diagnosis.min_score).sum()),
        "counts": {name: int((kind == number).sum()) for number, name in names.items()},
    }


def error_costs(context: ReportContext) -> dict[str, Any]:
    """Draw the AP50 that each kind of error costs; nothing where it is not computed."""
    costs = context.evaluation.metrics.get("errors")
    if not costs or not context.num_objects.any():
        return {}
    gains = {kind.short: costs[name]["dAP"] for name, kind in ERROR_KINDS.items()}
    kinds = [{**kind._asdict(), **costs[name]} for name, kind in ERROR_KINDS.items()]
    return {"chart": charts.error_costs(gains), "kinds": kinds}


def ap_charts(context: ReportContext) -> dict[str, str]:
    """Draw AP by recall, IoU threshold and object size; nothing without objects."""
    if not context.num_objects.any():
        return {}
    precision, recall = context.evaluation.precision, context.evaluation.recall
    area = context.targets.area[~context.targets.iscrowd]
    sizes = [f"{name}\n{count:,}" for name, count in count_sizes(area).items()]
    by_size = [[mean(table[..., size]) for size in (1, 2, 3)] for table in (precision, recall)]
    by_recall = precision[:, :, context.num_objects > 0, 0].mean(axis=2)
    return {
        "precision_recall": charts.mean_precision_recall(by_recall),
        "by_iou": charts.ap_by_iou([mean(table) for table in precision[..., 0]]),
        "by_size": charts.ap_by_size(sizes, *by_size),
    }


def class_rows(context: ReportContext) -> list[dict[str, Any]]:
    """List the rows of the table of classes; figures are -1 where undefined."""
    num_detections = np.bincount(context.detections.labels, minlength=len(context.names))
    rows = []
    for label in context.labels_by_ap():
        metrics = [context.class_metric(label, key) for key in CLASS_METRICS]
        best = sweep_scores(context.diagnosis, label).best()
        rows.append(
            {
                "name": context.names[label],
                "counts": [int(context.num_objects[label]), int(num_detections[label])],
                "figures": [*metrics, *([best.score, best.f1] if best else [-1.0, -1.0])],
            }
        )
    return rows


def curves(context: ReportContext) -> dict[str, Any]:
    """Draw the classes with objects by falling AP, of many classes the most frequent ones.

    They come in groups; a single group needs no heading.
    """
    known = [label for label in context.labels_by_ap() if context.num_objects[label]]
    frequent = set(sorted(known, key=lambda label: -context.num_objects[label])[:MAX_CURVES])
    shown = [_curve(context, label) for label in known if label in frequent]
    size = CURVES_PER_GROUP if len(shown) > MAX_OPEN_CLASSES else max(1, len(shown))
    groups = [shown[i : i + size] for i in range(0, len(shown), size)]
    return {"groups": groups, "shown": len(shown), "total": len(known)}


def confusion(context: ReportContext) -> dict[str, Any]:
    """Count objects (rows) against the classes that they are detected as (columns).

    The last row is the background, the last column the objects without a detection. Of many
    classes, only those that are confused most often have rows of their own. ``pairs`` are
    (annotated class, detected class, number).
    """
    names, num_classes = context.names, len(context.names)
    matrix = confusion_matrix(context.diagnosis, num_classes, context.diagnosis.min_score)
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
    return {
        "names": [names[label] for label in shown] + ["other classes"] * bool(others),
        "rows": [_cells(row, i, colors) for i, row in enumerate(table)],
        "pairs": pairs,
        "num_classes": num_classes,
        "is_cut": is_cut,
    }


def score_charts(context: ReportContext) -> dict[str, Any]:
    """Draw score thresholds and calibration; nothing where scores are not probabilities."""
    calibration = calibrate(context.diagnosis)
    if context.best is None or calibration is None:
        return {}
    return {
        "threshold_choice": charts.threshold_choice(context.diagnosis.sweep, context.best),
        "error": calibration.error,
        "reliability": charts.reliability(calibration),
    }


def _curve(context: ReportContext, label: int) -> dict[str, Any]:
    name, precision = context.names[label], context.evaluation.precision[:, :, label, 0]
    svg = charts.precision_recall(precision, f"curve-{label}", f"precision and recall: {name}")
    figures = {key: context.class_metric(label, key) for key in CLASS_METRICS[:3]}
    return {"name": name, "svg": svg, **figures}


def _most_confused(between: Ints) -> list[int]:
    """List the labels of the largest counts ``(K, K)`` of objects detected as another class."""
    labels: list[int] = []
    both_ways = between + between.T
    for i in np.argsort(-both_ways, axis=None, kind="stable").tolist():
        if len(labels) >= MAX_CONFUSED_CLASSES or not both_ways.flat[i]:
            break
        labels += [label for label in divmod(i, len(between)) if label not in labels]
    return sorted(labels)


def _cells(row: Ints, own: int, colors: list[str]) -> list[dict[str, Any]]:
    """Make the cells of row ``own``; its diagonal, if any, has a color of its own."""
    total = max(1, int(row.sum()))
    return [
        {
            "number": number,
            "share": number / total,
            "color": colors[own] if i == own < len(colors) else "--wrong",
        }
        for i, number in enumerate(row.tolist())
    ]
