"""Two-stage detectors: regions are proposed, then each is classified."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sepc_zoo.config import DetectorConfig
from sepc_zoo.methods.targets import check_targets, collate_targets
from sepc_zoo.models.detector import Detector, Target
from sepc_zoo.models.heads.roi import RoIHead
from sepc_zoo.models.heads.rpn import RPN
from sepc_zoo.ops.coders import decode
from sepc_zoo.ops.nms import select_region_detections
from sepc_zoo.outputs import TwoStagePredictions


class TwoStageDetector(Detector):
    """Faster R-CNN on one pyramid for both heads (Lin et al. 2017, section 4)."""

    def __init__(self, config: DetectorConfig, pretrained_backbone: bool = False) -> None:
        config.method.check(config)
        super().__init__(config, pretrained_backbone)
        head: Any = config.head
        first, last = config.fpn.levels
        levels = range(first, min(last, 5) + 1)
        self.rpn = RPN(config.channels, config.anchors.per_cell, head.rpn)
        self.roi_head = RoIHead(config.channels, config.num_classes, levels, head.roi)

    def forward(
        self, images: Tensor, targets: Sequence[Target] | None = None
    ) -> TwoStagePredictions:
        """The raw outputs for images ``(N, 3, H, W)``, normalised.

        Args:
            targets: in train mode the ground truth as in ``loss``, for which regions are sampled;
                otherwise all proposals are regions. Proposals are clipped to the ``image_size`` of
                their target (height and width of the image inside the batch), or to the batch.
        """
        pyramid, _ = self.forward_features(images)
        rpn_logits, rpn_deltas = self.rpn(pyramid)
        sizes = tuple((x.shape[2], x.shape[3]) for x in pyramid)
        image_sizes = _image_sizes(images, targets)
        regions = self._propose(rpn_logits, rpn_deltas, sizes, image_sizes)
        if self.training and targets is not None:
            check_targets(targets, self.config.num_classes, self._extent(sizes))
            regions = self.method.sample_regions(regions, collate_targets(targets, like=regions))
        roi_pyramid = pyramid[: len(self.roi_head.levels)]
        logits, deltas = self.roi_head(roi_pyramid, regions)
        return TwoStagePredictions(rpn_logits, rpn_deltas, sizes, regions, logits, deltas)

    def forward_layers(self, images: Tensor) -> None:
        pyramid, _ = self.forward_features(images)
        self.rpn(pyramid)
        side, count = self.roi_head.config.size, self.rpn.config.max_proposals * len(images)
        self.roi_head.classify(pyramid[0].new_empty(count, self.config.channels, side, side))

    @property
    def coders(self) -> tuple[Any, ...]:
        head: Any = self.config.head
        return self.config.coder, head.roi.coder

    def postprocess(
        self, outputs: TwoStagePredictions, image_sizes: Sequence[tuple[int, int]]
    ) -> list[dict[str, Tensor]]:
        head: Any = self.config.head
        return select_region_detections(
            outputs.in_full_precision(),
            partial(decode, head.roi.coder),
            image_sizes,
            self.config.postprocess,
            head.roi.min_side,
        )

    def reset_head(self, old_index: Sequence[int | None]) -> None:
        self.roi_head.reset_classes(old_index)

    def _propose(
        self,
        logits: Tensor,
        deltas: Tensor,
        sizes: Sequence[tuple[int, int]],
        image_sizes: Sequence[tuple[int, int]],
    ) -> Tensor:
        """Proposals ``(N, P, 4)``, in full precision and without gradient."""
        dtype = torch.promote_types(logits.dtype, torch.float32)
        logits, deltas = logits.detach().to(dtype), deltas.detach().to(dtype)
        with torch.autocast(logits.device.type, enabled=False):
            anchors = self.anchors(sizes, like=deltas)
            to_boxes = partial(decode, self.config.coder)
            return self.rpn.propose(logits, deltas, anchors, to_boxes, image_sizes)


def _image_sizes(images: Tensor, targets: Sequence[Target] | None) -> list[tuple[int, int]]:
    """Height and width of each image inside the batch, from its target, or of the batch."""
    batch = (images.shape[-2], images.shape[-1])
    if targets is None:
        return [batch] * len(images)
    sizes = [target.get("image_size", batch) for target in targets]
    return [(int(height), int(width)) for height, width in sizes]
