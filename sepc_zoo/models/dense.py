"""Dense detectors: classes and boxes of every anchor in one pass."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from sepc_zoo.config import DetectorConfig
from sepc_zoo.methods.targets import collate_targets, known_image_sizes
from sepc_zoo.models.detector import Detector, Target
from sepc_zoo.models.heads.dense import Head
from sepc_zoo.ops.coders import decode
from sepc_zoo.ops.nms import select_detections
from sepc_zoo.outputs import Predictions


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

    def loss_counts(
        self, image_size: tuple[int, int], targets: Sequence[Target]
    ) -> dict[str, Tensor] | None:
        like = self.head.cls.weight
        anchors = self.anchors(self.level_sizes(image_size), like, known_image_sizes(targets))
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
