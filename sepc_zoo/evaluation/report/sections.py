"""The sections of figures, tables and charts, each a function from a case to HTML.

Names of classes come from outside and are escaped wherever they go in.
"""

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

from sepc_zoo.evaluation.metrics import SIZES, mean
from sepc_zoo.evaluation.report import charts
from sepc_zoo.evaluation.report.case import Case
from sepc_zoo.evaluation.report.diagnosis import (
    FOUND,
    IGNORED,
    MISTAKES,
    calibrate,
    confusion_matrix,
    sweep_scores,
)
from sepc_zoo.metric_names import CLASS_METRICS as CLASS_METRIC_KEYS
from sepc_zoo.metric_names import METRICS as METRIC_KEYS

FEW_CLASSES = 20  # whose curves all stand open, and whose confusion matrix is whole
CURVES_IN_A_GROUP = 12  # of more classes
MOST_CURVES = 120
CONFUSED_CLASSES = 14  # in the matrix of more classes
CONFUSIONS = 12  # in the list beside it

MEANINGS = {
    "AP": "IoU .50 to .95",
    "AP50": "IoU .50",
    "AP75": "IoU .75",
    "APs": "small objects",
    "APm": "medium",
    "APl": "large",
    "AR1": "1 box a class",
    "AR10": "10 boxes",
    "AR100": "100 boxes",
    "ARs": "small objects",
    "ARm": "medium",
    "ARl": "large",
}


def figure(value: float) -> str:
    """A figure of 0…1 with three digits; a dash for -1, where there is nothing to find."""
    return "-" if value < 0 else f"{value:.3f}"


def twelve_figures(case: Case) -> str:
    cells = (
        f'<div class="{key}"><small>{key}</small><b>{figure(case.evaluation.metrics[key])}</b>'
        f"<small>{MEANINGS[key]}</small></div>"
        for key in METRIC_KEYS
    )
    return f'<div class="figures">{"".join(cells)}</div>'


def losses(case: Case) -> str:
    """What detections are, and AP by overlap and size."""
    if not case.objects.any():
        return f"{_mistakes(case)}<p>There are no objects to find.</p>"
    precision, recall = case.evaluation.precision, case.evaluation.recall
    by_iou = [mean(table) for table in precision[..., 0]]
    area = case.truth.area[~case.truth.iscrowd]
    counts, _ = np.histogram(area, [-np.inf, 32**2, 96**2, np.inf])
    sizes = [f"{name}\n{count:,}" for name, count in zip(SIZES[1:], counts, strict=True)]
    by_size = [[mean(table[..., size]) for size in (1, 2, 3)] for table in (precision, recall)]
    overall = precision[:, :, case.objects > 0, 0].mean(axis=2)
    parts = (
        _chart(
            "Precision and recall",
            charts.mean_precision_recall(overall),
            'Mean of the classes at <b class="first">IoU .50</b>, <b class="second">.75</b> and '
            "the thresholds between and above",
        ),
        _chart("AP by IoU threshold", charts.ap_by_iou(by_iou), "What exact boxes are worth"),
        _chart(
            "By size of the objects",
            charts.ap_by_size(sizes, *by_size),
            'Mean <b class="first">precision</b> and <b class="second">recall</b>, and how many '
            "there are; small is under 32², large over 96² pixels",
        ),
    )
    return f'{_mistakes(case)}<div class="charts">{"".join(parts)}</div>'


