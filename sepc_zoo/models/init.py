"""Initial weights of the convolutions of neck and head."""

import math

from torch import nn


def init_conv(conv: nn.Conv2d, bias: float = 0.0) -> None:
    """Initialise weights from a normal distribution (RetinaNet, section 4.1).

    Its deviation is 0.01 at the authors' 256 channels, and changes with the root of the fan-in, so
    that the gain of a layer stays the same: without a norm, a narrow head would lose the signal.
    """
    nn.init.normal_(conv.weight, std=0.01 * math.sqrt(256 / conv.in_channels))
    if conv.bias is not None:
        nn.init.constant_(conv.bias, bias)
