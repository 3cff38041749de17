"""Advice by the training data on the channels and anchors of a model, and the image size."""

import math
from collections.abc import Sequence

import numpy as np
from msgspec.structs import replace

from sepc_zoo.config import AnchorConfig, DetectorConfig
from sepc_zoo.data import Annotations
from sepc_zoo.data.images import read_image
from sepc_zoo.data.quality.statistics import best_ious, resize_factors
from sepc_zoo.errors import ConfigError
from sepc_zoo.registry import LOCAL_PREFIX
from sepc_zoo.training.options import TrainOptions

MAX_BOXES = 5000  # boxes that anchors are fitted to
BASE_SCALES = np.geomspace(0.5, 16, 21).round(2).tolist()
RATIO_STEPS = (1.5, 2.0, 3.0)  # from one ratio to the next
OFFSET = 0.25  # mean distance of a box centre from the nearest cell centre along an axis, strides
MIN_GAIN = 0.02  # gain of ``quality`` that is worth other anchors
MIN_IOU = 0.4  # a box that reaches less with all anchors is missed
MAX_MISSED = 0.1  # share of missed boxes above which anchors fit badly
MAX_SMALL = 0.1  # share of the boxes that may be smaller than ``GOOD_SIDE``
GOOD_SIDE = 32  # pixels; COCO's limit of small boxes
MIN_FACTOR, MAX_FACTOR = 1.25, 4.0  # factors on the image size that are worth advice
MAX_ENLARGED = 2.0  # factor by which images may be enlarged without advice
MIN_LONG = 256  # pixels; minimum long side to propose instead
MIN_SAVED = 4.0  # times that a step must get cheaper


def advise(options: TrainOptions, config: DetectorConfig, data: Annotations) -> list[str]:
    """Advise on channels, image size and anchors that do not fit the data; a line for each."""
    lines = [advise_channels(config.backbone.in_chans, data)]
    boxes = resized_boxes(data, config.weights.image_size)
    if len(boxes):
        lines.append(advise_image_size(data, config.weights.image_size))
    if len(boxes) and has_anchors(config) and options.learned != "detector":
        lines.append(advise_anchors(boxes, config, is_fitted=options.auto_anchors))
    return [line for line in lines if line]


def advise_channels(channels: int, data: Annotations) -> str:
    """A line on images whose pages are channels, of which the model gets the first page alone."""
    found = num_channels(data)
    if found in (3, channels):
        return ""
    return (
        f"channels: the first image has {found}, of which the model gets one; --backbone-kwargs "
        f"in_chans={found} makes a model of all"
    )


def num_channels(data: Annotations) -> int:
    """The number of channels of the first image; 3 for all but TIFFs that have no RGB."""
    file = data.records[0].path
    is_tiff = file.suffix.lower() in (".tif", ".tiff")
    return len(read_image(file, channels=None)) if is_tiff else 3


def advise_anchors(boxes: np.ndarray, config: DetectorConfig, is_fitted: bool) -> str:
    """Describe the anchors where they were fitted or fit badly; else ""."""
    anchors, strides = config.anchors, config.fpn.strides
    missed = share_missed(boxes, anchors, strides)
    found = f"{missed:.0%} of the boxes reach no IoU of {MIN_IOU} with an anchor"
    if is_fitted:
        return f"anchors: {anchors_text(config)}; {found}"
    if missed <= MAX_MISSED:
        return ""
    fitted = fit_anchors(boxes, anchors, strides)
    return (
        f"anchors: {found}; --auto-anchors makes it {share_missed(boxes, fitted, strides):.0%} "
        f"with {anchors_text(replace(config, anchors=fitted))}"
    )


def advise_image_size(data: Annotations, image_size: tuple[int, int]) -> str:
    """Advise a smaller size where images are enlarged far, a larger one if boxes are small."""
    enlarged = float(np.median(resize_factors(data.records.sizes, image_size)))
    if enlarged > MAX_ENLARGED and (advice := advise_smaller_size(data, image_size)):
        return f"image size: images are enlarged {enlarged:.1f} times; {advice}"
    side, pixels = median_side(data, image_size), pixels_at(data, image_size)
    factor = min(GOOD_SIDE / side, MAX_FACTOR)
    if factor < MIN_FACTOR:
        return ""
    short, long = larger = whole_size(*(factor * length for length in image_size))
    return (
        f"image size: half of the boxes have sides below {side:.0f} pixels; --image-size {short} "
        f"{long} makes that {median_side(data, larger):.0f}, and a step "
        f"{pixels_at(data, larger) / pixels:.1f} times as costly"
    )


def advise_smaller_size(data: Annotations, image_size: tuple[int, int]) -> str:
    """Advise the size that fits the boxes where a step is much cheaper at it; else ""."""
    short, long = fitting = fitting_size(data, (MIN_LONG, image_size[1]))
    saved = pixels_at(data, image_size) / pixels_at(data, fitting)
    if saved <= MIN_SAVED:
        return ""
    return f"--image-size {short} {long} makes a step {saved:.0f} times cheaper"


def median_side(data: Annotations, image_size: tuple[int, int]) -> float:
    """The median of the boxes' sides in resized images, pixels."""
    return float(np.median(np.sqrt(resized_boxes(data, image_size).prod(axis=1))))