def classes(case: Case) -> str:
    columns = ["class", "objects", "boxes", *CLASS_METRIC_KEYS, "threshold", "F1"]
    head = "".join(
        f"<th{' aria-sort=descending' if name == 'AP' else ''}>{name}</th>" for name in columns
    )
    boxes = np.bincount(case.found.labels, minlength=len(case.names))
    rows = "".join(_class_row(case, label, int(boxes[label])) for label in case.labels_by_ap())
    return (
        "<p>By falling AP; a click on the head of a column sorts by it. <b>Boxes</b> are "
        "detections, <b>threshold</b> is the score from which on F1 is best for that class.</p>"
        f'<div class="scroll tall"><table class="classes sortable"><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def curves(case: Case) -> str:
    """Precision over recall of each class: all of them open, or in groups to be opened."""
    known = [label for label in case.labels_by_ap() if case.objects[label]]
    drawn = set(sorted(known, key=lambda label: -case.objects[label])[:MOST_CURVES])
    tiles = {label: _curve(case, label) for label in known if label in drawn}
    text = (
        "Precision (upwards) over recall of each class, by falling AP, at "
        '<b class="first">IoU .50</b> and <b class="second">IoU .75</b>, with AP50 and AP75.'
    )
    if len(drawn) < len(known):
        text += f" These are the {len(drawn)} most frequent of {len(known):,} classes."
    if len(tiles) <= FEW_CLASSES:
        return f'<p>{text}</p><div class="tiles">{"".join(tiles.values())}</div>'
    labels = list(tiles)
    groups = (labels[i : i + CURVES_IN_A_GROUP] for i in range(0, len(labels), CURVES_IN_A_GROUP))
    return f"<p>{text}</p>" + "".join(_group(case, group, tiles) for group in groups)


def confusion(case: Case) -> str:
    """Objects against what they are seen as; of many classes the confused ones."""
    count = len(case.names)
    matrix = confusion_matrix(case.diagnosis, count, case.least_score)
    between = matrix[:count, :count] - np.diag(matrix.diagonal()[:count])
    text = (
        "Objects (rows) and what they are seen as (columns), at an IoU of 0.5 or more and "
        f"{case.sure_enough}."
    )
    shown = list(range(count))
    if count > FEW_CLASSES:
        shown = _most_confused(between)
        text += f" Of {count:,} classes, those that are taken for one another most often."
    order = np.argsort(-between, axis=None, kind="stable")[:CONFUSIONS].tolist()
    items = "".join(
        f"<li>{escape(case.names[i // count])} <span class=muted>seen as</span> "
        f"{escape(case.names[i % count])} <b>{between.flat[i]:,}</b></li>"
        for i in order
        if between.flat[i]
    )
    table = f'<div class="scroll">{_matrix(matrix, case.names, shown)}</div>'
    if not items:
        return f"<p>{text} No class is taken for another.</p>{table}"
    return (
        f'<p>{text}</p><div class="beside">{table}<div><h3>Most often confused</h3>'
        f'<ol class="pairs">{items}</ol></div></div>'
    )


def scores(case: Case) -> str:
    """Which score to ask for, and what a score is worth."""
    best = case.best
    if best is None:
        return "<p>No detection is correct, so no score is better than another.</p>"
    text = (
        f"<p><code>--score-threshold {best.score:.3f}</code> gives the best F1 over all classes, "
        f"<b>{best.f1:.3f}</b>: {best.precision:.1%} of what is seen is right, and "
        f"{best.recall:.1%} of what is there is seen. The table of classes has each one's own.</p>"
    )
    calibration = calibrate(case.diagnosis)
    if calibration is None:
        return f"{text}<p>Some scores lie outside 0…1: they cannot be probabilities.</p>"
    return (
        f'{text}<div class="charts two">'
        + _chart(
            "The choice of a threshold",
            charts.threshold_choice(case.sweep, best),
            '<b class="first">Precision</b>, <b class="second">recall</b> and '
            '<b class="ink">F1</b> with every threshold, all classes together',
        )
        + _chart(
            "Calibration",
            charts.reliability(calibration),
            f"Are seven of ten detections with a score of .7 correct? Expected calibration error "
            f"{calibration.error:.3f}; below, how many detections there are",
        )
        + "</div>"
    )


def _mistakes(case: Case) -> str:
    """What detections above the threshold are, and how many objects are missed."""
    kind = case.diagnosis.kind[case.found.scores >= case.least_score]
    names = {FOUND: "correct", **MISTAKES}
    counts = {name: int((kind == number).sum()) for number, name in names.items()}
    missed = int((case.diagnosis.finder(case.least_score) < 0)[~case.truth.iscrowd].sum())
    bar = "".join(
        f'<i class="k{i}" style="flex-grow:{count}" title="{name}: {count:,}"></i>'
        for i, (name, count) in enumerate(counts.items())
        if count
    )
    keys = "".join(
        f'<li class="k{i}">{name} <b>{count:,}</b></li>'
        for i, (name, count) in enumerate(counts.items())
    )
    return (
        f"<p>{(kind != IGNORED).sum():,} detections have {case.sure_enough}. Of "
        f"{case.objects.sum():,} objects <b>{missed:,}</b> are missed.</p>"
        f'<div class="split">{bar}</div><ul class="keys">{keys}</ul>'
    )


def _class_row(case: Case, label: int, boxes: int) -> str:
    name = escape(case.names[label])
    best = sweep_scores(case.diagnosis, label).best() if boxes else None
    values = [case.of_class(label, key) for key in CLASS_METRIC_KEYS]
    values += [best.score, best.f1] if best else [-1, -1]
    cells = "".join(f'<td data-value="{value:.6f}">{figure(value)}</td>' for value in values)
    # the first is AP, with a bar as long as it is high
    cells = cells.replace("<td", f'<td class="bar" style="--share:{max(0, values[0]):.1%}"', 1)
    counts = "".join(f'<td data-value="{n}">{n:,}</td>' for n in (int(case.objects[label]), boxes))
    return f'<tr><td title="{name}">{name}</td>{counts}{cells}</tr>'


def _curve(case: Case, label: int) -> str:
    name = escape(case.names[label])
    svg = charts.precision_recall(
        case.evaluation.precision[:, :, label, 0], f"precision and recall: {case.names[label]}"
    )
    return (
        f'<figure><figcaption><b title="{name}">{name}</b><span>'
        f'<span class="first">{figure(case.of_class(label, "AP50"))}</span> '
        f'<span class="second">{figure(case.of_class(label, "AP75"))}</span></span></figcaption>'
        f"{svg}</figure>"
    )


def _group(case: Case, labels: Sequence[int], tiles: Mapping[int, str]) -> str:
    """Some of the curves, to be opened; the best stand open."""
    best, worst = (figure(case.of_class(label, "AP")) for label in (labels[0], labels[-1]))
    names = escape(", ".join(case.names[label] for label in labels))
    is_first = labels[0] == next(iter(tiles))
    return (
        f"<details{' open' * is_first}><summary><b>AP {best} to {worst}</b> "
        f'<span class="muted">{names}</span></summary>'
        f'<div class="tiles">{"".join(tiles[label] for label in labels)}</div></details>'
    )


def _most_confused(between: NDArray[np.int64]) -> list[int]:
    """The labels of the largest counts ``(K, K)`` of objects of one class seen as another."""
    labels: list[int] = []
    both_ways = between + between.T
    for i in np.argsort(-both_ways, axis=None, kind="stable").tolist():
        if len(labels) >= CONFUSED_CLASSES or not both_ways.flat[i]:
            break
        labels += [label for label in divmod(i, len(between)) if label not in labels]
    return sorted(labels)


def _matrix(matrix: NDArray[np.int64], names: Sequence[str], shown: Sequence[int]) -> str:
    """A table of some classes, of the others taken together, and of background."""
    others = [label for label in range(len(names)) if label not in set(shown)]
    groups = [[label] for label in shown] + [others] * bool(others)
    heads = [names[label] for label in shown] + ["other classes"] * bool(others)
    columns = np.stack([matrix[:, group].sum(axis=1) for group in [*groups, [-1]]], axis=1)
    table = np.stack([columns[group].sum(axis=0) for group in [*groups, [-1]]])
    top = "".join(_head(name, inner="span") for name in heads)
    rows = "".join(
        f"<tr>{_head(name)}{_matrix_cells(row, i, '--right' if i < len(shown) else '--mixed')}</tr>"
        for i, (name, row) in enumerate(zip(heads, table[:-1], strict=True))
    )
    return (
        f'<table class="matrix"><thead><tr><th></th>{top}<th class="edge"><span>missed</span></th>'
        f'</tr></thead><tbody>{rows}<tr class="edge"><th>background</th>'
        f"{_matrix_cells(table[-1])}</tr></tbody></table>"
    )


def _matrix_cells(row: NDArray[np.int64], own: int = -1, own_color: str = "") -> str:
    """Counts, coloured by their share of the row; those of its own class in another colour."""
    total = max(1, int(row.sum()))
    cells = ""
    for column, count in enumerate(row.tolist()):
        color = own_color if column == own else "--wrong"
        shade = f"rgb(var({color}) / {0.12 + 0.6 * count / total:.2f})"
        filled = f' style="background:{shade}" title="{count / total:.1%} of the row"'
        edge = ' class="edge"' if column == len(row) - 1 else ""
        cells += f"<td{edge}{filled if count else ''}>{f'{count:,}' if count else ''}</td>"
    return cells


def _head(name: str, inner: str = "") -> str:
    text = escape(name)
    return f'<th title="{text}">{f"<{inner}>{text}</{inner}>" if inner else text}</th>'


def _chart(title: str, svg: str, note: str) -> str:
    return f"<figure><h3>{title}</h3><figcaption>{note}</figcaption>{svg}</figure>"
