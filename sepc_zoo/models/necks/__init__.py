"""Necks: from the FPN's pyramid to one pyramid for classes and one for boxes."""

from torch import Tensor, nn

from sepc_zoo.config import NeckConfig, resolve


class PlainNeck(nn.Module):
    """The baseline: classes and boxes are read off the same FPN."""

    def __init__(self, channels: int, config: NeckConfig) -> None:  # noqa: ARG002
        super().__init__()

    def forward(self, pyramid: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        return pyramid, pyramid


def build_neck(channels: int, config: NeckConfig) -> nn.Module:
    """The neck of a config, for pyramids of ``channels``."""
    return resolve(config.module)(channels, config)
