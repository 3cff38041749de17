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
        bias = not config.norm
        self.lateral = nn.ModuleList(nn.Conv2d(c, channels, 1, bias=bias) for c in in_channels)
        self.output = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, padding=1, bias=bias) for _ in in_channels
        )
        self.lateral_norms = _norms(len(in_channels), channels, config)
        self.output_norms = _norms(len(in_channels), channels, config)
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
        lateral = zip(self.lateral, self.lateral_norms, features, strict=True)
        merged = [norm(conv(c)) for conv, norm, c in lateral]
        for i in reversed(range(len(merged) - 1)):
            merged[i] = merged[i] + F.interpolate(merged[i + 1], size=merged[i].shape[-2:])
        output = zip(self.output, self.output_norms, merged, strict=True)
        pyramid = [norm(conv(x)) for conv, norm, x in output]
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


def _norms(count: int, channels: int, config: FPNConfig) -> nn.ModuleList:
    return nn.ModuleList(
        nn.BatchNorm2d(channels) if config.norm else nn.Identity() for _ in range(count)
    )
