"""The feature pyramid network."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from sepc_zoo.config import FPNConfig


class FPN(nn.Module):
    """A pyramid from the backbone's maps up to C5 (Lin et al. 2017; P6 and P7 as in RetinaNet).

    Args:
        in_channels: channels of the backbone's maps, the last of which is C5.
        channels: channels of every level.
    """

    def __init__(self, in_channels: Sequence[int], channels: int, config: FPNConfig) -> None:
        super().__init__()
        self.config = config
        self.lateral = nn.ModuleList(_conv(c, channels, 1, config.norm) for c in in_channels)
        self.output = nn.ModuleList(_conv(channels, channels, 3, config.norm) for _ in in_channels)
        last = config.levels[1]
        if last >= 6 and config.p6_from != "pool":
            p6_channels = in_channels[-1] if config.p6_from == "c5" else channels
            self.p6 = nn.Conv2d(p6_channels, channels, 3, stride=2, padding=1)
        if last >= 7:
            self.p7 = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        merged = [conv(c) for conv, c in zip(self.lateral, features, strict=True)]
        for i in reversed(range(len(merged) - 1)):
            merged[i] = merged[i] + F.interpolate(merged[i + 1], size=merged[i].shape[-2:])
        pyramid = [conv(x) for conv, x in zip(self.output, merged, strict=True)]
        last, p6_from = self.config.levels[1], self.config.p6_from
        if last >= 6 and p6_from == "pool":
            pyramid.append(pyramid[-1][:, :, ::2, ::2])
        elif last >= 6:
            pyramid.append(self.p6(features[-1] if p6_from == "c5" else pyramid[-1]))
        if last >= 7:
            pyramid.append(
                self.p7(F.relu(pyramid[-1]) if self.config.relu_before_p7 else pyramid[-1])
            )
        return pyramid


def _conv(in_channels: int, channels: int, side: int, norm: bool) -> nn.Module:
    conv = nn.Conv2d(in_channels, channels, side, padding=side // 2, bias=not norm)
    return nn.Sequential(conv, nn.BatchNorm2d(channels)) if norm else conv
