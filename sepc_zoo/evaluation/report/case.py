"""What every section of the page is about."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sepc_zoo.data import Annotations
from sepc_zoo.evaluation.metrics import Evaluation
from sepc_zoo.evaluation.report.diagnosis import Diagnosis, Sweep, Threshold, diagnose, sweep_scores
from sepc_zoo.evaluation.results import SplitDetections, SplitTargets, collect_targets


@dataclass(frozen=True, eq=False)
class Case:
    """A split, what was found in it, and what can be said of that; K classes."""

    annotations: Annotations
    found: SplitDetections
    truth: SplitTargets
    evaluation: Evaluation
    diagnosis: Diagnosis
    objects: NDArray[np.int64]  # (K,), crowds left out
    sweep: Sweep  # of all classes together
    best: Threshold | None  # None: nothing is found
    least_score: float  # that of ``best``: what is looked at one by one

    @property
    def names(self) -> tuple[str, ...]:
        return self.annotations.label_names

    @property
    def sure_enough(self) -> str:
        """The least score in words."""
        return f"a score of {self.least_score:.3f} or more (best F1)" if self.best else "any score"

    def of_class(self, label: int, key: str) -> float:
        """One of ``CLASS_METRIC_KEYS`` of a class; -1 where it has none."""
        return self.evaluation.metrics["per_class"][self.names[label]][key]

    def labels_by_ap(self) -> list[int]:
        """Falling; classes without an AP come last."""
        labels = range(len(self.names))
        return sorted(labels, key=lambda label: (-self.of_class(label, "AP"), self.names[label]))


def make_case(annotations: Annotations, found: SplitDetections, evaluation: Evaluation) -> Case:
    truth = collect_targets(annotations)
    diagnosis = diagnose(found, truth, len(annotations.records))
    objects = np.bincount(truth.labels[~truth.iscrowd], minlength=len(annotations.label_names))
    sweep = sweep_scores(diagnosis)
    best = sweep.best()
    least_score = best.score if best else -math.inf
    return Case(annotations, found, truth, evaluation, diagnosis, objects, sweep, best, least_score)
