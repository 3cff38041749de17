"""Matching of detections to objects, and what follows from it about mistakes and scores.

Matching is COCO's at an IoU of 0.5: by falling score, each detection takes the unmatched object of
its class with the highest overlap. Detections in a crowd of their class are ignored, as are those
after the 100 highest scores of a class in an image.
"""

from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask

from sepc_zoo.evaluation.results import SplitDetections, SplitTargets, indices_by_image

MIN_IOU = 0.5  # smallest IoU of a match
MIN_PAIR_IOU = 0.1  # smallest IoU of a poor box
MAX_PER_CLASS = 100  # evaluated detections of a class in an image

CORRECT, DUPLICATE, WRONG_CLASS, POOR_BOX, BACKGROUND, IGNORED = range(6)
MISTAKES = {
    DUPLICATE: "duplicate",
    WRONG_CLASS: "wrong class",
    POOR_BOX: "poor box",
    BACKGROUND: "background",
}

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


class Pairs(NamedTuple):
    """Detections and objects, without crowds, that overlap by ``MIN_PAIR_IOU`` or more."""

    detection: Ints  # (P,) index of the detection
    target: Ints  # (P,) index of the object
    iou: Floats  # (P,)
    same_class: Bools  # (P,)

    def only(self, chosen: Bools) -> "Pairs":
        return Pairs._make(column[chosen] for column in self)


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """Outcome of each of D detections; G objects.

    ``nearest`` is the object that explains the kind: the matched one, one that a higher score has
    matched (DUPLICATE), one of another class (WRONG_CLASS, IoU >= 0.5), or one that is not covered
    well (POOR_BOX, IoU >= 0.1).
    """

    detections: SplitDetections
    targets: SplitTargets
    kind: Ints  # (D,), CORRECT, IGNORED or one of MISTAKES
    match: Ints  # (D,), index of the matched object or -1
    nearest: Ints  # (D,), index of an object or -1
    iou: Floats  # (D,), with ``nearest``
    pairs: Pairs

    def matched_by(self, min_score: float) -> Ints:
        """Index ``(G,)`` of the detection of each object, if it has this score, or -1."""
        matched_by = np.full(len(self.targets), -1)
        chosen = np.flatnonzero((self.kind == CORRECT) & (self.detections.scores >= min_score))
        matched_by[self.match[chosen]] = chosen
        return matched_by


def diagnose(detections: SplitDetections, targets: SplitTargets, num_images: int) -> Diagnosis:
    """Match the detections of a split to its objects, and classify the unmatched ones."""
    rank = _ranks(detections)
    pairs, in_crowd = _overlaps(detections, targets, num_images)
    counted = _within_limit(detections, rank)
    pairs = pairs.only(counted[pairs.detection])

    enough = pairs.iou >= MIN_IOU
    match = _greedy(pairs, enough & pairs.same_class, rank)
    same, same_iou = _closest(pairs, pairs.same_class, len(detections))
    other, other_iou = _closest(pairs, ~pairs.same_class, len(detections))
    conditions = [
        match >= 0,
        in_crowd | ~counted,
        same_iou >= MIN_IOU,
        other_iou >= MIN_IOU,
        same >= 0,
    ]
    kinds = [CORRECT, IGNORED, DUPLICATE, WRONG_CLASS, POOR_BOX]
    kind = np.select(conditions, kinds, BACKGROUND)
    none = np.full(len(detections), -1)
    nearest = np.select(conditions, [match, none, same, other, same], none)
    iou = np.zeros(len(detections))
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
    confused = _greedy(pairs, left & ~pairs.same_class, _ranks(detections))
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


def calibrate(diagnosis: Diagnosis, bins: int = 10) -> Calibration | None:
    """Compare scores with the share of correct detections; None if a score is outside 0…1."""
    chosen = diagnosis.kind != IGNORED
    scores = diagnosis.detections.scores[chosen]
    if len(scores) and not (scores.min() >= 0 and scores.max() <= 1):
        return None
    correct = diagnosis.kind[chosen] == CORRECT
    where = np.minimum((scores * bins).astype(int), bins - 1)
    count = np.bincount(where, minlength=bins)
    sums = [np.bincount(where, weights, minlength=bins) for weights in (scores, correct)]
    return Calibration(count, *(total / np.maximum(count, 1) for total in sums))


