"""Comparison of two models on the same images."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from sepc_zoo.data import Annotations
from sepc_zoo.evaluation.average_precision import Floats, Ints
from sepc_zoo.evaluation.bootstrap import LEVEL, Resampler, bootstrap, interval
from sepc_zoo.evaluation.diagnosis import Diagnosis, diagnose_split
from sepc_zoo.evaluation.errors import ErrorCosts
from sepc_zoo.evaluation.metrics import evaluate, format_figure, plain_table
from sepc_zoo.evaluation.results import SplitDetections
from sepc_zoo.metric_names import AP_METRICS

MAX_IMAGES = 12  # images that are shown, those that differ most


@dataclass(frozen=True, eq=False)
class Comparison:
    """The comparison of two models, called a and b, on the same images.

    ``content`` is that of ``compare.json``: ``figures`` by the names of ``AP_METRICS`` and
    ``per_class`` by class (its AP), each with ``a``, ``b``, ``difference`` (b - a), ``interval`` of
    the difference and ``b_better``, the share of the resamples with a difference where b has the
    higher figure; ``errors`` with the ``dAP`` of each kind; ``images``, those that differ most. -1
    is undefined, for differences None.
    """

    content: dict[str, Any]
    diagnoses: Sequence[Diagnosis]
    images: list[int]  # indices of the records that differ most


def compare_detections(
    both: Sequence[SplitDetections], annotations: Annotations, count: int, seed: int
) -> Comparison:
    """Compare the detections of two models with ``count`` paired resamples of the images."""
    num_images = len(annotations.records)
    figures = []
    for detections in both:
        metrics = evaluate(detections, annotations).metrics
        per_class = [own["AP"] for own in metrics["per_class"].values()]
        figures.append([metrics[key] for key in AP_METRICS] + per_class)
    samples = bootstrap([Resampler(own, annotations) for own in both], count, seed)
    rows = _rows(np.array(figures), samples)
    diagnoses = [diagnose_split(own, annotations) for own in both]
    names = annotations.label_names
    costs = [ErrorCosts(own, len(names)).costs() for own in diagnoses]
    per_image = np.stack([_errors_per_image(own, num_images) for own in diagnoses], axis=1)
    difference = np.abs(per_image[:, 0] - per_image[:, 1])
    order = np.argsort(-difference, kind="stable")[:MAX_IMAGES]
    images = order[difference[order] > 0].tolist()
    content = {
        "resamples": count,
        "seed": seed,
        "level": LEVEL,
        "figures": dict(zip(AP_METRICS, rows, strict=False)),
        "per_class": dict(zip(names, rows[len(AP_METRICS) :], strict=True)),
        "errors": {kind: {"a": costs[0][kind], "b": costs[1][kind]} for kind in costs[0]},
        "images": [
            {
                "image_id": annotations.records[i].image_id,
                "file": annotations.records[i].path.name,
                "errors_a": int(per_image[i, 0]),
                "errors_b": int(per_image[i, 1]),
            }
            for i in images
        ],
    }
    return Comparison(content, diagnoses, images)


def comparison_tables(content: dict[str, Any]) -> list[Table]:
    """Lay out ``Comparison.content`` for the terminal: figures, then classes."""
    head = "A", "B", "B - A", "95% interval", "B better"
    return [
        plain_table((title, *head), [(escape(name), *row_texts(row)) for name, row in rows.items()])
        for title, rows in (("", content["figures"]), ("class", content["per_class"]))
    ]


def row_texts(row: dict[str, Any]) -> list[str]:
    """The figures of a row as texts; dashes where undefined."""
    both = [format_figure(row["a"]), format_figure(row["b"])]
    if row["difference"] is None:
        return [*both, "-", "-", "-"]
    low, high = row["interval"]
    spread = f"{low:+.3f} to {high:+.3f}"
    share = "-" if row["b_better"] is None else f"{100 * row['b_better']:.1f}%"
    return [*both, f"{row['difference']:+.3f}", spread, share]


def _rows(figures: Floats, samples: Floats) -> list[dict[str, Any]]:
    """Rows of F figures, from those of both models ``(2, F)`` and samples ``(count, 2, F)``."""
    rows = []
    for (a, b), column in zip(figures.T.tolist(), (samples[:, 1] - samples[:, 0]).T, strict=True):
        row = {"a": a, "b": b, **dict.fromkeys(("difference", "interval", "b_better"))}
        known = column[~np.isnan(column)]
        if a >= 0 and len(known):
            row |= {"difference": b - a, "interval": interval(known)}
            decided = known[known != 0]
            row |= {"b_better": float((decided > 0).mean()) if len(decided) else None}
        rows.append(row)
    return rows


def _errors_per_image(diagnosis: Diagnosis, num_images: int) -> Ints:
    """Number of mistakes and objects not found ``(N,)`` at the score threshold of the best F1."""
    min_score = diagnosis.min_score
    wrong = diagnosis.detections.image[diagnosis.wrong(min_score)]
    not_found = diagnosis.targets.image[diagnosis.not_found(min_score)]
    return np.bincount(np.concatenate([wrong, not_found]), minlength=num_images)
