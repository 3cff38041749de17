"""Any timm model that has features at strides 8, 16 and 32."""

from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.layers import Format
from torch import Tensor, nn

from sepc_zoo.config import STRIDES, ConfigError

FEATURE_STRIDES = STRIDES[:3]  # of C3, C4 and C5
# Whatever timm raises over arguments that a model does not have or cannot be built with.
TIMM_ERRORS = (
    RuntimeError,
    TypeError,
    ValueError,
    AttributeError,
    AssertionError,
    LookupError,
    ArithmeticError,
)


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
        try:
            self.body = _create_features(name, pretrained, kwargs)
        except TIMM_ERRORS as error:
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
        try:
            self.rounds_up = not _has_fixed_size(name) and self._keeps_partial_cells()
        except TIMM_ERRORS as error:
            raise ConfigError(f"{name!r} with {kwargs} sees no image: {error}") from error

    @property
    def trunk(self) -> nn.Module:
        """timm's model inside the feature extractor, or the extractor that took its layers over."""
        return getattr(self.body, "model", self.body)

    def forward(self, images: Tensor) -> list[Tensor]:  # N, 3, H, W -> C3, C4, C5
        """Maps of the images' sides over 8, 16 and 32, rounded up."""
        if not self.rounds_up:
            images = pad_to_multiple(images, FEATURE_STRIDES[-1])
        if images.device.type == "cpu" and not torch.is_grad_enabled():
            # The CPU is faster so, but not in training.
            images = images.contiguous(memory_format=torch.channels_last)
        features = self.body(images)
        features = [features[i] for i in self.indices]
        if self.channels_last:
            features = [x.permute(0, 3, 1, 2).contiguous() for x in features]
        return features

    @torch.no_grad()
    def _keeps_partial_cells(self) -> bool:
        """Whether an image of 33 pixels gives maps of 5, 3 and 2 cells.

        Patches and poolings without padding cut off what fills no cell, and some models fail.
        """
        image = next(self.body.parameters()).new_zeros(1, 3, 33, 33)
        try:
            features = self.body.eval()(image)
        except (RuntimeError, AssertionError):
            return False
        finally:
            self.body.train()
        return [features[i].shape[-1] for i in self.indices] == [5, 3, 2]

    def stages(self) -> list[list[nn.Parameter]]:
        """Parameters by stage: up to stride 2, 4, 8, 16, 32, each without those before it.

        The first two of a ResNet are its stem and its first stage.
        """
        info: Any = self.body.feature_info
        ends = [f"{name.replace('.', '_')}_" for name in info.module_name()]
        modules = [(f"{n.replace('.', '_')}_", m) for n, m in self.trunk.named_modules()]
        stages: list[list[nn.Parameter]] = []
        start = 0
        for stride in (2, 4, *FEATURE_STRIDES):
            pairs = zip(ends, info.reduction(), strict=True)
            passed = tuple(end for end, reduction in pairs if reduction <= stride)
            inside = [i for i, (name, _) in enumerate(modules) if name.startswith(passed)]
            stop = max([start, *(i + 1 for i in inside)])
            parts = [module.parameters(recurse=False) for _, module in modules[start:stop]]
            stages.append([p for part in parts for p in part])
            start = stop
        return stages


def pad_to_multiple(images: Tensor, multiple: int) -> Tensor:
    """Zeros to the right and below ``(N, 3, H, W)``, up to multiples of ``multiple`` pixels."""
    height, width = images.shape[-2:]
    return F.pad(images, (0, -width % multiple, 0, -height % multiple))


def _create_features(name: str, pretrained: bool, kwargs: dict[str, Any]) -> Any:
    """timm's feature extractor, of any image size where a transformer of a fixed one allows it."""
    if _has_fixed_size(name):
        any_size = {"strict_img_size": False} | kwargs
        try:
            return timm.create_model(name, pretrained, features_only=True, **any_size)
        except TypeError:  # the model has no such argument
            pass
    return timm.create_model(name, pretrained, features_only=True, **kwargs)


def _has_fixed_size(name: str) -> bool:
    config = timm.get_pretrained_cfg(name, allow_unregistered=True) if timm.is_model(name) else None
    return config is not None and config.fixed_input_size
