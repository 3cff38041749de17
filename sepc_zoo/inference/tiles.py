"""Tiles: overlapping windows of a large image, whose detections are joined to one result."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sepc_zoo.config import ConfigError, PostprocessConfig
from sepc_zoo.inference.detections import DetectionDict
from sepc_zoo.ops.boxes import box_area, intersection, paired_iou

MIN_SIDE = 32  # pixels of a tile
BORDER = 0.01  # distance from a border up to which a box is taken for cut, in sides of the tile

Columns = dict[str, Tensor]  # boxes (D, 4), scores (D,), labels (D,), windows (D, 4)
Overlap = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


class Window(NamedTuple):
    """A part of an image, pixels; the sides at x2 and y2 are outside of it."""

    x1: int
    y1: int
    x2: int
    y2: int

    def crop(self, pixels: Tensor) -> Tensor:
        """Crop ``(C, H, W)`` without a copy."""
        return pixels[:, self.y1 : self.y2, self.x1 : self.x2]


@dataclass(frozen=True)
class Tiles:
    """The way an image is divided.

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
        """List the whole image, then its tiles in rows; no tiles if the image fits one."""
        whole = Window(0, 0, width, height)
        if max(height, width) <= self.size:
            return [whole]
        corners = itertools.product(self._starts(height), self._starts(width))
        return [whole] + [
            Window(x, y, min(x + self.size, width), min(y + self.size, height)) for y, x in corners
        ]

    def _starts(self, side: int) -> list[int]:
        """List where the tiles along a side start; the last tile ends with the image."""
        if side <= self.size:
            return [0]
        common = int(self.size * self.overlap)
        steps = math.ceil((side - self.size) / (self.size - common))
        return [i * (side - self.size) // steps for i in range(steps + 1)]


def join_windows(found: Mapping[Window, DetectionDict], config: PostprocessConfig) -> DetectionDict:
    """Join the detections of an image and of its tiles, all in pixels of the image, class by class.

    Boxes that are cut by a border inside the image are first joined to whole objects. Of two boxes
    from different windows, one is then suppressed by intersection over union; or by intersection
    over the smaller box, if the larger one reaches beyond the window of the smaller, which may then
    be a piece of it. Boxes that are not cut take precedence, then the higher score. The limit of
    the config holds for each window.

    Args:
        found: detections by window, the whole image first.
    """
    if len(found) == 1:
        return next(iter(found.values()))
    parts = [
        one | {"windows": torch.tensor([window]).expand(len(one["scores"]), 4)}
        for window, one in found.items()
    ]
    every = _by_score(_concatenate(parts))
    is_cut = cut_boxes(every["boxes"], every["windows"], next(iter(found)))
    pieces, threshold = _select(every, is_cut), config.iou_threshold
    joined = _concatenate([_select(every, ~is_cut), join_pieces(pieces, threshold)])
    result = _by_score(_select(joined, suppress_doubles(joined, threshold)))
    limit = config.max_detections * len(found)
    return {name: result[name][:limit] for name in ("boxes", "scores", "labels")}


def cut_boxes(boxes: Tensor, windows: Tensor, whole: Window) -> Tensor:
    """Return a mask ``(D,)`` of boxes that end at a border of their window inside the image."""
    # One pixel more: boxes that include their last pixel reach beyond an enlarged image.
    margin = 1 + BORDER * (windows[:, 2:] - windows[:, :2]).amax(dim=1, keepdim=True)
    ends = ((boxes - windows).abs() <= margin) & (windows != windows.new_tensor(whole))
    return ends.any(dim=1)


def join_pieces(pieces: Columns, threshold: float) -> Columns:
    """Replace the pieces of an object by the box around them, with the window of the best of them.

    Two cut boxes are pieces of one object if they are of one class, and overlap by more than the
    threshold in the common part of their windows. Pieces and result are sorted by falling score.
    """
    i, j = _pairs(pieces, _overlap_in_common, threshold)
    first, previous = torch.arange(len(pieces["scores"])), None
    while previous is None or not torch.equal(first, previous):
        previous, first = first, first.scatter_reduce(0, i, first[j], "amin")
    first, group = first.unique(return_inverse=True)
    objects, index = _select(pieces, first), group[:, None].expand(-1, 2)
    corners = zip(
        objects["boxes"].split(2, 1), pieces["boxes"].split(2, 1), ("amin", "amax"), strict=True
    )
    outer = [of_first.scatter_reduce(0, index, own, how) for of_first, own, how in corners]
    return objects | {"boxes": torch.cat(outer, dim=1)}


def suppress_doubles(found: Columns, threshold: float) -> Tensor:
    """Return the indices of the boxes that are kept; ``found`` is sorted by falling precedence."""
    kept = [True] * len(found["scores"])
    for i, j in _pairs(found, _overlap, threshold).T.tolist():
        if i < j and kept[i]:
            kept[j] = False
    return torch.tensor(kept, dtype=torch.bool).nonzero().squeeze(1)


def _pairs(found: Columns, overlap: Overlap, threshold: float) -> Tensor:
    """Return the overlapping pairs of a class in different windows as sorted indices ``(2, P)``."""
    boxes, labels, windows = found["boxes"], found["labels"], found["windows"]
    pairs = [torch.empty(0, 2, dtype=torch.int64)]
    for window in windows.unique(dim=0):
        own = (windows == window).all(dim=1)
        near = (boxes[:, :2] <= window[2:]).all(dim=1) & (boxes[:, 2:] >= window[:2]).all(dim=1)
        i, j = (mask.nonzero().squeeze(1) for mask in (own, near & ~own))
        overlapping = overlap(boxes[i], windows[i], boxes[j], windows[j]) > threshold
        row, column = (overlapping & (labels[i, None] == labels[j])).nonzero(as_tuple=True)
        pairs.append(torch.stack([i[row], j[column]], dim=1))
    first, second = torch.cat(pairs).T
    return torch.stack([first, second])[:, (first * len(boxes) + second).argsort()]


def _overlap(boxes1: Tensor, windows1: Tensor, boxes2: Tensor, windows2: Tensor) -> Tensor:
    """Compute intersection over union ``(D1, D2)``, or over a smaller box that may be a piece."""
    inter, area1, area2 = intersection(boxes1, boxes2), box_area(boxes1)[:, None], box_area(boxes2)
    beyond = torch.where(
        area1 > area2, _beyond(boxes1[:, None], windows2), _beyond(boxes2, windows1[:, None])
    )
    over = torch.where(beyond, torch.minimum(area1, area2), area1 + area2 - inter)
    return inter / over.clamp(min=torch.finfo(over.dtype).tiny)


def _beyond(boxes: Tensor, windows: Tensor) -> Tensor:
    """Whether boxes ``(..., 4)`` reach out of windows."""
    outside = (boxes[..., :2] < windows[..., :2]) | (boxes[..., 2:] > windows[..., 2:])
    return outside.any(dim=-1)


def _overlap_in_common(
    boxes1: Tensor, windows1: Tensor, boxes2: Tensor, windows2: Tensor
) -> Tensor:
    """Compute intersection over union ``(D1, D2)`` in the common part of two windows."""
    upper = torch.minimum(windows1[:, None, 2:], windows2[:, 2:])
    lower = torch.maximum(windows1[:, None, :2], windows2[:, :2]).minimum(upper)
    shown = [
        torch.cat([corner.clamp(lower, upper) for corner in boxes.split(2, dim=-1)], dim=-1)
        for boxes in (boxes1[:, None], boxes2)
    ]
    return paired_iou(*shown)


def _concatenate(parts: Sequence[Columns]) -> Columns:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _by_score(found: Columns) -> Columns:
    return _select(found, found["scores"].argsort(descending=True, stable=True))


def _select(found: Columns, index: Tensor) -> Columns:
    return {name: values[index] for name, values in found.items()}
