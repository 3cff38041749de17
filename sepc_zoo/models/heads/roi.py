"""The head that classifies regions (Girshick 2015; over the levels of an FPN, Lin et al. 2017)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sepc_zoo.config import RoIHead as RoIConfig
from sepc_zoo.models.recompute import run
from sepc_zoo.ops.roi_align import roi_align


class RoIHead(nn.Module):
    """Classes and a box for each class of every region.

    Args:
        channels: channels of every level.
        levels: the levels of the pyramid that regions are read from, such as 2 to 5.

    Attributes:
        grad_checkpointing: recompute the convolutions in the backward pass.
    """

    grad_checkpointing = False

    def __init__(
        self, channels: int, num_classes: int, levels: Sequence[int], config: RoIConfig
    ) -> None:
        super().__init__()
        self.config = config
        self.levels = tuple(levels)
        self.num_classes = num_classes
        convs: list[nn.Module] = []
        for _ in range(config.convs):
            convs.append(nn.Conv2d(channels, channels, 3, padding=1, bias=not config.norm))
            convs += [nn.BatchNorm2d(channels)] if config.norm else []
            convs.append(nn.ReLU(inplace=True))
        self.convs = nn.Sequential(*convs)
        width = channels * config.size**2
        linears: list[nn.Module] = []
        for _ in range(config.linears):
            linears += [nn.Linear(width, config.width), nn.ReLU(inplace=True)]
            width = config.width
        self.linears = nn.Sequential(*linears)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
            if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        self.cls = self._new_cls(width, num_classes)
        self.box = self._new_box(width, num_classes)

    def forward(self, pyramid: Sequence[Tensor], regions: Tensor) -> tuple[Tensor, Tensor]:
        """Compute logits ``(N, R, 1 + K)``, background first, and deltas ``(N, R, K, 4)``.

        Both are 0 for regions without area.

        Args:
            pyramid: the maps of ``levels``.
            regions: ``(N, R, 4)``, pixels.
        """
        images, count = regions.shape[:2]
        boxes = regions.flatten(0, 1)
        image = torch.arange(images, device=boxes.device).repeat_interleave(count).to(boxes)
        rows = torch.cat([image[:, None], boxes], dim=1)
        # Regions are processed in the order of their levels; those without area are skipped.
        level = self.level_of(boxes)
        lengths = level.bincount(minlength=len(self.levels) + 1).tolist()[:-1]  # waits for a GPU
        order = level.argsort(stable=True)[: sum(lengths)]
        outputs = self.classify(self.pool(pyramid, rows[order].split(lengths)))
        logits, deltas = (
            x.new_zeros(len(rows), x.shape[1]).index_copy(0, order, x) for x in outputs
        )
        shape = (images, count, self.num_classes, 4)
        return logits.unflatten(0, (images, count)), deltas.view(shape)

    def classify(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Compute logits ``(R, 1 + K)`` and deltas ``(R, 4 * K)`` of ``pooled`` regions."""
        recompute = self.grad_checkpointing and len(self.convs) > 0
        x = self.linears(run(self.convs, pooled, recompute=recompute).flatten(1))
        return self.cls(x), self.box(x)

    def level_of(self, regions: Tensor) -> Tensor:
        """Index of the level that each region ``(R, 4)`` is read from (FPN, equation 1).

        Those without area have an index more than there are levels.
        """
        width, height = (regions[:, 2:] - regions[:, :2]).unbind(1)
        side = (width * height).sqrt()
        config = self.config
        level = (config.canonical_level + (side / config.canonical_side).log2() + 1e-6).floor()
        level = level.clamp(self.levels[0], self.levels[-1]).long() - self.levels[0]
        return level.where((width > 0) & (height > 0), len(self.levels))

    def pool(self, pyramid: Sequence[Tensor], rows: Sequence[Tensor]) -> Tensor:
        """Pool regions to ``(R, C, size, size)``; ``rows (r, 5)`` of a level are image and box."""
        config = self.config
        with torch.autocast(pyramid[0].device.type, enabled=False):
            pooled = [
                roi_align(
                    x.to(part.dtype),
                    part,
                    config.size,
                    2.0**-level,
                    config.sampling_ratio,
                    config.aligned,
                )
                for x, part, level in zip(pyramid, rows, self.levels, strict=True)
            ]
        return torch.cat(pooled)

    def reset_classes(self, old_index: Sequence[int | None]) -> None:
        """Make new rows for classes; each class keeps the weights of its old index, if any.

        The background and classes that are not reported keep their weights, too.
        """
        old_cls, old_box, old_count = self.cls, self.box, self.num_classes
        count = self.num_classes = len(old_index)
        self.cls = self._new_cls(old_cls.in_features, count).to(old_cls.weight)
        self.box = self._new_box(old_cls.in_features, count).to(old_cls.weight)
        kept = [(new, old) for new, old in enumerate(old_index) if old is not None]
        with torch.no_grad():
            for ours, theirs in zip(self.cls.parameters(), old_cls.parameters(), strict=True):
                ours[0] = theirs[0]
                ours[1 + count :] = theirs[1 + old_count :]
                for new, old in kept:
                    ours[1 + new] = theirs[1 + old]
            for ours, theirs in zip(self.box.parameters(), old_box.parameters(), strict=True):
                for new, old in kept:
                    ours[4 * new : 4 * new + 4] = theirs[4 * old : 4 * old + 4]

    def _new_cls(self, width: int, num_classes: int) -> nn.Linear:
        return _linear(width, 1 + num_classes + self.config.unused_classes, std=0.01)

    def _new_box(self, width: int, num_classes: int) -> nn.Linear:
        return _linear(width, 4 * num_classes, std=0.001)


def _linear(width: int, outputs: int, std: float) -> nn.Linear:
    layer = nn.Linear(width, outputs)
    nn.init.normal_(layer.weight, std=std)
    nn.init.zeros_(layer.bias)
    return layer
