"""A neck of your own: the weighted bidirectional pyramid of EfficientDet (Tan et al. 2020).

    import bifpn_neck  # registers "bifpn" and "bifpn_deep"
    model = sepc_zoo.create_model("retinanet_r18_bifpn", num_classes=3)

Run as a program it trains on your data with all options of ``sepc-zoo train``:

    python examples/bifpn_neck.py --data cells --model retinanet_r18_bifpn --epochs 12
"""

import sys
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sepc_zoo
from sepc_zoo.config import NeckEntry


class WeightedSum(nn.Module):
    """Maps of one size added with learned positive weights (section 3.3), then a convolution."""

    def __init__(self, channels: int, num_inputs: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.ones(num_inputs))
        self.conv = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False),
            nn.Conv2d(channels, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, *maps: Tensor) -> Tensor:
        weights = self.weights.relu()
        weights = weights / (weights.sum() + 1e-4)
        total = sum(weight * x for weight, x in zip(weights, maps, strict=True))
        return self.conv(F.silu(total))


class Block(nn.Module):
    """One way down and one way up the pyramid (figure 2d)."""

    def __init__(self, channels: int, num_levels: int) -> None:
        super().__init__()
        self.down = nn.ModuleList(WeightedSum(channels, 2) for _ in range(num_levels - 1))
        inner = [WeightedSum(channels, 3) for _ in range(num_levels - 2)]
        self.up = nn.ModuleList([*inner, WeightedSum(channels, 2)])

    def forward(self, pyramid: list[Tensor]) -> list[Tensor]:
        middle = list(pyramid)
        for i in reversed(range(len(pyramid) - 1)):
            coarser = F.interpolate(middle[i + 1], size=pyramid[i].shape[-2:])
            middle[i] = self.down[i](pyramid[i], coarser)
        out = middle[:1]
        for i in range(1, len(pyramid)):
            finer = F.adaptive_max_pool2d(out[-1], pyramid[i].shape[-2:])
            inputs = {id(x): x for x in (pyramid[i], middle[i])}.values()  # one for the coarsest
            out.append(self.up[i - 1](*inputs, finer))
        return out


class BiFPN(nn.Module):
    def __init__(self, channels: int, config: "BiFPNConfig") -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(Block(channels, 5) for _ in range(config.blocks)))

    def forward(self, pyramid: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        pyramid = self.blocks(pyramid)
        return pyramid, pyramid  # the same for classes and for boxes


class BiFPNConfig(NeckEntry, frozen=True, tag="bifpn"):
    """Entries of the neck in ``config.json``; ``neck={"blocks": 5}`` overrides one."""

    module: ClassVar[Any] = BiFPN
    blocks: int = 3


sepc_zoo.register_neck("bifpn", BiFPNConfig())
sepc_zoo.register_neck("bifpn_deep", BiFPNConfig(blocks=7))

if __name__ == "__main__":
    from sepc_zoo.cli import main

    sys.exit(main(["train", *sys.argv[1:]]))
