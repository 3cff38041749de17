"""The data that all sections of the report share."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from sepc_zoo.data import Annotations
from sepc_zoo.evaluation.average_precision import Ints
from sepc_zoo.evaluation.diagnosis import Diagnosis, Threshold
from sepc_zoo.evaluation.metrics import Evaluation
from sepc_zoo.evaluation.results import SplitDetections, SplitTargets


@dataclass(frozen=True, eq=False)
class ReportContext:
    """A split, the evaluation of its detections, and their diagnosis; K classes."""

    annotations: Annotations
    evaluation: Evaluation
    diagnosis: Diagnosis

    @property
    def names(self) -> tuple[str, ...]:
        return self.annotations.label_names

    @property
    def detections(self) -> SplitDetections:
        return self.diagnosis.detections

    @property
    def targets(self) -> SplitTargets:
        return self.diagnosis.targets

    @cached_property
    def num_objects(self) -> Ints:
        """Number of objects by class ``(K,)``, without crowds."""
        return np.bincount(self.targets.labels[~self.targets.iscrowd], minlength=len(self.names))

    @cached_property
    def best(self) -> Threshold | None:
        """The score threshold of the highest F1; None if no detection is correct."""
        return self.diagnosis.sweep.best()

    def class_metric(self, label: int, key: str) -> float:
        """One of ``CLASS_METRICS`` of a class; -1 where it is undefined."""
        return self.evaluation.metrics["per_class"][self.names[label]][key]

    def labels_by_ap(self) -> list[int]:
        """All labels by falling AP; those without an AP come last."""
        labels = range(len(self.names))
        return sorted(labels, key=lambda k: (-self.class_metric(k, "AP"), self.names[k]))
