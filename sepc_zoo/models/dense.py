"""Dense detectors: classes and boxes of every anchor in one pass."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sepc_zoo.config import DetectorConfig
from sepc_zoo.methods.targets import check_targets, collate_targets
from sepc_zoo.models.detector import Detector, Target
from sepc_zoo.models.heads.dense import Head
from sepc_zoo.ops.anchors import existing_anchors, make_anchors
from sepc_zoo.ops.coders import decode
from sepc_zoo.ops.devices import to_device
from sepc_zoo.ops.nms import select_detections
from sepc_zoo.outputs import Anchors, Predictions, Terms


class DenseDetector(Detector):
    """A one-stage detector: one head over all levels of the pyramid."""

    def __init__(self, config: DetectorConfig, pretrained_backbone: bool | Path = False) -> None:
        config.method.check(config)
        super().__init__(config, pretrained_backbone)
        head: Any = config.head
        self.head = Head(
            config.channels,
            config.anchors.per_cell,
            config.num_classes,
            head,
            box_values=config.box_values,
            num_levels=len(config.fpn.strides),
        )

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
            image_sizes = known_image_sizes(targets)
            anchors = self.anchors(predictions.sizes, predictions.deltas, image_sizes)
            return self.method.loss(predictions, anchors, collated, self.config.coder)

    def loss_counts(
        self, image_size: tuple[int, int], targets: Sequence[Target]
    ) -> dict[str, Tensor] | None:
        like = self.head.cls.weight
        sizes = self.level_sizes(image_size)
        anchors = self.anchors(sizes, like, known_image_sizes(targets))
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

    def anchors(
        self,
        sizes: Sequence[tuple[int, int]],
        like: Tensor,
        image_sizes: Sequence[tuple[int, int]] | None = None,
    ) -> Anchors:
        """The anchors of a batch.

        Args:
            sizes: height and width of each level in cells.
            like: a tensor of the type and on the device of the anchors.
            image_sizes: height and width of each image inside the batch, pixels.
        """
        config, strides = self.config, self.config.fpn.strides
        exists = None
        if image_sizes is not None and not config.anchors.in_padding:
            multiple = config.weights.pad_multiple
            exists = existing_anchors(config.anchors, sizes, strides, image_sizes, multiple)
            exists = to_device(exists, like.device)
        return Anchors(
            make_anchors(config.anchors, sizes, strides, like.device, like.dtype),
            [height * width * config.anchors.per_cell for height, width in sizes],
            exists,
        )


def known_image_sizes(targets: Sequence[Target]) -> list[tuple[int, int]] | None:
    """Height and width of each image inside the batch, pixels; None where a target lacks them."""
    if any("image_size" not in target for target in targets):
        return None
    sizes = [target["image_size"] for target in targets]
    return [(int(height), int(width)) for height, width in sizes]
