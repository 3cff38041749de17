"""The detector: backbone, FPN, neck and head, and what a method makes of their predictions."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sepc_zoo.config import STRIDES, DetectorConfig
from sepc_zoo.inference.predictor import PredictMixin, detect
from sepc_zoo.methods import Method
from sepc_zoo.methods.losses import normalized
from sepc_zoo.methods.targets import check_targets, truth_of
from sepc_zoo.models.backbone import Backbone
from sepc_zoo.models.heads.dense import Head
from sepc_zoo.models.necks.fpn import FPN
from sepc_zoo.models.necks.sepc import build_neck
from sepc_zoo.ops.anchors import make_anchors
from sepc_zoo.ops.nms import select_detections
from sepc_zoo.outputs import Predictions


class Detector(PredictMixin, nn.Module):
    """A one-stage detector; ``create_model`` builds it by name.

    Attributes:
        config: all there is to know of it but its weights.
        method: its targets, losses and box coding.
    """

    def __init__(
        self, config: DetectorConfig, method: Method, pretrained_backbone: bool = False
    ) -> None:
        super().__init__()
        self.config = config
        self.method = method
        self.backbone = Backbone(config.backbone, pretrained_backbone, **config.backbone_kwargs)
        self.fpn = FPN(self.backbone.channels, config.channels)
        self.neck = build_neck(config.channels, config.neck)
        self.head = Head(
            config.channels,
            config.anchors.per_cell,
            config.num_classes,
            config.stacked_convs,
            box_bias=method.box_bias,
            box_activation=F.relu if method.positive_deltas else nn.Identity(),
        )

    @property
    def shrinks(self) -> bool:
        """Whether the neck's last convolutions have no padding, as in the authors' weights."""
        return self.config.neck is not None and self.config.neck.padding == 0

    def group_matcher(self, coarse: bool = False) -> Callable[[str], int]:  # noqa: ARG002
        """How timm's layer decay sees the model: the backbone's stages, then all else."""
        stages = self.backbone.stages()
        stage_of = {id(p): i for i, parameters in enumerate(stages) for p in parameters}
        group = {n: stage_of.get(id(p), len(stages)) for n, p in self.named_parameters()}
        return lambda name: group.get(name, len(stages))

    def forward(self, images: Tensor) -> Predictions:  # N, 3, H, W
        images = self.pad_small(images)
        pyramid = self.fpn(self.backbone(images))  # P3 ... P7
        cls_pyramid, box_pyramid = self.neck(pyramid)
        return self.head(cls_pyramid, box_pyramid)

    def pad_small(self, images: Tensor) -> Tensor:
        """Zeros to the right and below, where a side is too short for the pyramid.

        Where the neck's last convolutions have no padding, P7 must have 3x3 cells.
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"expected images (N, 3, H, W), got {tuple(images.shape)}")
        least, target = (257, 288) if self.shrinks else (32, 32)
        missing = [0 if side >= least else target - side for side in images.shape[-2:]]
        return F.pad(images, (0, missing[1], 0, missing[0])) if any(missing) else images

    def loss(
        self, predictions: Predictions, targets: Sequence[Mapping[str, Any]]
    ) -> dict[str, Tensor]:
        """The loss terms of the method; their sum is the loss.

        Under ``torch.distributed`` they are divided by the counts of all processes, so that the
        mean of the processes' gradients is that of the whole batch.

        Args:
            predictions: of N images.
            targets: for each image ``boxes (G, 4)`` in pixels of the batch, ``labels (G,)`` and,
                where known, ``iscrowd (G,)``: crowds are neither objects nor background.

        Raises:
            TargetError: a box has no area or lies outside of the image; names image and box.
        """
        return normalized(*self.loss_sums(predictions, targets))

    def loss_sums(
        self, predictions: Predictions, targets: Sequence[Mapping[str, Any]]
    ) -> tuple[dict[str, Tensor], Tensor]:
        """The terms of ``loss`` before they are divided, and this process's count ``()``."""
        if len(targets) != len(predictions.logits):
            raise ValueError(f"{len(targets)} targets for {len(predictions.logits)} images")
        rows, columns = predictions.sizes[0]
        lost = 2 if self.shrinks else 0  # cells that the neck cut off
        extent = ((rows + lost) * STRIDES[0], (columns + lost) * STRIDES[0])
        check_targets(targets, self.config.num_classes, extent)
        with torch.autocast(predictions.logits.device.type, enabled=False):
            predictions = full_precision(predictions)
            truths = [truth_of(target, like=predictions.deltas) for target in targets]
            return self.method.loss_sums(predictions, self.anchors(predictions), truths)

    def postprocess(
        self, predictions: Predictions, image_sizes: Sequence[tuple[int, int]]
    ) -> list[dict[str, Tensor]]:
        """``boxes (D, 4)``, ``scores (D,)``, ``labels (D,)`` of each image, by falling score.

        Args:
            image_sizes: height and width of each image inside the batch; boxes are clipped to it.
        """
        predictions = full_precision(predictions)
        return select_detections(
            predictions,
            self.anchors(predictions),
            self.method.decode,
            image_sizes,
            self.config.postprocess,
            border=1.0 if self.config.inclusive_boxes else 0.0,
        )

    def anchors(self, predictions: Predictions) -> Tensor:
        """The anchors ``(A, 4)`` that the predictions are about, in pixels."""
        logits = predictions.logits
        return make_anchors(self.config.anchors, predictions.sizes, logits.device, logits.dtype)

    def detect(self, images: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        """Find objects in inputs ``(3, h, w)`` in 0…255, in the pixels of each input."""
        return detect(self, images)


def full_precision(predictions: Predictions) -> Predictions:
    """Predictions in float32, or float64 where they are: losses and boxes need the range."""
    dtype = torch.promote_types(predictions.logits.dtype, torch.float32)
    return predictions._replace(
        logits=predictions.logits.to(dtype), deltas=predictions.deltas.to(dtype)
    )
