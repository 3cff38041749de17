"""The head of dense detectors."""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sepc_zoo.config import DenseHead
from sepc_zoo.models.init import init_conv
from sepc_zoo.outputs import Predictions

# Bias for an initial score of 0.01 of every class on every anchor (RetinaNet, section 4.1).
PRIOR_BIAS = -math.log((1 - 0.01) / 0.01)
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"none": nn.Identity(), "relu": F.relu}


class Head(nn.Module):
    """Classes and boxes of every anchor, by convolutions that all levels share.

    Args:
        channels: channels of every level.
        num_anchors: anchors of a cell.
    """

    def __init__(
        self, channels: int, num_anchors: int, num_classes: int, config: DenseHead
    ) -> None:
        super().__init__()
        self.num_anchors = num_anchors
        self.num_classes = num_classes
        self.activation = ACTIVATIONS[config.box_activation]
        self.cls_tower = _tower(channels, config.convs)
        self.box_tower = _tower(channels, config.convs)
        self.cls = nn.Conv2d(channels, num_anchors * num_classes, 3, padding=1)
        self.box = nn.Conv2d(channels, num_anchors * 4, 3, padding=1)
        init_conv(self.cls, bias=PRIOR_BIAS)
        init_conv(self.box, bias=config.box_bias)

    def forward(self, cls_pyramid: list[Tensor], box_pyramid: list[Tensor]) -> Predictions:
        logits = [self.cls(self.cls_tower(x)) for x in cls_pyramid]
        deltas = [self.activation(self.box(self.box_tower(x))) for x in box_pyramid]
        return Predictions(
            logits=torch.cat([_by_anchor(x, self.num_classes) for x in logits], dim=1),
            deltas=torch.cat([_by_anchor(x, 4) for x in deltas], dim=1),
            sizes=tuple((x.shape[2], x.shape[3]) for x in logits),
        )

    def reset_classes(self, old_index: Sequence[int | None]) -> None:
        """A new class convolution, where a class keeps the weights of its old index, if any."""
        old, self.num_classes = self.cls, len(old_index)
        self.cls = nn.Conv2d(old.in_channels, self.num_anchors * len(old_index), 3, padding=1)
        init_conv(self.cls, bias=PRIOR_BIAS)
        self.cls.to(old.weight)
        kept = [(new, index) for new, index in enumerate(old_index) if index is not None]
        for ours, theirs in zip(self.cls.parameters(), old.parameters(), strict=True):
            rows = ours.data.unflatten(0, (self.num_anchors, -1))
            old_rows = theirs.data.unflatten(0, (self.num_anchors, -1))
            for new, index in kept:
                rows[:, new] = old_rows[:, index]


def _tower(channels: int, depth: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(depth):
        conv = nn.Conv2d(channels, channels, 3, padding=1)
        init_conv(conv)
        layers += [conv, nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def _by_anchor(x: Tensor, values: int) -> Tensor:
    """``(N, anchors * values, H, W) -> (N, H * W * anchors, values)``."""
    return x.permute(0, 2, 3, 1).reshape(len(x), -1, values)
