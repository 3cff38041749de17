"""The scale-equalizing pyramid convolution (Wang et al., CVPR 2020)."""

import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sepc_zoo.config import SEPCNeck
from sepc_zoo.models.init import init_conv
from sepc_zoo.models.recompute import run
from sepc_zoo.ops.deform_conv import asks_for_fused, deform_conv2d
from sepc_zoo.ops.distributed import process_count, sum_over_processes


class SEPC(nn.Module):
    """Pyramid convolutions, then one branch for classes and one for boxes (section 3, figure 4).

    Without branches, all heads read what the last pyramid convolution gives.

    The variants of the paper differ in their ``SEPCNeck`` only. Maps are in channels-last memory: a
    deformable tap reads all channels of a pixel, and the integrated norm joins levels.

    Attributes:
        grad_checkpointing: recompute each block in the backward pass.
    """

    grad_checkpointing = False

    def __init__(self, channels: int, config: SEPCNeck) -> None:
        super().__init__()
        self.pconvs = nn.ModuleList(PyramidConv(channels, config) for _ in range(config.blocks))
        self.cls_branch = Branch(channels, config) if config.branches else nn.Identity()
        self.box_branch = Branch(channels, config) if config.branches else nn.Identity()

    def forward(self, pyramid: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        pyramid = [x.contiguous(memory_format=torch.channels_last) for x in pyramid]
        recompute = self.grad_checkpointing
        for pconv in self.pconvs:
            pyramid = run(pconv, pyramid, recompute=recompute)
        cls_pyramid = run(self.cls_branch, pyramid, recompute=recompute)
        return cls_pyramid, run(self.box_branch, pyramid, recompute=recompute)


class PyramidConv(nn.Module):
    """A convolution over space and scale: each level reads its two neighbours (section 3.1).

    It starts as the identity with the usual noise, and with zero weights for its neighbours: four
    random convolutions over three levels in a row would mix places and sizes, and a few hundred
    steps would learn little more than to undo that.
    """

    def __init__(self, channels: int, config: SEPCNeck) -> None:
        super().__init__()
        deform = config.pconv_deform
        self.from_finer = LevelConv2d(channels, deform=deform, stride=2)
        self.from_same = LevelConv2d(channels, deform=deform)
        self.from_coarser = LevelConv2d(channels, deform=deform)
        self.norm = IntegratedBatchNorm(channels) if config.norm else None
        with torch.no_grad():
            self.from_same.weight[range(channels), range(channels), 1, 1] += 1
        nn.init.zeros_(self.from_finer.weight)
        nn.init.zeros_(self.from_coarser.weight)

    def forward(self, pyramid: list[Tensor]) -> list[Tensor]:
        out = self.from_same(pyramid)
        for i, x in enumerate(self.from_finer(pyramid[:-1], finest=1), start=1):
            out[i] = out[i] + x
        for i, x in enumerate(self.from_coarser(pyramid[1:])):
            out[i] = out[i] + resize_like(x, out[i])
        return norm_relu(out, self.norm)


class Branch(nn.Module):
    """The last convolution before the head, shared by all levels."""

    def __init__(self, channels: int, config: SEPCNeck) -> None:
        super().__init__()
        self.conv = LevelConv2d(channels, deform=config.head_deform, padding=config.padding)
        self.norm = IntegratedBatchNorm(channels) if config.norm else None

    def forward(self, pyramid: list[Tensor]) -> list[Tensor]:
        return norm_relu(self.conv(pyramid), self.norm)


class LevelConv2d(nn.Conv2d):
    """A 3x3 convolution of a pyramid that is deformable on all levels but the finest (section 3.2).

    One kernel would fit all levels of a Gaussian pyramid, but a backbone gives none: on the other
    levels, offsets adapt the kernel. There is no modulation.

    Attributes:
        fused: see ``deform_conv2d``.
    """

    def __init__(self, channels: int, deform: bool, stride: int = 1, padding: int = 1) -> None:
        super().__init__(channels, channels, 3, stride, padding)
        self.fused = asks_for_fused()
        self.offset = nn.Conv2d(channels, 2 * 9, 3, stride, padding) if deform else None
        init_conv(self)
        if self.offset is not None:  # starts as a plain convolution
            nn.init.zeros_(self.offset.weight)
            nn.init.zeros_(self.offset.bias)  # type: ignore[arg-type]

    def forward(self, maps: list[Tensor], finest: int = 0) -> list[Tensor]:  # type: ignore[override]
        """Convolve ``maps``; the first is written to level ``finest``, where 0 is P3."""
        if self.offset is None:
            return [super(LevelConv2d, self).forward(x) for x in maps]
        fixed = [super(LevelConv2d, self).forward(x) for x in maps[: 1 - finest]]
        others = maps[1 - finest :]
        offsets = [self.offset(x) for x in others]
        stride, padding = self.stride[0], int(self.padding[0])
        bias = cast(Tensor, self.bias)
        return fixed + deform_conv2d(
            others, offsets, self.weight, bias, stride, padding, self.fused
        )


class IntegratedBatchNorm(nn.Module):
    """Batch norm with the statistics of all levels together (section 3.3).

    Attributes:
        sync: take the statistics over all processes.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.sync = False

    def forward(self, pyramid: list[Tensor]) -> list[Tensor]:
        if not self.norm.training:
            return [self.norm(x) for x in pyramid]
        shapes = [(len(x), *x.shape[-2:]) for x in pyramid]
        joined = torch.cat([x.permute(0, 2, 3, 1).flatten(0, 2) for x in pyramid])  # cells, C
        # Each cell is passed as an image: torch 2.15's batch norm on the CPU computes a wrong
        # gradient over maps of height or width 1, if map and gradient differ in memory format.
        joined = self._normalize(joined[:, :, None, None]).flatten(1)
        levels = joined.split([math.prod(shape) for shape in shapes])
        return [
            x.unflatten(0, shape).permute(0, 3, 1, 2)
            for x, shape in zip(levels, shapes, strict=True)
        ]

    def _normalize(self, x: Tensor) -> Tensor:
        synced = self.sync and process_count() > 1
        return synced_batch_norm(x, self.norm) if synced else self.norm(x)


def synced_batch_norm(x: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    """Batch norm in train mode with the statistics of all processes, ``x (N, C, H, W)`` in each.

    ``torch.nn.SyncBatchNorm`` does the same, but on GPUs only.
    """
    exact = x.to(torch.promote_types(x.dtype, torch.float32))
    cells = exact.new_full((1,), exact.numel() / exact.shape[1])
    sums = sum_over_processes(torch.cat([exact.sum(dim=(0, 2, 3)), cells]))  # C + 1
    count = sums[-1].detach()
    mean = sums[:-1] / count
    centred = exact - mean[:, None, None]
    var = sum_over_processes(centred.square().sum(dim=(0, 2, 3))) / count
    with torch.no_grad():
        state: dict[str, Any] = dict(norm.named_buffers())
        unbiased = var * count / (count - 1)
        for name, new in (("running_mean", mean), ("running_var", unbiased)):
            state[name].lerp_(new.to(state[name].dtype), norm.momentum)
        state["num_batches_tracked"] += 1
    scale = norm.weight * (var + norm.eps).rsqrt()
    return (centred * scale[:, None, None] + norm.bias[:, None, None]).to(x.dtype)


def norm_relu(pyramid: list[Tensor], norm: nn.Module | None) -> list[Tensor]:
    return [F.relu(x) for x in (pyramid if norm is None else norm(pyramid))]


def resize_like(x: Tensor, y: Tensor) -> Tensor:
    return F.interpolate(x, size=y.shape[-2:], mode="bilinear", align_corners=True)
