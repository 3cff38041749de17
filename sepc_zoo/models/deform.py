"""Deformable convolutions in the last stages of a backbone (Dai et al. 2017, section 2.3)."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from sepc_zoo.errors import ConfigError
from sepc_zoo.ops.deform_conv import asks_for_fused, deform_conv2d


class DeformConv2d(nn.Conv2d):
    """A 3x3 convolution whose taps are moved by predicted offsets; without modulation.

    It starts as the plain convolution that it replaces, with the same weights.

    Attributes:
        fused: see ``deform_conv2d``.
    """

    def __init__(self, plain: nn.Conv2d) -> None:
        channels, stride, bias = plain.in_channels, plain.stride[0], plain.bias is not None
        super().__init__(channels, plain.out_channels, 3, stride, 1, bias=bias)
        self.weight, self.bias = plain.weight, plain.bias
        self.fused = asks_for_fused()
        self.offset = nn.Conv2d(channels, 2 * 9, 3, stride, 1)
        nn.init.zeros_(self.offset.weight)
        nn.init.zeros_(self.offset.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        offset, stride, padding = self.offset(x), self.stride[0], 1
        [y] = deform_conv2d([x], [offset], self.weight, self.bias, stride, padding, self.fused)
        # In the memory format that the convolution would give: see IntegratedBatchNorm.
        is_last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
        return y.contiguous(
            memory_format=torch.channels_last if is_last else torch.contiguous_format
        )


def deform_stages(trunk: nn.Module, info: Any, stages: Iterable[int], name: str) -> None:
    """Replace the 3x3 convolutions ``conv2`` of a ResNet's blocks by deformable ones.

    Args:
        trunk: timm's model.
        info: its ``feature_info``.
        stages: 1 to 4; stage 4 ends in C5.
        name: name of the model, for errors.

    Raises:
        ConfigError: a stage has no such convolutions.
    """
    modules = {path.replace(".", "_"): module for path, module in trunk.named_modules()}
    ends = zip(info.reduction(), info.module_name(), strict=True)
    found = {reduction: modules.get(path.replace(".", "_")) for reduction, path in ends}
    for stage in stages:
        end = found.get(2 ** (stage + 1)) or nn.Identity()
        blocks: list[Any] = [m for m in end.modules() if _is_3x3(getattr(m, "conv2", None))]
        if not blocks:
            raise ConfigError(
                f"backbone.deform_stages: stage {stage} of {name!r} has no ResNet blocks with a "
                "3x3 convolution conv2 without groups and dilation"
            )
        for block in blocks:
            block.conv2 = DeformConv2d(block.conv2)


def _is_3x3(conv: Any) -> bool:
    return (
        type(conv) is nn.Conv2d  # subclasses standardize their weights, or pad in other ways
        and (conv.kernel_size, conv.padding, conv.dilation) == ((3, 3), (1, 1), (1, 1))
        and conv.groups == 1
    )


def offset_names(trunk: nn.Module) -> set[str]:
    """Names of the tensors of deformable convolutions that timm's weights lack."""
    convs = [path for path, module in trunk.named_modules() if isinstance(module, DeformConv2d)]
    return {f"{path}.offset.{kind}" for path in convs for kind in ("weight", "bias")}
