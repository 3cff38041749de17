"""Dense detectors: classes and boxes of every anchor in one pass."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sepc_zoo.config import DetectorConfig
from sepc_zoo.methods.targets import check_targets, collate_targets
from sepc_zoo.models.detector import Detector, Target
from sepc_zoo.models.heads.dense import Head
from sepc_zoo.ops.anchors import make_anchors
from sepc_zoo.ops.coders import decode
from sepc_zoo.ops.nms import select_detections
from sepc_zoo.outputs import Anchors, Predictions, Terms


class DenseDetector(Detector):
    """A one-stage detector: one head over all levels of the pyramid."""

    def __init__(self, config: DetectorConfig, pretrained_backbone: bool = False) -> None:
        super().__init__(config, pretrained_backbone)
        head: Any = config.head
        self.head = Head(config.channels, config.anchors.per_cell, config.num_classes, head)

    def forward(
        self,
        images: Tensor,
        targets: Sequence[Target] | None = None,  # noqa: ARG002
    ) -> Predictions:
        cls_pyramid, box_pyramid = self.forward_features(images)
        return self.head(cls_pyramid, box_pyramid)

    def loss_terms(self, outputs: Predictions, targets: Sequence[Target]) -> Terms:
        if len(targets) != len(outputs.logits):
            raise ValueError(f"{len(targets)} targets for {len(outputs.logits)} images")
        check_targets(targets, self.config.num_classes, self._extent(outputs.sizes))
        with torch.autocast(outputs.logits.device.type, enabled=False):
            predictions = outputs.in_full_precision()
            collated = collate_targets(targets, like=predictions.deltas)
            anchors = self.anchors(predictions.sizes, like=predictions.deltas)
            return self.method.loss(predictions, anchors, collated, self.config.coder)

    def loss_counts(
        self, image_size: tuple[int, int], targets: Sequence[Target]
    ) -> dict[str, Tensor] | None:
        like = self.head.cls.weight
        anchors = self.anchors(self.level_sizes(image_size), like)
        return self.method.counts(anchors, collate_targets(targets, like))

    def postprocess(
        self, outputs: Predictions, image_sizes: Sequence[tuple[int, int]]
    ) -> list[dict[str, Tensor]]:
        predictions = outputs.in_full_precision()
        return select_detections(
            predictions,
            self.anchors(predictions.sizes, like=predictions.logits).boxes,
            partial(decode, self.config.coder),
            image_sizes,
            self.config.postprocess,
            border=1.0 if self.config.inclusive_boxes else 0.0,
        )

    def reset_head(self, old_index: Sequence[int | None]) -> None:
        self.head.reset_classes(old_index)

    def anchors(self, sizes: Sequence[tuple[int, int]], like: Tensor) -> Anchors:
        """The anchors of levels of ``sizes`` in cells, with type and device of ``like``."""
        config = self.config
        per_cell = config.anchors.per_cell
        return Anchors(
            make_anchors(config.anchors, sizes, config.fpn.strides, like.device, like.dtype),
            [height * width * per_cell for height, width in sizes],
        )

    def _extent(self, sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
        """Height and width of the batch in pixels, as the finest level tells."""
        (height, width), stride, lost = sizes[0], self.config.fpn.strides[0], 2 * self.cropped_cells
        return (height + lost) * stride, (width + lost) * stride
