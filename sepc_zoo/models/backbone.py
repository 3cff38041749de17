"""Any timm model that has features at strides 8, 16 and 32."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.layers import Format
from timm.models import adapt_input_conv
from torch import Tensor, nn

from sepc_zoo.config import BackboneConfig
from sepc_zoo.errors import ConfigError
from sepc_zoo.models.deform import deform_stages

# Errors that timm raises for arguments that a model does not have or cannot take.
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
    """The maps of a timm model at the given strides, such as C3, C4 and C5 at 8, 16 and 32.

    Args:
        pretrained: True downloads timm's ImageNet weights; a path is a safetensors file of them.

    Attributes:
        channels: channels of these maps.
        body: timm's feature extractor.

    Raises:
        ConfigError: timm knows no such model, it has no features, or not at these strides.
    """

    def __init__(
        self,
        config: BackboneConfig,
        strides: Sequence[int] = (8, 16, 32),
        pretrained: bool | Path = False,
    ) -> None:
        super().__init__()
        self.config = config
        name, kwargs = config.name, config.kwargs
        try:
            self.body = _create_features(name, pretrained, kwargs)
        except TIMM_ERRORS as error:
            raise ConfigError(
                f"timm builds no features of {name!r} with {kwargs}: {error}"
            ) from error
        if config.norm_eps is not None:
            for module in self.body.modules():
                if hasattr(module, "eps"):
                    module.eps = config.norm_eps
        if config.stride_in_1x1:
            move_strides(self.body, name)
        info: Any = self.body.feature_info
        deform_stages(self.trunk, info, config.deform_stages, name)
        reductions = info.reduction()
        if not set(strides) <= set(reductions):
            raise ConfigError(
                f"backbone {name!r} has features at strides {reductions}, but the detector needs "
                f"{', '.join(map(str, strides))}; list_backbones() names some that have them"
            )
        self.indices = [reductions.index(stride) for stride in strides]
        self.channels = [info.channels()[i] for i in self.indices]
        self.strides = tuple(strides)
        self.channels_last = getattr(self.body, "output_fmt", Format.NCHW) == Format.NHWC
        self.fixed_size = _has_fixed_size(name)
        self.rounds_up = False
        if not next(self.body.parameters()).is_meta:
            self.probe()

    @property
    def max_stride(self) -> int:
        return self.strides[-1]

    def probe(self) -> None:
        """Find out whether the sides of maps are rounded up; call it when tensors have values.

        Raises:
            ConfigError: the model cannot process an image.
        """
        try:
            self.rounds_up = not self.fixed_size and self._keeps_partial_cells()
        except TIMM_ERRORS as error:
            name, kwargs = self.config.name, self.config.kwargs
            raise ConfigError(f"{name!r} with {kwargs} fails on an image: {error}") from error

    @property
    def trunk(self) -> nn.Module:
        """timm's model inside the feature extractor, or the extractor if it has the layers."""
        return getattr(self.body, "model", self.body)

    def forward(self, images: Tensor) -> list[Tensor]:  # N, C, H, W -> C3, C4, C5
        """Maps whose sides are those of the images over their strides, rounded up."""
        if not self.rounds_up:
            images = pad_to_multiple(images, self.max_stride)
        if images.device.type == "cpu" and not self.is_trained():
            # Faster on the CPU, but not with a gradient.
            images = images.contiguous(memory_format=torch.channels_last)
        features = self.body(images)
        features = [features[i] for i in self.indices]
        if self.channels_last:
            features = [x.permute(0, 3, 1, 2).contiguous() for x in features]
        return features

    def is_trained(self) -> bool:
        """Whether a forward pass prepares for a gradient."""
        return torch.is_grad_enabled() and any(p.requires_grad for p in self.body.parameters())

    @torch.no_grad()
    def _keeps_partial_cells(self) -> bool:
        """Whether an image of 33 pixels gives maps whose sides are rounded up: 5, 3 and 2 cells.

        Patches and poolings without padding drop partial cells, and some models fail on them.
        """
        image = next(self.body.parameters()).new_zeros(1, self.config.in_chans, 33, 33)
        try:
            features = self.body.eval()(image)
        except (RuntimeError, AssertionError):
            return False
        finally:
            self.body.train()
        return [features[i].shape[-1] for i in self.indices] == [-(-33 // s) for s in self.strides]

    def stages(self) -> list[list[nn.Parameter]]:
        """Parameters by stage: up to stride 2, 4, 8, 16, 32, each without the stages before it.

        The first two stages of a ResNet are its stem and ``layer1``.
        """
        info: Any = self.body.feature_info
        ends = [f"{name.replace('.', '_')}_" for name in info.module_name()]
        modules = [(f"{n.replace('.', '_')}_", m) for n, m in self.trunk.named_modules()]
        stages: list[list[nn.Parameter]] = []
        start = 0
        for stride in (2, 4, 8, 16, 32):
            pairs = zip(ends, info.reduction(), strict=True)
            passed = tuple(end for end, reduction in pairs if reduction <= stride)
            inside = [i for i, (name, _) in enumerate(modules) if name.startswith(passed)]
            stop = max([start, *(i + 1 for i in inside)])
            parts = [module.parameters(recurse=False) for _, module in modules[start:stop]]
            stages.append([p for part in parts for p in part])
            start = stop
        return stages


def adapt_channels(state: Mapping[str, Tensor], config: BackboneConfig) -> dict[str, Tensor]:
    """A state dict whose first convolutions for RGB take the backbone's number of channels.

    Kernels are repeated, and scaled by 3 over their number, as timm does it.

    Args:
        state: tensors of a timm model or of a detector, by name.
    """
    pretrained = timm.get_pretrained_cfg(config.name)
    first = () if pretrained is None else pretrained.first_conv or ()
    names = {flat(f"{name}.weight") for name in ([first] if isinstance(first, str) else first)}
    adapted = dict(state)
    for key, value in state.items():
        name = flat(key).removeprefix("backbone_body_").removeprefix("model_")
        if name in names and value.ndim == 4 and value.shape[1] == 3:
            adapted[key] = adapt_input_conv(config.in_chans, value)
    return adapted


def flat(key: str) -> str:
    """A tensor's name with underscores for dots, as timm's feature extractors have it."""
    return key.replace(".", "_")


def move_strides(body: nn.Module, name: str) -> None:
    """Move the stride of each bottleneck from its 3x3 convolution to the 1x1 before it.

    Raises:
        ConfigError: there are no bottlenecks with a stride.
    """
    moved = 0
    for block in body.modules():
        convs = [getattr(block, name, None) for name in ("conv1", "conv2")]
        first, second = (conv if isinstance(conv, nn.Conv2d) else None for conv in convs)
        if first and second and first.kernel_size == (1, 1) and second.stride == (2, 2):
            first.stride, second.stride = second.stride, first.stride
            moved += 1
    if not moved:
        raise ConfigError(
            f"backbone.stride_in_1x1: {name!r} has no ResNet bottlenecks with a stride"
        )


def pad_to_multiple(images: Tensor, multiple: int) -> Tensor:
    """Pad ``(N, C, H, W)`` with zeros to the right and below, to multiples of ``multiple``."""
    height, width = images.shape[-2:]
    return F.pad(images, (0, -width % multiple, 0, -height % multiple))


def _create_features(name: str, pretrained: bool | Path, kwargs: dict[str, Any]) -> Any:
    """Build timm's feature extractor, for any image size if a model of fixed size allows it."""
    if isinstance(pretrained, Path):
        overlay = {"file": str(pretrained), "custom_load": False}
        kwargs, pretrained = {**kwargs, "pretrained_cfg_overlay": overlay}, True
    if _has_fixed_size(name):
        any_size = {"strict_img_size": False} | kwargs
        try:
            return timm.create_model(name, pretrained, features_only=True, **any_size)
        except TypeError:  # the model has no argument strict_img_size
            pass
    return timm.create_model(name, pretrained, features_only=True, **kwargs)


def _has_fixed_size(name: str) -> bool:
    config = timm.get_pretrained_cfg(name, allow_unregistered=True) if timm.is_model(name) else None
    return config is not None and config.fixed_input_size