def pixels_at(data: Annotations, image_size: tuple[int, int]) -> float:
    """Pixels of all images when they are resized."""
    sizes = data.records.sizes
    return float((resize_factors(sizes, image_size) ** 2 * sizes.prod(axis=1)).sum())


def whole_size(short: float, long: float) -> tuple[int, int]:
    """Sides as multiples of 32 pixels; the short one is rounded up, so that the long one counts."""
    up = math.ceil(round(short / 32, 3)) * 32
    return up, max(round(long / 32) * 32, up)


def fitted_anchors(
    options: TrainOptions, config: DetectorConfig, data: Annotations
) -> AnchorConfig:
    """The anchors of a new model fitted to the training boxes; entries that were given stay."""
    if options.learned == "detector":
        name = options.model.removeprefix(LOCAL_PREFIX)
        raise ConfigError(f"--auto-anchors: {name} has learned with its anchors; leave it out")
    if not has_anchors(config):
        raise ConfigError(
            f"--auto-anchors: {config.method.name} has one point or square a cell and chooses by "
            "distances; for small boxes take a larger --image-size or --model-kwargs fpn.levels=2,6"
        )
    boxes = resized_boxes(data, config.weights.image_size)
    if not len(boxes):
        return config.anchors
    fitted = fit_anchors(boxes, config.anchors, config.fpn.strides)
    given = options.model_kwargs.get("anchors", {})
    return replace(fitted, **{name: getattr(config.anchors, name) for name in given})


def fit_anchors(boxes: np.ndarray, anchors: AnchorConfig, strides: Sequence[int]) -> AnchorConfig:
    """Find the anchors of the highest ``quality``, as many as before, so that no layer changes.

    Args:
        boxes: height and width ``(G, 2)`` in resized images, pixels.
        strides: of the levels, pixels.
    """

    def quality(candidate: AnchorConfig) -> float:
        """The mean IoU of a box with its best anchor, less the share of missed boxes."""
        ious = best_ious(boxes, candidate, strides, OFFSET)
        return float(ious.mean() - (ious < MIN_IOU).mean())

    middle, count = float(np.median(boxes[:, 0] / boxes[:, 1])), len(anchors.ratios)
    powers = np.linspace(-1, 1, count) if count > 1 else np.zeros(1)
    choices = [tuple((middle * step**powers).round(2).tolist()) for step in RATIO_STEPS]
    best, highest = anchors, quality(anchors)
    for ratios in (anchors.ratios, *choices):
        scaled = [replace(anchors, ratios=ratios, base_scale=scale) for scale in BASE_SCALES]
        reached, i = max((quality(candidate), i) for i, candidate in enumerate(scaled))
        if reached >= highest + MIN_GAIN:
            best, highest = scaled[i], reached
    return best


def has_anchors(config: DetectorConfig) -> bool:
    """Whether boxes are matched to anchors of several shapes by IoU."""
    return config.anchors.per_cell > 1


def fits_badly(boxes: np.ndarray, config: DetectorConfig) -> bool:
    """Whether the anchors of a model miss many of the boxes ``(G, 2)`` in resized images."""
    if not len(boxes) or not has_anchors(config):
        return False
    return share_missed(boxes, config.anchors, config.fpn.strides) > MAX_MISSED


def fitting_size(data: Annotations, limits: tuple[int, int]) -> tuple[int, int]:
    """The short and long side at which few boxes are small, multiples of 32 pixels.

    Args:
        limits: of the long side, pixels.
    """
    sizes = np.sort(data.records.sizes, axis=1)
    short, long = np.median(sizes, axis=0).round().astype(int).tolist()
    boxes = resized_boxes(data, (short, long))
    sides = np.sqrt(boxes.prod(axis=1)) if len(boxes) else np.ones(1)
    wanted = min(max(long * GOOD_SIDE / np.quantile(sides, MAX_SMALL), limits[0]), limits[1])
    return whole_size(wanted * short / long, wanted)


def share_missed(boxes: np.ndarray, anchors: AnchorConfig, strides: Sequence[int]) -> float:
    """The share of boxes that reach no IoU of ``MIN_IOU`` with any anchor."""
    return float((best_ious(boxes, anchors, strides) < MIN_IOU).mean())


def resized_boxes(data: Annotations, image_size: tuple[int, int]) -> np.ndarray:
    """Height and width ``(G, 2)`` of boxes in resized images, without crowds, pixels.

    Of many, ``MAX_BOXES`` are taken, evenly spread.
    """
    records = data.records
    kept = np.flatnonzero(records.iscrowd == 0)
    kept = kept[:: max(1, len(kept) // MAX_BOXES)]
    factors = resize_factors(records.sizes, image_size)[records.image[kept]]
    boxes = records.boxes[kept] * factors[:, None].astype(np.float32)
    x1, y1, x2, y2 = boxes.astype(np.float64).T
    return np.stack([y2 - y1, x2 - x1], axis=1)


def anchors_text(config: DetectorConfig) -> str:
    """Anchors as --model-kwargs takes them; "" where boxes are not matched to anchors."""
    if not has_anchors(config):
        return ""
    ratios = ",".join(f"{ratio:g}" for ratio in config.anchors.ratios)
    return f"anchors.base_scale={config.anchors.base_scale:g} anchors.ratios=({ratios})"
