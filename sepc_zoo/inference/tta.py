"""Views of an image by window, size and mirroring, whose detections are merged to one result."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sepc_zoo.config import ConfigError, DetectorConfig, PostprocessConfig
from sepc_zoo.inference.detections import DetectionDict
from sepc_zoo.inference.preprocess import Resize, plan_resize
from sepc_zoo.inference.tiles import Tiles, Window, join_windows
from sepc_zoo.ops.nms import best_boxes, fuse_boxes

MAX_SIDE = 16384  # pixels of a network's input
TILES_AT_ONCE = 4  # views of tiled images in a batch, unless there are more images


@dataclass(frozen=True, eq=False)
class SharedImage:
    """An image that all its tiles share, so that a worker sends it once and none pins copies."""

    pixels: Tensor  # (C, H, W) uint8


class ImageView(NamedTuple):
    """One view of an image: the network's input, and how boxes are moved back."""

    pixels: Tensor | SharedImage  # (C, h, w) in 0…255, not mirrored yet; the image of a tile
    resize: Resize
    window: Window
    mirrored: bool = False

    @property
    def input(self) -> Tensor:
        pixels = self.pixels
        if isinstance(pixels, SharedImage):
            pixels = self.resize.to_input(self.window.crop(pixels.pixels))
        return pixels.flip(-1) if self.mirrored else pixels

    def to_image(self, detections: DetectionDict) -> DetectionDict:
        """Move detections to the pixels of the image, and to the CPU."""
        boxes = detections["boxes"]
        if self.mirrored:
            boxes = mirror_boxes(boxes, self.resize.input_size[1])
        boxes = self.resize.to_image(boxes) + boxes.new_tensor(self.window[:2] * 2)
        return {name: values.cpu() for name, values in (detections | {"boxes": boxes}).items()}


@dataclass(frozen=True)
class Views:
    """The views of an image that a model gets.

    Attributes:
        flip: add the mirror image of each view.
        scales: sizes of the input, as factors of the model's own.
        tiles: add windows of an image that is larger than one; each gets all the views.

    Raises:
        ConfigError: no scales, or one outside of 0.1…10.
    """

    flip: bool = False
    scales: tuple[float, ...] = (1.0,)
    tiles: Tiles | None = None

    def __post_init__(self) -> None:
        if not self.scales or not all(0.1 <= scale <= 10 for scale in self.scales):
            raise ConfigError(f"scales {list(self.scales)}: expected factors of 0.1 to 10")

    def of_image(self, pixels: Tensor, config: DetectorConfig) -> list[ImageView]:
        """Make the views of ``(C, H, W)`` uint8, each resized from the image itself.

        Views of the whole image come first. Tiles share its memory, and are cropped when used.
        """
        height, width = pixels.shape[-2:]
        whole, shared = Window(0, 0, width, height), SharedImage(pixels)
        views = []
        for window in self.tiles.windows(height, width) if self.tiles else [whole]:
            size = window.y2 - window.y1, window.x2 - window.x1
            for bounds in self.bounds(config):
                resize = plan_resize(size, config, bounds)
                own = resize.to_input(pixels) if window == whole else shared
                view = ImageView(own, resize, window)
                views += [view, view._replace(mirrored=True)] if self.flip else [view]
        return views

    def bounds(self, config: DetectorConfig) -> list[tuple[int, int]]:
        """Short and long side of the input for each scale, pixels."""
        short, long = config.weights.image_size
        bounds = [(_scaled(short, scale), _scaled(long, scale)) for scale in self.scales]
        if (largest := max(map(max, bounds))) > MAX_SIDE:
            raise ConfigError(
                f"scales {list(self.scales)} of image_size {short} {long} give {largest} pixels; "
                f"at most {MAX_SIDE}"
            )
        return bounds


SINGLE_VIEW = Views()


@torch.no_grad()
def detect_views(
    detect: Callable[[Sequence[Tensor]], list[DetectionDict]],
    images: Sequence[Sequence[ImageView]],
    postprocess: PostprocessConfig,
) -> list[DetectionDict]:
    """Detect objects in the views of each image, and merge them in its pixels, on the CPU."""
    by_window: list[dict[Window, list[DetectionDict]]] = [{} for _ in images]
    places = sorted((k, i) for i, views in enumerate(images) for k in range(len(views)))
    is_tiled = any(views[0].window != views[-1].window for views in images)
    step = max(len(images), TILES_AT_ONCE if is_tiled else 1)
    for start in range(0, len(places), step):
        views = [(i, images[i][k]) for k, i in places[start : start + step]]
        found = detect([view.input for _, view in views])
        for (i, view), one in zip(views, found, strict=True):
            by_window[i].setdefault(view.window, []).append(view.to_image(one))
    merged = [{w: merge_detections(v, postprocess) for w, v in own.items()} for own in by_window]
    return [join_windows(windows, postprocess) for windows in merged]


def merge_detections(views: Sequence[DetectionDict], config: PostprocessConfig) -> DetectionDict:
    """Merge detections of several views of an image, class by class.

    The config chooses non-maximum suppression, hard or soft, or weighted boxes fusion.
    """
    if len(views) == 1:
        return views[0]
    names = ("boxes", "scores", "labels")
    boxes, scores, labels = (torch.cat([view[name] for view in views]) for name in names)
    if config.view_fusion == "wbf":
        found = fuse_boxes(boxes, scores, labels, len(views), config.iou_threshold)
    else:
        keep, scores = best_boxes(boxes, scores, labels, config)
        found = {"boxes": boxes[keep], "scores": scores[keep], "labels": labels[keep]}
    return {name: values[: config.max_detections] for name, values in found.items()}


def mirror_boxes(boxes: Tensor, width: float) -> Tensor:
    """Mirror boxes ``(D, 4)`` left to right in an image of a width in pixels."""
    x1, y1, x2, y2 = boxes.unbind(dim=1)
    return torch.stack([width - x2, y1, width - x1, y2], dim=1)


def _scaled(side: int, scale: float) -> int:
    return max(1, int(side * scale + 0.5))
