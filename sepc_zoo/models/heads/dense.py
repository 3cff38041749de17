"""The prediction head."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from sepc_zoo.models.init import init_conv
from sepc_zoo.outputs import Predictions

PRIOR = 0.01  # score of every class on every anchor before training (RetinaNet, section 4.1)


class Head(nn.Module):
    """Classes and boxes of every anchor, by convolutions that all levels share.

    Args:
        stacked_convs: 3x3 convolutions of each branch before the last one.
        box_bias: of the last convolution for boxes, at the start.
        box_activation: after it.
    """

    def __init__(
        self,
        channels: int,
        num_anchors: int,
        num_classes: int,
        stacked_convs: int,
        box_bias: float,
        box_activation: Callable[[Tensor], Tensor],
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.box_activation = box_activation
        self.cls_tower = _tower(channels, stacked_convs)
        self.box_tower = _tower(channels, stacked_convs)
        self.cls = nn.Conv2d(channels, num_anchors * num_classes, 3, padding=1)
        self.box = nn.Conv2d(channels, num_anchors * 4, 3, padding=1)
        init_conv(self.cls, bias=-math.log((1 - PRIOR) / PRIOR))
        init_conv(self.box, bias=box_bias)

    def forward(self, cls_pyramid: list[Tensor], box_pyramid: list[Tensor]) -> Predictions:
        logits = [self.cls(self.cls_tower(x)) for x in cls_pyramid]
        deltas = [self.box_activation(self.box(self.box_tower(x))) for x in box_pyramid]
        return Predictions(
            logits=torch.cat([_by_anchor(x, self.num_classes) for x in logits], dim=1),
            deltas=torch.cat([_by_anchor(x, 4) for x in deltas], dim=1),
            sizes=tuple((x.shape[2], x.shape[3]) for x in logits),
        )


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
