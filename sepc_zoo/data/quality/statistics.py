"""Statistics of a data set: numbers of images and boxes, by class, size and shape."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from sepc_zoo.config import AnchorConfig, FPNConfig
from sepc_zoo.data.listing import ListedImages, Listing
from sepc_zoo.ops.anchors import cell_anchors

SMALL, MEDIUM = 32**2, 96**2  # upper limits of COCO's annotated areas, pixels
QUANTILES = {"min": 0, "5%": 5, "25%": 25, "median": 50, "75%": 75, "95%": 95, "max": 100}
MIN_IOU = 0.5  # smallest IoU of a positive anchor
MAX_SAMPLE = 50_000  # boxes that the reach of anchors is computed from

# Proposed where the default anchors do not reach the boxes.
OTHER_ANCHORS = {
    "anchors.base_scale=2": AnchorConfig(base_scale=2.0),
    "anchors.ratios=0.25,0.5,1,2,4": AnchorConfig(ratios=(0.25, 0.5, 1.0, 2.0, 4.0)),
}


class Columns(NamedTuple):
    """The boxes of a split as arrays: G boxes in N images."""

    image_sizes: np.ndarray  # (N, 2) height, width; pixels
    image: np.ndarray  # (G,) index of a box's image
    box_sizes: np.ndarray  # (G, 2) height, width; pixels
    area: np.ndarray  # (G,) as annotated, pixels
    labels: np.ndarray  # (G,)
    iscrowd: np.ndarray  # (G,) bool

    @property
    def box_aspects(self) -> np.ndarray:
        """Height over width ``(G,)``, like the ratios of anchors."""
        return self.box_sizes[:, 0] / self.box_sizes[:, 1]

    @property
    def image_aspects(self) -> np.ndarray:
        return self.image_sizes[:, 0] / self.image_sizes[:, 1]

    @property
    def boxes_per_image(self) -> np.ndarray:
        return np.bincount(self.image, minlength=len(self.image_sizes))


def gather_columns(listing: Listing) -> Columns:
    """Make arrays of a clean listing: all images have a size, all boxes a label."""
    boxes = ListedImages.of(listing.images)
    sizes = np.array([image.size for image in listing.images], dtype=np.int64).reshape(-1, 2)
    box_sizes = (boxes.xyxy[:, 2:] - boxes.xyxy[:, :2])[:, ::-1]
    return Columns(sizes, boxes.image, box_sizes, boxes.area, boxes.labels, boxes.iscrowd > 0)


def describe(columns: Columns, listing: Listing) -> dict[str, Any]:
    """Compute the statistics of a split for JSON. Crowds count as boxes, and by themselves."""
    sides = {"height": columns.image_sizes[:, 0], "width": columns.image_sizes[:, 1]}
    return {
        "images": len(columns.image_sizes),
        "images_without_boxes": int((columns.boxes_per_image == 0).sum()),
        "boxes": len(columns.labels),
        "crowds": int(columns.iscrowd.sum()),
        **count_sizes(columns.area),
        "boxes_per_image": quantiles(columns.boxes_per_image),
        "image_sizes": {name: quantiles(side) for name, side in sides.items()},
        "image_aspects": quantiles(columns.image_aspects),
        "box_sides": quantiles(np.sqrt(columns.box_sizes.prod(axis=1))),
        "box_aspects": quantiles(columns.box_aspects),
        "classes": _describe_classes(columns, listing),
    }


def quantiles(values: np.ndarray) -> dict[str, float]:
    """Compute quantiles and mean, rounded; empty for no values."""
    if not len(values):
        return {}
    found = np.percentile(values, list(QUANTILES.values()))
    pairs = zip([*QUANTILES, "mean"], [*found, values.mean()], strict=True)
    return {name: round(float(value), 3) for name, value in pairs}


def anchor_reach(columns: Columns, image_size: tuple[int, int], anchors: AnchorConfig) -> float:
    """Compute the share of boxes that some anchor of the same centre overlaps by ``MIN_IOU``.

    RetinaNet learns the others from their best anchor only, wherever they lie. ``image_size`` is
    the (short, long) side that images are resized to. Of many boxes, ``MAX_SAMPLE`` are taken,
    evenly spread.
    """
    chosen = np.flatnonzero(~columns.iscrowd)
    chosen = chosen[:: -(-len(chosen) // MAX_SAMPLE) or 1]
    if not len(chosen):
        return 1.0
    factors = resize_factors(columns.image_sizes[columns.image[chosen]], image_size)
    boxes = columns.box_sizes[chosen] * factors[:, None]
    return float((best_ious(boxes, anchors, FPNConfig().strides) >= MIN_IOU).mean())


def resize_factors(sizes: np.ndarray, image_size: tuple[int, int]) -> np.ndarray:
    """Compute the factors ``(N,)`` that resize images of height and width ``(N, 2)`` to at most
    ``image_size`` (short, long side).
    """
    short, long = image_size
    return np.minimum(long / sizes.max(axis=1), short / sizes.min(axis=1))


def best_ious(
    boxes: np.ndarray, anchors: AnchorConfig, strides: Sequence[int], offset: float = 0.0
) -> np.ndarray:
    """Compute the highest IoU ``(G,)`` of boxes of height and width ``(G, 2)`` with an anchor.

    The ``strides`` of the levels are in pixels. ``offset`` is the distance between the centres of
    box and anchor in both directions, in strides.
    """
    best = np.zeros(len(boxes))
    for stride in strides:
        for x1, y1, x2, y2 in cell_anchors(anchors, stride).tolist():
            shape = np.array([y2 - y1, x2 - x1])
            common = np.minimum((boxes + shape) / 2 - offset * stride, np.minimum(boxes, shape))
            inter = common.clip(0).prod(axis=1)
            best = np.maximum(best, inter / (boxes.prod(axis=1) + shape.prod() - inter))
    return best


def anchor_reaches(columns: Columns, image_size: tuple[int, int]) -> dict[str, float]:
    """Compute ``anchor_reach`` of the default anchors and of alternatives."""
    configs = {"default": AnchorConfig(), **OTHER_ANCHORS}
    return {
        name: round(anchor_reach(columns, image_size, config), 4)
        for name, config in configs.items()
    }


def count_sizes(area: np.ndarray) -> dict[str, int]:
    """Count boxes by COCO's three sizes."""
    counts, _ = np.histogram(area, [-np.inf, SMALL, MEDIUM, np.inf])
    return dict(zip(("small", "medium", "large"), counts.tolist(), strict=True))


def _describe_classes(columns: Columns, listing: Listing) -> dict[str, dict[str, Any]]:
    classes: dict[str, dict[str, Any]] = {}
    order = np.argsort(columns.labels, kind="stable")
    bounds = np.searchsorted(columns.labels[order], np.arange(len(listing.label_names) + 1))
    for label, name in enumerate(listing.label_names):
        own = order[bounds[label] : bounds[label + 1]]
        classes[name] = {
            "category_id": listing.category_ids[label],
            "boxes": len(own),
            "images": len(np.unique(columns.image[own])),
            **count_sizes(columns.area[own]),
        }
    return classes


def class_counts(described: Sequence[dict[str, Any]]) -> dict[str, list[int]]:
    """Count boxes by class and split, the most frequent class first."""
    names = dict.fromkeys(name for figures in described for name in figures["classes"])
    counts = {
        name: [figures["classes"].get(name, {}).get("boxes", 0) for figures in described]
        for name in names
    }
    return dict(sorted(counts.items(), key=lambda item: -sum(item[1])))
