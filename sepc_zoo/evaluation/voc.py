"""Pascal VOC's average precision at an IoU of 0.5 (Everingham et al., IJCV 2010)."""

from dataclasses import replace
from typing import Any

import numpy as np

from sepc_zoo.data import Annotations
from sepc_zoo.evaluation.average_precision import class_ap, nan_mean
from sepc_zoo.evaluation.matching import MIN_IOU, closest, find_pairs
from sepc_zoo.evaluation.results import SplitDetections, collect_targets

# Recalls of the figure until 2009 (11 points); the one of later years is the area under the curve.
RECALLS = {"AP": None, "AP_11_points": np.linspace(0, 1, 11)}


def voc_ap(detections: SplitDetections, annotations: Annotations) -> dict[str, Any]:
    """Compute VOC's figures: means of all classes, and under ``per_class`` each; -1 is undefined.

    Other than in COCO, a detection is compared with the one object of its class that it overlaps
    most: it is incorrect if a higher score has that object, and left out if the object is a crowd,
    which is how VOC's difficult objects are read. All detections count.
    """
    targets = collect_targets(annotations)
    plain = replace(targets, iscrowd=np.zeros_like(targets.iscrowd))  # no overlaps with crowds
    pairs = find_pairs(detections, plain, len(annotations.records))
    near = pairs.same_class & (pairs.iou >= MIN_IOU)
    target, _ = closest(pairs, near, len(detections))
    order = np.lexsort((detections.rank, detections.labels))
    target = target[order]
    kept = ~np.append(targets.iscrowd, False)[target]  # -1 takes the last
    correct = np.zeros(len(order), dtype=bool)
    found, first = np.unique(target, return_index=True)  # of the highest score
    correct[first[found >= 0]] = True
    labels, num_classes = detections.labels[order], len(annotations.label_names)
    objects = np.bincount(targets.labels[~targets.iscrowd], minlength=num_classes)
    aps = {
        name: class_ap(labels[kept], correct[kept], objects, recalls)
        for name, recalls in RECALLS.items()
    }
    means = {name: float(np.nan_to_num(nan_mean(ap), nan=-1)) for name, ap in aps.items()}
    rows = np.nan_to_num(np.stack([*aps.values()], axis=1), nan=-1).tolist()  # K, 2
    per_class = [dict(zip(aps, row, strict=True)) for row in rows]
    return {**means, "per_class": dict(zip(annotations.label_names, per_class, strict=True))}