def worst_false_positives(diagnosis: Diagnosis, count: int, per_image: int = 2) -> list[int]:
    """Mistakes by falling score, at most ``per_image`` from one image."""
    wrong = np.flatnonzero(np.isin(diagnosis.kind, list(MISTAKES)))
    order = wrong[np.argsort(-diagnosis.detections.scores[wrong], kind="stable")]
    return _limit_per_image(order, diagnosis.detections.image, count, per_image)


def worst_misses(
    diagnosis: Diagnosis, min_score: float, count: int, per_image: int = 2
) -> list[int]:
    """Objects without a detection of this score, by falling area."""
    missed = np.flatnonzero((diagnosis.matched_by(min_score) < 0) & ~diagnosis.targets.iscrowd)
    order = missed[np.argsort(-diagnosis.targets.area[missed], kind="stable")]
    return _limit_per_image(order, diagnosis.targets.image, count, per_image)


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


def _overlaps(
    detections: SplitDetections, targets: SplitTargets, num_images: int
) -> tuple[Pairs, Bools]:
    """All pairs, and whether each detection ``(D,)`` lies in a crowd of its class."""
    in_crowd = np.zeros(len(detections), dtype=bool)
    none = np.empty(0, dtype=np.int64)
    columns: list[tuple[Ints, Ints, Floats]] = [(none, none, np.empty(0))]
    by_image = (indices_by_image(boxes.image, num_images) for boxes in (detections, targets))
    for d, g in zip(*by_image, strict=True):
        if not len(d) or not len(g):
            continue
        crowd = targets.iscrowd[g]
        iou = mask.iou(detections.bbox[d], targets.bbox[g], crowd.astype(np.uint8))  # D, G
        same = detections.labels[d][:, None] == targets.labels[g]
        in_crowd[d] = ((iou >= MIN_IOU) & same & crowd).any(axis=1)
        row, column = np.nonzero((iou >= MIN_PAIR_IOU) & ~crowd)
        columns.append((d[row], g[column], iou[row, column]))
    d, g, iou = (np.concatenate(parts) for parts in zip(*columns, strict=True))
    return Pairs(d, g, iou, detections.labels[d] == targets.labels[g]), in_crowd


def _ranks(detections: SplitDetections) -> Ints:
    """Rank ``(D,)`` of each detection by falling score; equal scores keep their order."""
    ranks = np.empty(len(detections), dtype=np.int64)
    ranks[np.argsort(-detections.scores, kind="stable")] = np.arange(len(detections))
    return ranks


def _within_limit(detections: SplitDetections, rank: Ints) -> Bools:
    """Whether each detection ``(D,)`` is among the ``MAX_PER_CLASS`` of its class and image."""
    order = np.lexsort((rank, detections.labels, detections.image))
    group = detections.image * (detections.labels.max(initial=0) + 1) + detections.labels
    _, starts, counts = np.unique(group[order], return_index=True, return_counts=True)
    counted = np.empty(len(detections), dtype=bool)
    counted[order] = np.arange(len(detections)) - np.repeat(starts, counts) < MAX_PER_CLASS
    return counted


def _greedy(pairs: Pairs, chosen: Bools, rank: Ints) -> Ints:
    """Match each detection ``(D,)`` to an object or -1, by falling score, then IoU.

    The last of several objects with equal overlap wins, as in pycocotools.
    """
    match = np.full(len(rank), -1)
    index = np.flatnonzero(chosen)
    order = np.lexsort((-pairs.target[index], -pairs.iou[index], rank[pairs.detection[index]]))
    taken = set()
    for i in index[order].tolist():
        d, g = int(pairs.detection[i]), int(pairs.target[i])
        if match[d] < 0 and g not in taken:
            match[d] = g
            taken.add(g)
    return match


def _closest(pairs: Pairs, chosen: Bools, count: int) -> tuple[Ints, Floats]:
    """The chosen object ``(D,)`` that overlaps each detection most, or -1, and the IoU."""
    index = np.flatnonzero(chosen)
    index = index[np.argsort(pairs.iou[index], kind="stable")]
    closest, iou = np.full(count, -1), np.zeros(count)
    closest[pairs.detection[index]] = pairs.target[index]  # the last write wins
    iou[pairs.detection[index]] = pairs.iou[index]
    return closest, iou


def _limit_per_image(order: Ints, image: Ints, count: int, per_image: int) -> list[int]:
    chosen: list[int] = []
    seen: Counter[int] = Counter()
    for i in order.tolist():
        seen[image[i]] += 1
        if seen[image[i]] <= per_image:
            chosen.append(i)
    return chosen[:count]
