"""Kinds of errors and the AP that each costs (TIDE, Bolya et al., ECCV 2020)."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from sepc_zoo.evaluation.average_precision import Bools, Ints, class_ap, nan_mean
from sepc_zoo.evaluation.diagnosis import (
    CLASSIFICATION,
    CORRECT,
    IGNORED,
    LOCALISATION,
    MISTAKES,
    Diagnosis,
)


class ErrorKind(NamedTuple):
    """The name of a kind of error, its meaning, and advice."""

    short: str  # the paper's name
    meaning: str
    advice: str


ERROR_KINDS = {
    "classification": ErrorKind(
        "Cls",
        "The box fits an object of another class.",
        "Look at the confused classes: merge or relabel them, or add examples of the rarer one.",
    ),
    "localisation": ErrorKind(
        "Loc",
        "The class is right, but the box overlaps the object too little.",
        "Check that boxes are annotated tightly; fit the anchors to the sizes of the boxes, or "
        "train longer.",
    ),
    "both": ErrorKind(
        "Both",
        "Neither class nor box is right.",
        "Often a consequence of the two before: start there.",
    ),
    "duplicate": ErrorKind(
        "Dupe",
        "A higher score has the object already.",
        "Lower the IoU threshold of non-maximum suppression.",
    ),
    "background": ErrorKind(
        "Bkg",
        "No object is annotated there.",
        "Look at the worst false positives: annotate objects that were forgotten, and add images "
        "without objects.",
    ),
    "missed": ErrorKind(
        "Miss",
        "No detection is near the object.",
        "Look at the objects not found: enlarge the images if they are small, and add examples "
        "of them.",
    ),
    "false_positives": ErrorKind(
        "FalsePos",
        "All incorrect detections together.",
        "If this is the larger of the two, scores rank badly: add images without objects.",
    ),
    "false_negatives": ErrorKind(
        "FalseNeg",
        "All objects without a correct detection together.",
        "If this is the larger of the two, recall is short: more training, larger images.",
    ),
}


def errors_line(costs: Mapping[str, Mapping[str, Any]]) -> str:
    """One line for the terminal about the result of ``ErrorCosts.costs``."""
    parts = [f"{kind.short} {costs[name]['dAP']:.3f}" for name, kind in ERROR_KINDS.items()]
    return f"AP50 that each kind of error costs: {', '.join(parts)}"


class ErrorCosts:
    """The errors of a split, and the AP50 to be gained by mending them.

    As in the code of the paper, except that detections in crowds do not count, and those of classes
    without objects cost nothing, as in COCO's AP.
    """

    def __init__(self, diagnosis: Diagnosis, num_classes: int) -> None:
        self.kind, self.num_classes = diagnosis.kind, num_classes
        self.labels, self.rank = diagnosis.detections.labels, diagnosis.detections.rank
        self.target_labels, objects = diagnosis.targets.labels, ~diagnosis.targets.iscrowd
        self.num_objects = self._count_classes(objects)
        self.lost = diagnosis.not_found()

        # detections that would find a lost object with another class or box, by falling score
        near = np.flatnonzero(np.isin(self.kind, [CLASSIFICATION, LOCALISATION]))
        near = near[self.lost[diagnosis.nearest[near]]]
        near = near[np.argsort(self.rank[near])]
        target, first = np.unique(diagnosis.nearest[near], return_index=True)
        self.missed = self.lost.copy()  # objects (G,) without such a detection either
        self.missed[target] = False
        self.best = near[first]  # for each lost object that is not missed
        self.best_labels = self.target_labels[target]

    def costs(self) -> dict[str, dict[str, Any]]:
        """``count`` and ``dAP`` (0…1) by the names of ``ERROR_KINDS``.

        They do not add up: an incorrect detection costs more, the more correct ones follow it.
        """
        before = self.fixed_ap()
        counts = {name: int((self.kind == number).sum()) for number, name in MISTAKES.items()}
        counts["false_positives"] = sum(counts.values())
        counts |= {"missed": int(self.missed.sum()), "false_negatives": int(self.lost.sum())}
        return {  # NaN, where there are no objects, gives 0
            name: {"count": counts[name], "dAP": max(0.0, self.fixed_ap(name) - before)}
            for name in ERROR_KINDS
        }

    def fixed_ap(self, *kinds: str) -> float:
        """AP50 after the errors of some kinds are mended; NaN without objects.

        A detection with a classification or localisation error becomes correct if it is the best
        of those near a lost object. The others with these errors are removed.
        """
        fixed = np.isin(self.kind, [number for number, name in MISTAKES.items() if name in kinds])
        mended = fixed[self.best]
        correct = self.kind == CORRECT
        correct[self.best[mended]] = True
        labels = self.labels.copy()
        labels[self.best[mended]] = self.best_labels[mended]
        num_objects = self.num_objects
        if "false_negatives" in kinds:
            num_objects = num_objects - self._count_classes(self.lost)
        elif "missed" in kinds:
            num_objects = num_objects - self._count_classes(self.missed)
        kept = correct | ~(fixed | (self.kind == IGNORED) | ("false_positives" in kinds))
        order = np.lexsort((self.rank, labels))
        order = order[kept[order]]
        ap = class_ap(labels[order], correct[order], num_objects)
        # a class whose objects are all removed has an AP of 0 while it has detections
        emptied = (self.num_objects > 0) & (num_objects == 0)
        emptied[emptied] = np.isin(np.flatnonzero(emptied), labels[order])
        return nan_mean(np.where(emptied, 0.0, ap))

    def _count_classes(self, chosen: Bools) -> Ints:
        return np.bincount(self.target_labels[chosen], minlength=self.num_classes)
