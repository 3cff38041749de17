"""Any timm model that has features at strides 8, 16 and 32."""

from typing import Any

import timm
import torch.nn.functional as F
from timm.layers import Format
from torch import Tensor, nn

from sepc_zoo.config import STRIDES, ConfigError

FEATURE_STRIDES = STRIDES[:3]  # of C3, C4 and C5


class Backbone(nn.Module):
    """C3, C4 and C5 of a timm model.

    Attributes:
        channels: of the three maps.
        body: timm's feature extractor.

    Raises:
        ConfigError: timm knows no such model, it has no features, or not at these strides.
    """

    def __init__(self, name: str, pretrained: bool = False, **kwargs: Any) -> None:
        super().__init__()
        self.fixed_size = _has_fixed_size(name)
        if self.fixed_size:  # transformers of a fixed size that can do without it say so here
            kwargs = {"strict_img_size": False} | kwargs
        try:
            self.body = timm.create_model(name, pretrained, features_only=True, **kwargs)
        except (RuntimeError, TypeError, AttributeError, AssertionError) as error:
            raise ConfigError(
                f"timm builds no features of {name!r} with {kwargs}: {error}"
            ) from error
        info: Any = self.body.feature_info
        reductions = info.reduction()
        missing = [stride for stride in FEATURE_STRIDES if stride not in reductions]
        if missing:
            raise ConfigError(
                f"backbone {name!r} has features at strides {reductions}, but a detector needs 8, "
                "16 and 32; list_backbones() names some that have them"
            )
        self.indices = [reductions.index(stride) for stride in FEATURE_STRIDES]
        self.channels = [info.channels()[i] for i in self.indices]
        self.channels_last = getattr(self.body, "output_fmt", Format.NCHW) == Format.NHWC

    def forward(self, images: Tensor) -> list[Tensor]:  # N, 3, H, W -> C3, C4, C5
        if self.fixed_size:  # windows and patches are cut without a rest
            images = pad_to_multiple(images, FEATURE_STRIDES[-1])
        features = self.body(images)
        features = [features[i] for i in self.indices]
        if self.channels_last:
            features = [x.permute(0, 3, 1, 2).contiguous() for x in features]
        return features

    def stages(self) -> list[list[nn.Parameter]]:
        """Parameters by stage: up to stride 2, 4, 8, 16, 32, each without those before it.

        The first two of a ResNet are its stem and its first stage.
        """
        info: Any = self.body.feature_info
        ends = [module.replace(".", "_") for module in info.module_name()]
        named = [(name.replace(".", "_"), p) for name, p in self.body.named_parameters()]
        stages: list[list[nn.Parameter]] = []
        start = 0
        for end in ends:
            inside = [i for i, (name, _) in enumerate(named) if name.startswith(end + "_")]
            stop = max(inside, default=start - 1) + 1
            stages.append([p for _, p in named[start:stop]])
            start = max(start, stop)
        return stages if 2 in info.reduction() else [[], *stages]


def pad_to_multiple(images: Tensor, multiple: int) -> Tensor:
    """Zeros to the right and below ``(N, 3, H, W)``, up to multiples of ``multiple`` pixels."""
    height, width = images.shape[-2:]
    return F.pad(images, (0, -width % multiple, 0, -height % multiple))


def _has_fixed_size(name: str) -> bool:
    config = timm.get_pretrained_cfg(name, allow_unregistered=True) if timm.is_model(name) else None
    return config is not None and config.fixed_input_size
