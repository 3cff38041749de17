"""Pairs of detections and objects, and COCO's matching between them.

By falling score, each detection takes the unmatched object of its class with the highest overlap.
"""

from typing import NamedTuple

import numpy as np
from pycocotools import mask

from sepc_zoo.evaluation.average_precision import Bools, Floats, Ints
from sepc_zoo.evaluation.results import (
    SplitDetections,
    SplitTargets,
    best_of_groups,
    indices_by_image,
)

MIN_IOU = 0.5  # smallest IoU of a match
MIN_PAIR_IOU = 0.1  # smallest IoU of a pair


class Pairs(NamedTuple):
    """Detections and targets that overlap by ``MIN_PAIR_IOU`` or more.

    The overlap with a crowd is the share of the detection that lies in it.
    """

    detection: Ints  # (P,) index of the detection
    target: Ints  # (P,) index of the target
    iou: Floats  # (P,)
    same_class: Bools  # (P,)

    def only(self, chosen: Bools | Ints) -> "Pairs":
        return Pairs._make(column[chosen] for column in self)


def find_pairs(detections: SplitDetections, targets: SplitTargets, num_images: int) -> Pairs:
    """Find all pairs of a split, image by image."""
    none = np.empty(0, dtype=np.int64)
    columns: list[tuple[Ints, Ints, Floats]] = [(none, none, np.empty(0))]
    by_image = (indices_by_image(boxes.image, num_images) for boxes in (detections, targets))
    for d, g in zip(*by_image, strict=True):
        if len(d) and len(g):
            crowd = targets.iscrowd[g].astype(np.uint8)
            iou = mask.iou(detections.bbox[d], targets.bbox[g], crowd)  # D, G
            row, column = np.nonzero(iou >= MIN_PAIR_IOU)
            columns.append((d[row], g[column], iou[row, column]))
    d, g, iou = (np.concatenate(parts) for parts in zip(*columns, strict=True))
    return Pairs(d, g, iou, detections.labels[d] == targets.labels[g])


def greedy_match(pairs: Pairs, rank: Ints, ignored: Bools, crowd: Bools) -> Ints:
    """Match each detection ``(D,)`` to a target or -1, by falling score, then IoU.

    As in pycocotools, the last of several targets with equal overlap wins, a target that is ignored
    is taken only if there is no other, and only a crowd is taken more than once.

    Args:
        pairs: those that may match.
        rank: ``(D,)``, of ``SplitDetections``.
        ignored: ``(G,)`` targets that do not count, crowds among them.
        crowd: ``(G,)``.
    """
    match = [-1] * len(rank)
    keys = -pairs.target, -pairs.iou, ignored[pairs.target], rank[pairs.detection]
    ordered = pairs.only(np.lexsort(keys))
    taken = set()
    columns = ordered.detection, ordered.target, crowd[ordered.target]
    for d, g, is_crowd in zip(*(column.tolist() for column in columns), strict=True):
        if match[d] < 0 and g not in taken:
            match[d] = g
            if not is_crowd:
                taken.add(g)
    return np.array(match, dtype=np.int64)


def within_limit(detections: SplitDetections, limit: int) -> Bools:
    """Whether each detection ``(D,)`` is among the ``limit`` best of its class and image."""
    num_classes = detections.labels.max(initial=0) + 1
    group = detections.image * num_classes + detections.labels
    return best_of_groups(group, detections.rank, limit)


def closest(pairs: Pairs, chosen: Bools, count: int) -> tuple[Ints, Floats]:
    """The target of the chosen pairs that overlaps each detection ``(D,)`` most, or -1; the IoU."""
    index = np.flatnonzero(chosen)
    index = index[np.argsort(pairs.iou[index], kind="stable")]
    target, iou = np.full(count, -1), np.zeros(count)
    target[pairs.detection[index]] = pairs.target[index]  # the last write wins
    iou[pairs.detection[index]] = pairs.iou[index]
    return target, iou
