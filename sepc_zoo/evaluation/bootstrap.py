"""Bootstrap intervals of AP over the images of a split (Efron, 1979).

Detections are matched once. A resample weighs each image by the number of times that it is drawn.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from sepc_zoo.data import Annotations
from sepc_zoo.data.quality.statistics import MEDIUM, SMALL
from sepc_zoo.evaluation.average_precision import IOU_THRESHOLDS, Curves, nan_mean
from sepc_zoo.evaluation.matching import Floats, Ints, find_pairs, greedy_match, within_limit
from sepc_zoo.evaluation.results import SplitDetections, collect_targets, max_per_class
from sepc_zoo.inference.progress import progress_bar
from sepc_zoo.metric_names import AP_METRICS

AREAS = ((0, 1e10), (0, SMALL), (SMALL, MEDIUM), (MEDIUM, 1e10))  # in the order of SIZES
LEVEL = 0.95  # share of the resamples in an interval


class Resampler:
    """AP of a split for any weights of its images; S sizes, T IoU thresholds, K classes.

    With the number of copies of each image as weights, AP is COCO's of the images so repeated,
    except where detections of one image and class have equal scores: copies of a detection stay
    together here.

    There is a curve for each size, threshold and class. Its points are the correct detections, and
    those that are matched and in the range of sizes but do not count.
    """

    def __init__(self, detections: SplitDetections, annotations: Annotations) -> None:
        targets, num_classes = collect_targets(annotations), len(annotations.label_names)
        self.num_images = len(annotations.records)
        self.shape = len(AREAS), len(IOU_THRESHOLDS), num_classes
        evaluated = within_limit(detections, max_per_class(annotations))
        pairs = find_pairs(detections, targets, self.num_images)
        pairs = pairs.only(pairs.same_class & evaluated[pairs.detection])
        order = np.lexsort((detections.rank, detections.labels))
        order = order[evaluated[order]]
        labels, image = detections.labels[order], detections.image[order]
        areas = detections.bbox[order, 2:].prod(axis=1)
        curves, points, images = [], [], [image[:0]]
        objects, num_before = [], 0
        for size, (low, high) in enumerate(AREAS):
            in_size = (areas >= low) & (areas <= high)
            ignored = targets.iscrowd | (targets.area < low) | (targets.area > high)
            first = np.searchsorted(labels[in_size], np.arange(num_classes))  # of each class
            end = np.cumsum(in_size)
            for i, threshold in enumerate(IOU_THRESHOLDS):
                near = pairs.only(pairs.iou >= threshold)
                match = greedy_match(near, detections.rank, ignored, targets.iscrowd)[order]
                correct = ~np.append(ignored, True)[match]  # -1 takes the last
                at = np.flatnonzero(correct | ((match >= 0) & in_size))
                curves.append((size * len(IOU_THRESHOLDS) + i) * num_classes + labels[at])
                spans = num_before + first[labels[at]], num_before + end[at]
                points.append((image[at], correct[at], in_size[at], *spans))
            images.append(image[in_size])
            num_before += len(images[-1])
            objects.append((targets.image[~ignored], size * num_classes + targets.labels[~ignored]))
        self.sized_image = np.concatenate(images)  # of the detections of each size
        self.object_image, self.object_class = map(np.concatenate, zip(*objects, strict=True))
        self.curves = Curves(np.concatenate(curves), math.prod(self.shape))
        columns = map(np.concatenate, zip(*points, strict=True))
        # start and end span the detections of a point's class and size up to the point
        self.image, self.correct, self.in_size, self.start, self.end = columns

    def table(self, weights: Ints) -> Floats:
        """AP ``(S, T, K)`` of weighted images ``(N,)``; NaN where there are no objects."""
        drawn = weights[self.image]
        correct = self.curves.running_sum(drawn * self.correct)
        matched = self.curves.running_sum(drawn * self.in_size)
        total = np.cumsum(np.append(0, weights[self.sized_image]))
        counted = total[self.end] - total[self.start] - matched + correct
        sizes, thresholds, classes = self.shape
        objects = np.bincount(self.object_class, weights[self.object_image], sizes * classes)
        objects = np.repeat(objects.reshape(sizes, 1, classes), thresholds, axis=1).ravel()
        ap = self.curves.ap(correct, correct / np.maximum(counted, 1), objects)
        return ap.reshape(self.shape)

    def figures(self, weights: Ints) -> Floats:
        """The figures of ``AP_METRICS``, then the AP of each class; NaN where undefined."""
        table = self.table(weights)
        per_class = table[0].mean(axis=0)
        parts = per_class, table[0, 0], table[0, 5], *table[1:]
        return np.array([*map(nan_mean, parts), *per_class])


def bootstrap(resamplers: Sequence[Resampler], count: int, seed: int) -> Floats:
    """Figures ``(count, models, figures)`` of images drawn with replacement.

    All models get the same images in a resample, so that their differences are paired.
    """
    rng, num_images = np.random.default_rng(seed), resamplers[0].num_images
    samples = []
    for _ in progress_bar(range(count), "bootstrap", leave=False):
        drawn = rng.integers(num_images, size=num_images)
        weights = np.bincount(drawn, minlength=num_images)
        samples.append([resampler.figures(weights) for resampler in resamplers])
    return np.array(samples)


def intervals(samples: Floats, names: Sequence[str]) -> dict[str, Any]:
    """The middle ``LEVEL`` of samples ``(count, figures)``, by the names of metrics and classes.

    Resamples where a figure is undefined are left out; -1, -1 where it is in all of them.
    """
    bounds = [interval(column) for column in samples.T]
    figures: dict[str, Any] = dict(zip(AP_METRICS, bounds, strict=False))
    figures["per_class"] = dict(zip(names, bounds[len(AP_METRICS) :], strict=True))
    return figures


def interval(values: Floats) -> list[float]:
    """The middle ``LEVEL`` of the defined values; -1, -1 where there are none."""
    known = values[~np.isnan(values)]
    if not len(known):
        return [-1.0, -1.0]
    low = (1 - LEVEL) / 2
    return np.quantile(known, [low, 1 - low]).tolist()
