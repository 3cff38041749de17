"""The head of dense detectors."""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sepc_zoo.config import DenseHead
from sepc_zoo.models.init import init_conv
from sepc_zoo.models.recompute import run
from sepc_zoo.outputs import Predictions

# Bias for an initial score of 0.01 of every class on every anchor (RetinaNet, section 4.1).
PRIOR_BIAS = -math.log((1 - 0.01) / 0.01)
GROUP_CHANNELS = 8  # channels of a group norm's group: the usual 32 groups at 256 channels
MAX_EXPONENT = 11.0  # exp gives 60,000 pixels, which half precision holds


def exp(x: Tensor) -> Tensor:
    """Exponential in at least single precision; always finite."""
    return x.to(torch.promote_types(x.dtype, torch.float32)).clamp(max=MAX_EXPONENT).exp()


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": nn.Identity(),
    "relu": F.relu,
    "exp": exp,
}


class Head(nn.Module):
    """Classes and boxes of every anchor, by convolutions that all levels share.

    Args:
        channels: channels of every level.
        num_anchors: anchors of a cell.
        box_values: values that are predicted for the box of an anchor.
        num_levels: number of levels, for a head that scales boxes by level.

    Attributes:
        grad_checkpointing: recompute the towers in the backward pass.
    """

    grad_checkpointing = False

    def __init__(
        self,
        channels: int,
        num_anchors: int,
        num_classes: int,
        config: DenseHead,
        box_values: int = 4,
        num_levels: int = 5,
    ) -> None:
        super().__init__()
        self.num_anchors = num_anchors
        self.num_classes = num_classes
        self.box_values = box_values
        self.quality_branch = config.quality
        self.activation = ACTIVATIONS[config.box_activation]
        self.cls_tower = _tower(channels, config)
        self.box_tower = _tower(channels, config)
        self.cls = nn.Conv2d(channels, num_anchors * num_classes, 3, padding=1)
        self.box = nn.Conv2d(channels, num_anchors * box_values, 3, padding=1)
        init_conv(self.cls, bias=PRIOR_BIAS)
        init_conv(self.box, bias=config.box_bias)
        self.scales = None
        if config.box_scales:
            ones = [nn.Parameter(torch.ones(())) for _ in range(num_levels)]
            self.scales = nn.ParameterList(ones)
        self.quality = None
        if config.quality != "none":
            self.quality = nn.Conv2d(channels, num_anchors, 3, padding=1)
            init_conv(self.quality)

    def forward(self, cls_pyramid: list[Tensor], box_pyramid: list[Tensor]) -> Predictions:
        recompute = self.grad_checkpointing and len(self.cls_tower) > 0
        cls_pyramid = [run(self.cls_tower, x, recompute=recompute) for x in cls_pyramid]
        box_pyramid = [run(self.box_tower, x, recompute=recompute) for x in box_pyramid]
        logits = [self.cls(x) for x in cls_pyramid]
        deltas = [self.box(x) for x in box_pyramid]
        if self.scales is not None:
            deltas = [x * scale for x, scale in zip(deltas, self.scales, strict=True)]
        deltas = [self.activation(x) for x in deltas]
        quality = None
        if self.quality is not None:
            source = cls_pyramid if self.quality_branch == "cls" else box_pyramid
            quality = join_levels([self.quality(x) for x in source], 1).squeeze(2)
        return Predictions(
            logits=join_levels(logits, self.num_classes),
            deltas=join_levels(deltas, self.box_values),
            sizes=tuple((x.shape[2], x.shape[3]) for x in logits),
            quality=quality,
        )

    def reset_classes(self, old_index: Sequence[int | None]) -> None:
        """Make a new class convolution; each class keeps the weights of its old index, if any."""
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


def _tower(channels: int, config: DenseHead) -> nn.Sequential:
    layers: list[nn.Module] = []
    has_norm = config.norm == "group"
    for _ in range(config.convs):
        bias = config.norm_bias or not has_norm
        conv = nn.Conv2d(channels, channels, 3, padding=1, bias=bias)
        init_conv(conv)
        layers.append(conv)
        if has_norm:
            layers.append(nn.GroupNorm(channels // math.gcd(GROUP_CHANNELS, channels), channels))
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


def join_levels(maps: list[Tensor], values: int) -> Tensor:
    """Join maps ``(N, anchors * values, H, W)`` of all levels to ``(N, A, values)``."""
    levels = [x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, values) for x in maps]
    return torch.cat(levels, dim=1)
