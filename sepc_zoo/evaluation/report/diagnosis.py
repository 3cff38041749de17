"""Which detection found which object, and what that says of a model's mistakes and scores.

Matching is COCO's at an IoU of 0.5: by falling score, each detection takes the object of its class
that it overlaps most and that is still free; what lies in a crowd of its class counts neither way,
and so does what exceeds the 100 best of a class in an image.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask

from sepc_zoo.evaluation.results import SplitDetections, SplitTargets, indices_by_image

IOU = 0.5  # from which on a detection has found an object
LEAST_IOU = 0.1  # from which on it has something to do with it
MOST_PER_CLASS = 100  # detections of a class in an image that COCO looks at

FOUND, DUPLICATE, WRONG_CLASS, POOR_BOX, BACKGROUND, IGNORED = range(6)
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
    """Detections and objects of an image that overlap by ``LEAST_IOU`` or more, crowds left out."""

    found: Ints  # (P,) index of the detection
    truth: Ints  # (P,) index of the object
    iou: Floats  # (P,)
    same_class: Bools  # (P,)

    def only(self, chosen: Bools) -> "Pairs":
        return Pairs(
            self.found[chosen], self.truth[chosen], self.iou[chosen], self.same_class[chosen]
        )


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """What each of D detections is; G objects, -1 where a detection has none.

    kind: FOUND, IGNORED or one of ``MISTAKES``.
    match: the object that was found.
    nearest: the object that explains the kind: that which was found, which another detection has
        found already (DUPLICATE), whose class is another (WRONG_CLASS, IoU from 0.5), or of which
        the box is a poor one (POOR_BOX, IoU from 0.1).
    iou: the overlap with ``nearest``.
    """

    found: SplitDetections
    truth: SplitTargets
    kind: Ints  # (D,)
    match: Ints  # (D,)
    nearest: Ints  # (D,)
    iou: Floats  # (D,)
    pairs: Pairs

    def finder(self, least_score: float) -> Ints:
        """The detection ``(G,)`` of at least this score that found each object, or -1."""
        finder = np.full(len(self.truth), -1)
        chosen = np.flatnonzero((self.kind == FOUND) & (self.found.scores >= least_score))
        finder[self.match[chosen]] = chosen
        return finder


def diagnose(found: SplitDetections, truth: SplitTargets, images: int) -> Diagnosis:
    """Match the detections of a split to its objects, and say what the others are."""
    rank = _ranks(found)
    pairs, in_crowd = _overlaps(found, truth, images)
    counted = _among_the_best(found, rank)
    pairs = pairs.only(counted[pairs.found])

    enough = pairs.iou >= IOU
    match = _greedy(pairs, enough & pairs.same_class, rank)
    same, same_iou = _closest(pairs, pairs.same_class, len(found))
    other, other_iou = _closest(pairs, ~pairs.same_class, len(found))
    conditions = [match >= 0, in_crowd | ~counted, same_iou >= IOU, other_iou >= IOU, same >= 0]
    kinds = [FOUND, IGNORED, DUPLICATE, WRONG_CLASS, POOR_BOX]
    kind = np.select(conditions, kinds, BACKGROUND)
    none = np.full(len(found), -1)
    nearest = np.select(conditions, [match, none, same, other, same], none)
    iou = np.zeros(len(found))
    of_nearest = pairs.truth == nearest[pairs.found]
    iou[pairs.found[of_nearest]] = pairs.iou[of_nearest]
    return Diagnosis(found, truth, kind, match, nearest, iou, pairs)


def confusion_matrix(diagnosis: Diagnosis, classes: int, least_score: float) -> Ints:
    """Counts ``(K + 1, K + 1)`` of objects of a class (row) that were seen as one (column).

    The last row counts detections where nothing is (left), the last column objects not seen. After
    objects and detections of the same class, those left over of different classes are matched.
    """
    found, truth, pairs = diagnosis.found, diagnosis.truth, diagnosis.pairs
    kept = (found.scores >= least_score) & (diagnosis.kind != IGNORED)
    finder = diagnosis.finder(least_score)
    mistaken = kept & (diagnosis.kind != FOUND)
    left = (pairs.iou >= IOU) & mistaken[pairs.found] & (finder[pairs.truth] < 0)
    match = np.where(kept, diagnosis.match, -1)
    confused = _greedy(pairs, left & ~pairs.same_class, _ranks(found))
    match = np.where(confused >= 0, confused, match)

    seen = np.full(len(truth), classes)
    seen[match[match >= 0]] = found.labels[match >= 0]
    real = ~truth.iscrowd
    nowhere = kept & (match < 0)
    matrix = np.zeros((classes + 1, classes + 1), dtype=np.int64)
    np.add.at(matrix, (truth.labels[real], seen[real]), 1)
    np.add.at(matrix, (classes, found.labels[nowhere]), 1)
    return matrix


class Threshold(NamedTuple):
    """What a least score makes of a model."""

    score: float
    precision: float
    recall: float
    f1: float


class Sweep(NamedTuple):
    """Precision, recall and F1 with each of S least scores, falling."""

    scores: Floats
    precision: Floats
    recall: Floats
    f1: Floats

    def best(self) -> Threshold | None:
        """The least score of the highest F1, halfway down to the next one; None if F1 is 0."""
        if not self.f1.any():
            return None
        i = int(self.f1.argmax())
        below = self.scores[i + 1] if i + 1 < len(self.scores) else min(0.0, self.scores[i])
        score = (self.scores[i] + below) / 2
        return Threshold(*map(float, (score, self.precision[i], self.recall[i], self.f1[i])))


def sweep_scores(diagnosis: Diagnosis, label: int | None = None) -> Sweep:
    """Every least score of a class, or of all taken together."""
    found, truth = diagnosis.found, diagnosis.truth
    chosen, real = diagnosis.kind != IGNORED, ~truth.iscrowd
    if label is not None:
        chosen, real = chosen & (found.labels == label), real & (truth.labels == label)
    order = np.flatnonzero(chosen)[np.argsort(-found.scores[chosen], kind="stable")]
    scores = found.scores[order]
    last = np.flatnonzero(np.diff(scores, append=-np.inf))  # of equal scores: all or none
    correct = np.cumsum(diagnosis.kind[order] == FOUND)[last]
    count, objects = last + 1, int(real.sum())
    recall = correct / objects if objects else np.zeros(len(last))
    return Sweep(scores[last], correct / count, recall, 2 * correct / (count + objects))


class Calibration(NamedTuple):
    """Scores, in B bins of equal width, against the share of detections that found an object."""

    detections: Ints  # (B,), how many
    score: Floats  # (B,), mean; 0 in empty bins
    correct: Floats  # (B,), share

    @property
    def error(self) -> float:
        """ECE: how far scores and shares lie apart, in the mean over detections."""
        weight = self.detections / max(1, self.detections.sum())
        return float(np.sum(weight * np.abs(self.score - self.correct)))


def calibrate(diagnosis: Diagnosis, bins: int = 10) -> Calibration | None:
    """How far scores can be taken for probabilities; None if one lies outside 0…1."""
    chosen = diagnosis.kind != IGNORED
    scores = diagnosis.found.scores[chosen]
    if len(scores) and not (scores.min() >= 0 and scores.max() <= 1):
        return None
    correct = diagnosis.kind[chosen] == FOUND
    where = np.minimum((scores * bins).astype(int), bins - 1)
    count = np.bincount(where, minlength=bins)
    sums = [np.bincount(where, weights, minlength=bins) for weights in (scores, correct)]
    return Calibration(count, *(total / np.maximum(count, 1) for total in sums))


def worst_false_positives(diagnosis: Diagnosis, count: int, per_image: int = 2) -> list[int]:
    """The surest detections that are mistakes, so many at most of an image."""
    wrong = np.flatnonzero(np.isin(diagnosis.kind, list(MISTAKES)))
    order = wrong[np.argsort(-diagnosis.found.scores[wrong], kind="stable")]
    return _few_of_each(order, diagnosis.found.image, count, per_image)


def worst_misses(
    diagnosis: Diagnosis, least_score: float, count: int, per_image: int = 2
) -> list[int]:
    """The largest objects that no detection of at least this score found."""
    missed = np.flatnonzero((diagnosis.finder(least_score) < 0) & ~diagnosis.truth.iscrowd)
    order = missed[np.argsort(-diagnosis.truth.area[missed], kind="stable")]
    return _few_of_each(order, diagnosis.truth.image, count, per_image)


def instead_of(diagnosis: Diagnosis, missed: int, least_score: float) -> tuple[int, float]:
    """The detection that explains best why an object was missed, and its IoU; -1 for none.

    One of its class that would have found it but for the score; else the one of at least this
    score that overlaps it most.
    """
    pairs, found = diagnosis.pairs, diagnosis.found
    near = np.flatnonzero(pairs.truth == missed)
    hit = near[diagnosis.match[pairs.found[near]] == missed]
    if len(hit):
        return int(pairs.found[hit[0]]), float(pairs.iou[hit[0]])
    near = near[found.scores[pairs.found[near]] >= least_score]
    if not len(near):
        return -1, 0.0
    best = near[pairs.iou[near].argmax()]
    return int(pairs.found[best]), float(pairs.iou[best])


def _overlaps(found: SplitDetections, truth: SplitTargets, images: int) -> tuple[Pairs, Bools]:
    """All pairs in the same image, and whether a detection lies in a crowd of its class."""
    in_crowd = np.zeros(len(found), dtype=bool)
    columns: list[tuple[Ints, Ints, Floats]] = []
    for d, g in zip(
        indices_by_image(found.image, images), indices_by_image(truth.image, images), strict=True
    ):
        if not len(d) or not len(g):
            continue
        crowd = truth.iscrowd[g]
        iou = mask.iou(found.bbox[d], truth.bbox[g], crowd.astype(np.uint8))  # D, G
        same = found.labels[d][:, None] == truth.labels[g]
        in_crowd[d] = ((iou >= IOU) & same & crowd).any(axis=1)
        row, column = np.nonzero((iou >= LEAST_IOU) & ~crowd)
        columns.append((d[row], g[column], iou[row, column]))
    if not columns:
        none = np.empty(0, dtype=np.int64)
        return Pairs(none, none, np.empty(0), np.empty(0, dtype=bool)), in_crowd
    d, g, iou = (np.concatenate(parts) for parts in zip(*columns, strict=True))
    return Pairs(d, g, iou, found.labels[d] == truth.labels[g]), in_crowd


def _ranks(found: SplitDetections) -> Ints:
    """The place ``(D,)`` of each detection by falling score; of equals the first comes first."""
    ranks = np.empty(len(found), dtype=np.int64)
    ranks[np.argsort(-found.scores, kind="stable")] = np.arange(len(found))
    return ranks


def _among_the_best(found: SplitDetections, rank: Ints) -> Bools:
    """Whether a detection is among the first of its class in its image."""
    order = np.lexsort((rank, found.labels, found.image))
    image, label = found.image[order], found.labels[order]
    begins = np.ones(len(found), dtype=bool)
    begins[1:] = (image[1:] != image[:-1]) | (label[1:] != label[:-1])
    starts = np.flatnonzero(begins)
    position = np.arange(len(found)) - starts[np.cumsum(begins) - 1]
    counted = np.empty(len(found), dtype=bool)
    counted[order] = position < MOST_PER_CLASS
    return counted


def _greedy(pairs: Pairs, chosen: Bools, rank: Ints) -> Ints:
    """The object ``(D,)`` that each detection gets, or -1: by falling score, then IoU.

    Of equal overlaps the last object wins, as in pycocotools.
    """
    match = np.full(len(rank), -1)
    index = np.flatnonzero(chosen)
    order = np.lexsort((-pairs.truth[index], -pairs.iou[index], rank[pairs.found[index]]))
    taken = set()
    for i in index[order].tolist():
        d, g = int(pairs.found[i]), int(pairs.truth[i])
        if match[d] < 0 and g not in taken:
            match[d] = g
            taken.add(g)
    return match


def _closest(pairs: Pairs, chosen: Bools, count: int) -> tuple[Ints, Floats]:
    """The chosen object ``(D,)`` that each detection overlaps most, -1 for none, and the IoU."""
    index = np.flatnonzero(chosen)
    index = index[np.argsort(pairs.iou[index], kind="stable")]
    closest, iou = np.full(count, -1), np.zeros(count)
    closest[pairs.found[index]] = pairs.truth[index]  # of several the last stays
    iou[pairs.found[index]] = pairs.iou[index]
    return closest, iou


def _few_of_each(order: Ints, image: Ints, count: int, per_image: int) -> list[int]:
    chosen: list[int] = []
    seen: dict[int, int] = {}
    for i in order.tolist():
        number = int(image[i])
        if seen.get(number, 0) < per_image:
            seen[number] = seen.get(number, 0) + 1
            chosen.append(i)
            if len(chosen) == count:
                break
    return chosen
