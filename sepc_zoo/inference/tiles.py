"""Tiles: overlapping windows of a large image, and one result from the detections in them."""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sepc_zoo.config import ConfigError, PostprocessConfig
from sepc_zoo.inference.detections import DetectionDict
from sepc_zoo.ops.boxes import box_area, intersection, rows_at_once

MIN_SIDE = 32  # pixels of a tile
BORDER = 0.01  # distance from a border up to which a box is taken for cut, in sides of the tile


class Window(NamedTuple):
    """A part of an image, pixels; the sides at x2 and y2 are outside of it."""

    x1: int
    y1: int
    x2: int
    y2: int

    def crop(self, pixels: Tensor) -> Tensor:
        """The part of ``(C, H, W)``, in the same memory."""
        return pixels[:, self.y1 : self.y2, self.x1 : self.x2]


@dataclass(frozen=True)
class Tiles:
    """How an image is divided.

    Attributes:
        size: longest side of a tile, pixels of the image.
        overlap: smallest overlap of neighbouring tiles, as a fraction of ``size``. An object with
            sides of up to about this overlap is complete in some tile.

    Raises:
        ConfigError: a size under ``MIN_SIDE``, or an overlap outside of 0…0.9.
    """

    size: int = 640
    overlap: float = 0.2

    def __post_init__(self) -> None:
        if self.size < MIN_SIDE or not 0 <= self.overlap <= 0.9:
            raise ConfigError(
                f"tiles of {self.size} pixels with overlap {self.overlap}: expected at least "
                f"{MIN_SIDE} pixels and an overlap of 0 to 0.9"
            )

    def windows(self, height: int, width: int) -> list[Window]:
        """The whole image, then its tiles in rows; no tiles where the image fits one."""
        whole = Window(0, 0, width, height)
        if max(height, width) <= self.size:
            return [whole]
        corners = itertools.product(self._starts(height), self._starts(width))
        return [whole] + [
            Window(x, y, min(x + self.size, width), min(y + self.size, height)) for y, x in corners
        ]

    def _starts(self, side: int) -> list[int]:
        """Where the tiles along a side start; the last ends with the image."""
        if side <= self.size:
            return [0]
        common = int(self.size * self.overlap)
        steps = math.ceil((side - self.size) / (self.size - common))
        return [i * (side - self.size) // steps for i in range(steps + 1)]


def join_windows(found: Mapping[Window, DetectionDict], config: PostprocessConfig) -> DetectionDict:
    """Join the detections of an image and of its tiles, all in pixels of the image, class by class.

    Boxes that a tile's border inside the image cuts are dropped: another tile shows the object
    complete, or the whole image does. Of two boxes from different windows the one
    with the lower score is suppressed by intersection over union, or over the smaller box, where
    the larger reaches beyond the window of the smaller: then the smaller may be a piece of it.
    The limit of the config holds for each window.

    Args:
        found: detections by window, the whole image first.
    """
    if len(found) == 1:
        return next(iter(found.values()))
    whole = next(iter(found))
    parts = []
    for window, one in found.items():
        complete = ~cut_boxes(one["boxes"], window, whole)
        part = {name: values[complete] for name, values in one.items()}
        parts.append(part | {"windows": torch.tensor([window]).expand(int(complete.sum()), 4)})
    joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    order = joined["scores"].argsort(descending=True, stable=True)
    joined = {name: values[order] for name, values in joined.items()}
    keep = suppress_doubles(**joined, threshold=config.iou_threshold)
    keep = keep[: config.max_detections * len(found)]
    return {name: joined[name][keep] for name in ("boxes", "scores", "labels")}


def cut_boxes(boxes: Tensor, window: Window, whole: Window) -> Tensor:
    """Mask ``(D,)`` of the boxes that end at a border of the window inside the image."""
    # One pixel more: boxes that include their last pixel reach beyond an image that was enlarged.
    margin = 1 + BORDER * max(window.x2 - window.x1, window.y2 - window.y1)
    borders, sides = boxes.new_tensor(window), boxes.new_tensor(whole)
    return (((boxes - borders).abs() <= margin) & (borders != sides)).any(dim=1)


def suppress_doubles(
    boxes: Tensor, scores: Tensor, labels: Tensor, windows: Tensor, threshold: float
) -> Tensor:
    """Indices of the boxes kept, by falling score; see ``join_windows``.

    Args:
        scores: ``(D,)``, falling.
        windows: window of each box ``(D, 4)``.
    """
    kept = [True] * len(scores)
    step = rows_at_once(len(boxes), boxes.device)
    for start in range(0, len(boxes), step):
        rows = slice(start, start + step)
        double = _overlap(boxes, windows, rows) > threshold
        double &= labels[rows, None] == labels
        double &= (windows[rows, None] != windows).any(dim=2)
        for i, j in double.triu(start + 1).nonzero().tolist():
            if kept[start + i]:
                kept[j] = False
    return torch.tensor(kept, dtype=torch.bool).nonzero().squeeze(1)


def _overlap(boxes: Tensor, windows: Tensor, rows: slice) -> Tensor:
    """Intersection ``(R, D)`` over the union, or over a smaller box that may be a piece."""
    inter, area = intersection(boxes[rows], boxes), box_area(boxes)
    union = area[rows, None] + area - inter
    is_larger = area[rows, None] > area
    beyond = _beyond(boxes[rows, None], windows).where(
        is_larger, _beyond(boxes, windows[rows, None])
    )
    over = torch.minimum(area[rows, None], area).where(beyond, union)
    return inter / over.clamp(min=torch.finfo(over.dtype).tiny)


def _beyond(boxes: Tensor, windows: Tensor) -> Tensor:
    """Whether boxes ``(..., 4)`` reach out of windows."""
    outside = (boxes[..., :2] < windows[..., :2]) | (boxes[..., 2:] > windows[..., 2:])
    return outside.any(dim=-1)
