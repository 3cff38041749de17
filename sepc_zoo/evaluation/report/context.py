"""What all sections of the report are computed from."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sepc_zoo.data import Annotations
from sepc_zoo.evaluation.metrics import Evaluation
from sepc_zoo.evaluation.report.diagnosis import Diagnosis, Sweep, Threshold, diagnose, sweep_scores
from sepc_zoo.evaluation.results import SplitDetections, SplitTargets, collect_targets


@dataclass(frozen=True, eq=False)
class ReportContext:
    """A split, its detections, and their evaluation; K classes."""

    annotations: Annotations
    detections: SplitDetections
    targets: SplitTargets
    evaluation: Evaluation
    diagnosis: Diagnosis
    num_objects: NDArray[np.int64]  # (K,), without crowds
    sweep: Sweep  # of all classes together
    best: Threshold | None  # of the highest F1; None: no detection is correct
    min_score: float  # score threshold of ``best``, applied wherever single boxes are counted

    @property
    def names(self) -> tuple[str, ...]:
        return self.annotations.label_names

    def class_metric(self, label: int, key: str) -> float:
        """One of ``CLASS_METRICS`` of a class; -1 where it is undefined."""
        return self.evaluation.metrics["per_class"][self.names[label]][key]

    def labels_by_ap(self) -> list[int]:
        """All labels by falling AP; those without an AP come last."""
        labels = range(len(self.names))
        return sorted(labels, key=lambda k: (-self.class_metric(k, "AP"), self.names[k]))


def make_context(
    annotations: Annotations, detections: SplitDetections, evaluation: Evaluation
) -> ReportContext:
    targets = collect_targets(annotations)
    diagnosis = diagnose(detections, targets, len(annotations.records))
    labels = targets.labels[~targets.iscrowd]
    sweep = sweep_scores(diagnosis)
    best = sweep.best()
    return ReportContext(
        annotations=annotations,
        detections=detections,
        targets=targets,
        evaluation=evaluation,
        diagnosis=diagnosis,
        num_objects=np.bincount(labels, minlength=len(annotations.label_names)),
        sweep=sweep,
        best=best,
        min_score=best.score if best else -math.inf,
    )
