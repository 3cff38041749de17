"""Matching of detections to objects, and what follows from it about mistakes and scores.

Matching is COCO's at an IoU of 0.5. Detections in a crowd of their class are ignored, as are those
after the 100 highest scores of a class in an image. Kinds of mistakes are those of TIDE (Bolya et
al., ECCV 2020).
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from sepc_zoo.data import Annotations
from sepc_zoo.evaluation.matching import (
    MIN_IOU,
    MIN_PAIR_IOU,
    Bools,
    Floats,
    Ints,
    Pairs,
    closest,
    find_pairs,
    greedy_match,
    within_limit,
)
from sepc_zoo.evaluation.results import (
    SplitBoxes,
    SplitDetections,
    SplitTargets,
    best_of_groups,
    collect_targets,
    max_per_class,
)

WORST_PER_IMAGE = 2  # mistakes of an image among the worst
BINS = 10  # bins of scores in a calibration
CORRECT, LOCALISATION, CLASSIFICATION, DUPLICATE, BACKGROUND, BOTH, IGNORED = range(7)
MISTAKES = {
    CLASSIFICATION: "classification",
    LOCALISATION: "localisation",
    BOTH: "both",
    DUPLICATE: "duplicate",
    BACKGROUND: "background",
}


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """Outcome of each of D detections; G objects.

    ``nearest`` is the object that explains the kind: the matched one (CORRECT), one of the same
    class that is not covered well (LOCALISATION, IoU from 0.1 to 0.5) or that a higher score has
    matched (DUPLICATE), one of another class (CLASSIFICATION, IoU of 0.5 or more) that is perhaps
    not covered well either (BOTH, IoU above 0.1).
    """

    detections: SplitDetections
    targets: SplitTargets
    kind: Ints  # (D,), CORRECT, IGNORED or one of MISTAKES
    match: Ints  # (D,), index of the matched object or -1
    nearest: Ints  # (D,), index of an object or -1
    iou: Floats  # (D,), with ``nearest``
    pairs: Pairs  # without crowds and detections that are not evaluated

    def matched_by(self, min_score: float) -> Ints:
        """Index ``(G,)`` of the detection of each object, if it has this score, or -1."""
        matched_by = np.full(len(self.targets), -1)
        chosen = np.flatnonzero((self.kind == CORRECT) & (self.detections.scores >= min_score))
        matched_by[self.match[chosen]] = chosen
        return matched_by

    def wrong(self, min_score: float = -math.inf) -> Bools:
        """Tell which detections ``(D,)`` with this score are mistakes."""
        return np.isin(self.kind, list(MISTAKES)) & (self.detections.scores >= min_score)

    def not_found(self, min_score: float = -math.inf) -> Bools:
        """Tell which objects ``(G,)`` have no correct detection with this score."""
        return (self.matched_by(min_score) < 0) & ~self.targets.iscrowd

    @cached_property
    def sweep(self) -> "Sweep":
        """Score thresholds of all classes together."""
        return sweep_scores(self)

    @cached_property
    def min_score(self) -> float:
        """The threshold of the highest F1, applied wherever single boxes are counted."""
        best = self.sweep.best()
        return best.score if best else -math.inf


def diagnose_split(detections: SplitDetections, annotations: Annotations) -> Diagnosis:
    """Match the detections of a split to its objects, and classify the unmatched ones.

    Args:
        detections: what ``collect_detections`` returned for these annotations.
    """
    count, rank, targets = len(detections), detections.rank, collect_targets(annotations)
    pairs = find_pairs(detections, targets, len(annotations.records))
    is_crowd = targets.iscrowd[pairs.target]
    ignored = ~within_limit(detections, max_per_class(annotations))
    in_crowd = pairs.detection[is_crowd & pairs.same_class & (pairs.iou >= MIN_IOU)]
    pairs = pairs.only(~is_crowd & ~ignored[pairs.detection])
    ignored[in_crowd] = True

    match = _match(pairs, pairs.same_class & (pairs.iou >= MIN_IOU), rank, targets)
    same, same_iou = closest(pairs, pairs.same_class, count)
    other, other_iou = closest(pairs, ~pairs.same_class, count)
    conditions = {  # the first that holds, in the order of TIDE's code
        CORRECT: match >= 0,
        IGNORED: ignored,
        LOCALISATION: (same >= 0) & (same_iou <= MIN_IOU),
        CLASSIFICATION: other_iou >= MIN_IOU,
        DUPLICATE: same_iou >= MIN_IOU,
        BOTH: other_iou > MIN_PAIR_IOU,
    }
    kind = np.select([*conditions.values()], [*conditions], BACKGROUND)
    targets_of = {CORRECT: match, LOCALISATION: same, DUPLICATE: same}
    targets_of |= {CLASSIFICATION: other, BOTH: other}
    nearest = np.select([kind == k for k in targets_of], [*targets_of.values()], -1)
    iou = np.zeros(count)
    of_nearest = pairs.target == nearest[pairs.detection]
    iou[pairs.detection[of_nearest]] = pairs.iou[of_nearest]
    return Diagnosis(detections, targets, kind, match, nearest, iou, pairs)


def confusion_matrix(diagnosis: Diagnosis, num_classes: int, min_score: float) -> Ints:
    """Count ``(K + 1, K + 1)`` the objects of a class (row) that are detected as a class (column).

    The last row counts detections without an object, the last column missed objects. Boxes of the
    same class are matched first, then the remaining ones of different classes.
    """
    detections, targets, pairs = diagnosis.detections, diagnosis.targets, diagnosis.pairs
    kept = (detections.scores >= min_score) & (diagnosis.kind != IGNORED)
    matched_by = diagnosis.matched_by(min_score)
    mistaken = kept & (diagnosis.kind != CORRECT)
    left = (pairs.iou >= MIN_IOU) & mistaken[pairs.detection] & (matched_by[pairs.target] < 0)
    match = np.where(kept, diagnosis.match, -1)
    confused = _match(pairs, left & ~pairs.same_class, detections.rank, targets)
    match = np.where(confused >= 0, confused, match)

    detected = np.full(len(targets), num_classes)
    detected[match[match >= 0]] = detections.labels[match >= 0]
    objects = ~targets.iscrowd
    unmatched = kept & (match < 0)
    matrix = np.zeros((num_classes + 1, num_classes + 1), dtype=np.int64)
    np.add.at(matrix, (targets.labels[objects], detected[objects]), 1)
    np.add.at(matrix, (num_classes, detections.labels[unmatched]), 1)
    return matrix


class Threshold(NamedTuple):
    """Precision, recall and F1 at a score threshold."""

    score: float
    precision: float
    recall: float
    f1: float


class Sweep(NamedTuple):
    """Precision, recall and F1 at each of S score thresholds, falling."""

    scores: Floats
    precision: Floats
    recall: Floats
    f1: Floats

    def best(self) -> Threshold | None:
        """The threshold of the highest F1, halfway to the next lower score; None if F1 is 0."""
        if not self.f1.any():
            return None
        i = int(self.f1.argmax())
        below = self.scores[i + 1] if i + 1 < len(self.scores) else min(0.0, self.scores[i])
        score = (self.scores[i] + below) / 2
        return Threshold(*map(float, (score, self.precision[i], self.recall[i], self.f1[i])))


def sweep_scores(diagnosis: Diagnosis, label: int | None = None) -> Sweep:
    """Try each score as a threshold, for a class or for all classes together."""
    detections, targets = diagnosis.detections, diagnosis.targets
    chosen, real = diagnosis.kind != IGNORED, ~targets.iscrowd
    if label is not None:
        chosen, real = chosen & (detections.labels == label), real & (targets.labels == label)
    order = np.flatnonzero(chosen)[np.argsort(-detections.scores[chosen], kind="stable")]
    scores = detections.scores[order]
    last = np.flatnonzero(np.diff(scores, append=-np.inf))  # equal scores pass together
    correct = np.cumsum(diagnosis.kind[order] == CORRECT)[last]
    count, objects = last + 1, int(real.sum())
    recall = correct / objects if objects else np.zeros(len(last))
    return Sweep(scores[last], correct / count, recall, 2 * correct / (count + objects))


class Calibration(NamedTuple):
    """Scores in B bins of equal width against the share of correct detections."""

    detections: Ints  # (B,), number
    score: Floats  # (B,), mean; 0 in empty bins
    correct: Floats  # (B,), share

    @property
    def error(self) -> float:
        """Expected calibration error: mean distance of score and share over detections."""
        weight = self.detections / max(1, self.detections.sum())
        return float(np.sum(weight * np.abs(self.score - self.correct)))


def calibrate(diagnosis: Diagnosis) -> Calibration | None:
    """Compare scores with the share of correct detections; None if a score is outside 0…1."""
    chosen = diagnosis.kind != IGNORED
    scores = diagnosis.detections.scores[chosen]
    if len(scores) and not (scores.min() >= 0 and scores.max() <= 1):
        return None
    correct = diagnosis.kind[chosen] == CORRECT
    where = np.minimum((scores * BINS).astype(int), BINS - 1)
    count = np.bincount(where, minlength=BINS)
    sums = [np.bincount(where, weights, minlength=BINS) for weights in (scores, correct)]
    return Calibration(count, *(total / np.maximum(count, 1) for total in sums))


def worst_false_positives(diagnosis: Diagnosis, count: int) -> list[int]:
    """Mistakes by falling score, a few of each image."""
    return _worst(diagnosis.wrong(), diagnosis.detections, diagnosis.detections.scores, count)


def worst_misses(diagnosis: Diagnosis, min_score: float, count: int) -> list[int]:
    """Objects without a detection of this score, by falling area, a few of each image."""
    targets = diagnosis.targets
    return _worst(diagnosis.not_found(min_score), targets, targets.area, count)


def _worst(chosen: Bools, boxes: SplitBoxes, badness: Floats, count: int) -> list[int]:
    order = np.flatnonzero(chosen)
    order = order[np.argsort(-badness[order], kind="stable")]
    kept = best_of_groups(boxes.image[order], np.arange(len(order)), WORST_PER_IMAGE)
    return order[kept][:count].tolist()


def explain_miss(diagnosis: Diagnosis, missed: int, min_score: float) -> tuple[int, float]:
    """Index and IoU of the detection that explains best why an object is missed, or -1 and 0.

    The detection that matches the object with a lower score; otherwise the one of at least
    ``min_score`` with the highest overlap.
    """
    pairs, detections = diagnosis.pairs, diagnosis.detections
    near = np.flatnonzero(pairs.target == missed)
    low = near[diagnosis.match[pairs.detection[near]] == missed]
    if len(low):
        return int(pairs.detection[low[0]]), float(pairs.iou[low[0]])
    near = near[detections.scores[pairs.detection[near]] >= min_score]
    if not len(near):
        return -1, 0.0
    best = near[pairs.iou[near].argmax()]
    return int(pairs.detection[best]), float(pairs.iou[best])


def _match(pairs: Pairs, chosen: Bools, rank: Ints, targets: SplitTargets) -> Ints:
    return greedy_match(pairs.only(chosen), rank, targets.iscrowd, targets.iscrowd)
