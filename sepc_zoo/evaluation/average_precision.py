"""Average precision from points on the curves of precision over recall."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALL_THRESHOLDS = np.linspace(0.0, 1.0, 101)


class Curves:
    """P points of C curves, sorted by curve, then by falling score."""

    def __init__(self, curve: Ints, num_curves: int) -> None:
        self.curve, self.num_curves = curve, num_curves  # (P,), index of the curve
        self.starts = np.flatnonzero(np.diff(curve, prepend=-1))  # first points of curves
        self.lengths = np.diff(self.starts, append=len(curve))

    def running_sum(self, values: Any) -> Any:
        """Running sum ``(P,)`` of values within each curve."""
        total = np.cumsum(values)
        return total - np.repeat(total[self.starts] - values[self.starts], self.lengths)

    def ap(
        self,
        correct: Floats | Ints,
        precision: Floats,
        num_objects: Floats | Ints,
        recalls: Floats | None = RECALL_THRESHOLDS,
    ) -> Floats:
        """AP ``(C,)`` of each curve; NaN for those without objects.

        Args:
            correct: ``(P,)`` number of correct detections up to each point.
            precision: ``(P,)``.
            num_objects: ``(C,)`` objects to find.
            recalls: take the mean of the highest precision at these or higher recalls; None takes
                the area under that curve.
        """
        # one running maximum serves all curves: the offset keeps their values apart
        offset = -2.0 * self.curve
        highest = np.maximum.accumulate((precision + offset)[::-1])[::-1] - offset
        reached = correct / np.maximum(num_objects, 1)[self.curve]
        if recalls is not None:
            reached = np.searchsorted(recalls, reached, side="right") / len(recalls)
        steps = np.diff(reached, prepend=0.0)
        steps[self.starts] = reached[self.starts]
        ap = np.bincount(self.curve, highest * steps, minlength=self.num_curves)
        return np.where(num_objects > 0, ap, np.nan)


def class_ap(
    labels: Ints, correct: Bools, num_objects: Ints, recalls: Floats | None = RECALL_THRESHOLDS
) -> Floats:
    """AP ``(K,)`` of each class; NaN for those without objects.

    Args:
        labels: ``(D,)`` of detections by class, then by falling score.
        correct: ``(D,)``.
        num_objects: ``(K,)``.
        recalls: as in ``Curves.ap``.
    """
    at = np.flatnonzero(correct)  # precision is highest at correct detections
    curves = Curves(labels[at], len(num_objects))
    found = curves.running_sum(np.ones(len(at)))
    first = np.searchsorted(labels, np.arange(len(num_objects)))
    precision = found / (at + 1 - first[labels[at]])
    return curves.ap(found, precision, num_objects, recalls)


def nan_mean(values: Floats) -> float:
    """Mean of the defined values; NaN where there are none."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else np.nan
