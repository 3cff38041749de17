"""Statistics of a data set: numbers of images and boxes, by class, size and shape."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from sepc_zoo.config import AnchorConfig, FPNConfig
from sepc_zoo.data.listing import ListedImages, Listing
from sepc_zoo.ops.anchors import cell_anchors

SMALL, MEDIUM = 32**2, 96**2  # upper limits of COCO's annotated areas, pixels
QUANTILES = {"min": 0, "5%": 5, "25%": 25, "median": 50, "75%": 75, "95%": 95, "max": 100}
MIN_IOU = 0.5  # smallest IoU of a positive anchor
MAX_SAMPLE = 50_000  # boxes from which the reach of anchors is computed

# Proposed where the default anchors do not reach the boxes.
OTHER_ANCHORS = {
    "anchors.base_scale=2": AnchorConfig(base_scale=2.0),
    "anchors.ratios=0.25,0.5,1,2,4": AnchorConfig(ratios=(0.25, 0.5, 1.0, 2.0, 4.0)),
}


def describe(listing: Listing) -> dict[str, Any]:
    """Compute the statistics of a clean split, whose images have sizes and whose boxes have labels.

    Crowds count as boxes, and separately.
    """
    images = ListedImages.of(listing.images)
    (height, width), (box_height, box_width) = images.sizes.T, images.box_sizes.T
    return {
        "images": len(images),
        "images_without_boxes": int((images.counts == 0).sum()),
        "boxes": len(images.image),
        "crowds": int((images.boxes.iscrowd > 0).sum()),
        **count_sizes(images.boxes.area),
        "boxes_per_image": quantiles(images.counts),
        "image_sizes": {"height": quantiles(height), "width": quantiles(width)},
        "image_aspects": quantiles(height / width),
        "box_sides": quantiles(np.sqrt(box_height * box_width)),
        "box_aspects": quantiles(box_height / box_width),
        "classes": _describe_classes(images, listing),
    }


def quantiles(values: np.ndarray) -> dict[str, float]:
    """Compute quantiles and mean, rounded; empty for no values."""
    if not len(values):
        return {}
    found = np.percentile(values, list(QUANTILES.values()))
    pairs = zip([*QUANTILES, "mean"], [*found, values.mean()], strict=True)
    return {name: round(float(value), 3) for name, value in pairs}


def anchor_reach(images: ListedImages, image_size: tuple[int, int], anchors: AnchorConfig) -> float:
    """Compute the share of boxes that some anchor of the same centre overlaps by ``MIN_IOU``.

    RetinaNet learns the others from their best anchor only, wherever they lie. Images are resized
    to the (short, long) side ``image_size``. At most ``MAX_SAMPLE`` boxes are used, evenly spread.
    """
    chosen = np.flatnonzero(images.boxes.iscrowd == 0)
    chosen = chosen[:: -(-len(chosen) // MAX_SAMPLE) or 1]
    if not len(chosen):
        return 1.0
    factors = resize_factors(images.sizes[images.image[chosen]], image_size)
    boxes = images.box_sizes[chosen] * factors[:, None]
    return float((best_ious(boxes, anchors, FPNConfig().strides) >= MIN_IOU).mean())


def resize_factors(sizes: np.ndarray, image_size: tuple[int, int]) -> np.ndarray:
    """Compute ``resize_scale`` for images of height and width ``(N, 2)``: the factors ``(N,)``."""
    short, long = image_size
    return np.minimum(long / sizes.max(axis=1), short / sizes.min(axis=1))


def best_ious(
    boxes: np.ndarray, anchors: AnchorConfig, strides: Sequence[int], offset: float = 0.0
) -> np.ndarray:
    """Compute the highest IoU ``(G,)`` of boxes of height and width ``(G, 2)`` with an anchor.

    The centres of box and anchor differ by ``offset`` strides (pixels) in both directions.
    """
    best = np.zeros(len(boxes))
    for stride in strides:
        for x1, y1, x2, y2 in cell_anchors(anchors, stride).tolist():
            shape = np.array([y2 - y1, x2 - x1])
            common = np.minimum((boxes + shape) / 2 - offset * stride, np.minimum(boxes, shape))
            inter = common.clip(0).prod(axis=1)
            best = np.maximum(best, inter / (boxes.prod(axis=1) + shape.prod() - inter))
    return best


def anchor_reaches(images: ListedImages, image_size: tuple[int, int]) -> dict[str, float]:
    """Compute ``anchor_reach`` of the default anchors and of alternatives."""
    configs = {"default": AnchorConfig(), **OTHER_ANCHORS}
    return {
        name: round(anchor_reach(images, image_size, config), 4) for name, config in configs.items()
    }


def count_sizes(area: np.ndarray) -> dict[str, int]:
    """Count boxes by COCO's three sizes."""
    counts, _ = np.histogram(area, [-np.inf, SMALL, MEDIUM, np.inf])
    return dict(zip(("small", "medium", "large"), counts.tolist(), strict=True))


def _describe_classes(images: ListedImages, listing: Listing) -> dict[str, dict[str, Any]]:
    labels = images.boxes.labels
    order = np.argsort(labels, kind="stable")
    parts = np.split(order, np.searchsorted(labels[order], np.arange(1, len(listing.label_names))))
    classes = zip(listing.label_names, listing.category_ids, parts, strict=False)
    return {
        name: {
            "category_id": category_id,
            "boxes": len(own),
            "images": len(np.unique(images.image[own])),
            **count_sizes(images.boxes.area[own]),
        }
        for name, category_id, own in classes
    }


def class_counts(described: Sequence[dict[str, Any]]) -> dict[str, list[int]]:
    """Count boxes by class and split, the most frequent class first."""
    names = dict.fromkeys(name for figures in described for name in figures["classes"])
    counts = {
        name: [figures["classes"].get(name, {}).get("boxes", 0) for figures in described]
        for name in names
    }
    return dict(sorted(counts.items(), key=lambda item: -sum(item[1])))
