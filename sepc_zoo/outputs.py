"""Predictions, anchors and targets of a batch: the types that all layers share."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# Loss terms: the sum () over this process's images, and the count () to divide it by.
Terms = dict[str, tuple[Tensor, Tensor]]


class Predictions(NamedTuple):
    """Raw predictions of a dense detector for N images, A anchors over all levels and K classes.

    A runs over levels, then rows, columns and the anchors of a cell.
    """

    logits: Tensor  # N, A, K
    deltas: Tensor  # N, A, 4 or 4 * bins, in the coding of the method
    sizes: tuple[tuple[int, int], ...]  # height and width of each level, in cells
    quality: Tensor | None = None  # N, A: centerness logits, where the head has them

    @property
    def level_lengths(self) -> list[int]:
        """Number of anchors of each level; their sum is A."""
        cells = [height * width for height, width in self.sizes]
        per_cell = self.logits.shape[1] // sum(cells)
        return [count * per_cell for count in cells]

    def in_full_precision(self) -> "Predictions":
        """Convert half precision to float32, whose range losses and boxes need."""
        dtype = torch.promote_types(self.logits.dtype, torch.float32)
        quality = None if self.quality is None else self.quality.to(dtype)
        return Predictions(self.logits.to(dtype), self.deltas.to(dtype), self.sizes, quality)


class TwoStagePredictions(NamedTuple):
    """Raw predictions of a two-stage detector for N images, A anchors and R regions of each image.

    A runs over levels, then rows, columns and the anchors of a cell. An image with fewer regions
    than R has regions without area.
    """

    rpn_logits: Tensor  # N, A
    rpn_deltas: Tensor  # N, A, 4
    sizes: tuple[tuple[int, int], ...]  # height and width of each level, in cells
    regions: Tensor  # N, R, 4: the proposals, pixels; in training the sampled ones
    logits: Tensor  # N, R, 1 + K: background, the classes, and classes that are not reported
    deltas: Tensor  # N, R, K, 4: from a region to a box of each class

    @property
    def exists(self) -> Tensor:
        """Mask ``(N, R)`` of the regions that are not padding."""
        return (self.regions[..., 2:] > self.regions[..., :2]).all(dim=-1)

    def in_full_precision(self) -> "TwoStagePredictions":
        """Convert half precision to float32, whose range losses and boxes need."""
        dtype = torch.promote_types(self.rpn_logits.dtype, torch.float32)
        names = ("rpn_logits", "rpn_deltas", "logits", "deltas")
        return self._replace(**{name: getattr(self, name).to(dtype) for name in names})


class Anchors(NamedTuple):
    """The anchors of a batch: the boxes that predictions refer to."""

    boxes: Tensor  # A, 4; pixels
    lengths: Sequence[int]  # number of anchors of each level
    exists: Tensor | None = None  # N, A: False outside the image's own padded size; None: all True

    @property
    def levels(self) -> Tensor:
        """Index of the level of each anchor ``(A,)``."""
        device = self.boxes.device
        parts = [torch.full((n,), i, device=device) for i, n in enumerate(self.lengths)]
        return torch.cat(parts)


class Targets(NamedTuple):
    """The ground truth of N images side by side, padded with boxes without area."""

    boxes: Tensor  # N, G, 4; G is at least 1
    labels: Tensor  # N, G; -1 where there is no box
    crowds: Tensor  # N, C, 4: groups of objects, neither object nor background
    lengths: tuple[int, ...]  # number of boxes of each image
    weights: Tensor | None = None  # N, G: weight of the box's class in the loss; None: all are 1

    def of_image(self, i: int) -> "Targets":
        """The targets of image ``i`` alone, with its padding."""
        return Targets._make(None if column is None else column[i : i + 1] for column in self)

    def flat(self) -> tuple[Tensor, Tensor, Tensor]:
        """Image ``(B,)``, box ``(B, 4)`` and label ``(B,)`` of all boxes, without the padding."""
        image = torch.arange(len(self.labels), device=self.labels.device)[:, None]
        rows = zip(image.expand_as(self.labels), self.boxes, self.labels, self.lengths, strict=True)
        columns = zip(*((i[:n], b[:n], y[:n]) for i, b, y, n in rows), strict=True)
        image, boxes, labels = map(torch.cat, columns)
        return image, boxes, labels

    def flat_weights(self) -> Tensor | None:
        """The weights ``(B,)`` of all boxes, without the padding; None: all are 1."""
        if self.weights is None:
            return None
        return torch.cat([row[:n] for row, n in zip(self.weights, self.lengths, strict=True)])
