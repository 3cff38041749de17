"""The detector: backbone, FPN, neck and head, and what a method makes of their predictions."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sepc_zoo.config import STRIDES, DetectorConfig
from sepc_zoo.data.images import normalize, pad_and_stack, padded_size
from sepc_zoo.inference.detections import Detections
from sepc_zoo.inference.preprocess import Photo, open_photos
from sepc_zoo.inference.tta import PLAIN, Views, look
from sepc_zoo.methods import Method
from sepc_zoo.methods.losses import normalized
from sepc_zoo.methods.targets import check_targets, truth_of
from sepc_zoo.models.backbone import Backbone
from sepc_zoo.models.heads.dense import Head
from sepc_zoo.models.necks.fpn import FPN
from sepc_zoo.models.necks.sepc import build_neck
from sepc_zoo.ops.anchors import make_anchors
from sepc_zoo.ops.devices import to_device
from sepc_zoo.ops.nms import select_detections
from sepc_zoo.outputs import Predictions


class Detector(nn.Module):
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

    @torch.no_grad()
    def predict(self, source: Any, score_threshold: float = 0.3, views: Views = PLAIN) -> Any:
        """What the model sees in photos, in eval mode.

        Args:
            source: an image file, PIL image, ndarray ``(H, W)`` or ``(H, W, 3)``, or tensor
                ``(1, H, W)`` or ``(3, H, W)``, of uint8, uint16 or float in 0..1; or a folder, a
                list of these or a tensor ``(N, 3, H, W)``, which give a list.
            score_threshold: least score of a detection; those under the config's
                ``postprocess.score_threshold`` are gone before.
            views: mirror images and sizes to look at each photo in (test-time augmentation).

        Returns:
            ``Detections`` in the photo's pixels, or a list of them.

        Raises:
            ImageError: a file is no readable image. In a folder it is left out with a warning.
        """
        photos, single = open_photos(source)
        training = [module for module in self.modules() if module.training]
        self.eval()
        try:
            found = [self.predict_photo(photo, score_threshold, views) for photo in photos]
        finally:  # one by one, as a frozen backbone stays in eval mode
            for module in training:
                module.training = True
        return found[0] if single else found

    def predict_photo(
        self, photo: Photo, score_threshold: float, views: Views = PLAIN
    ) -> Detections:
        """One photo; the model is in eval mode."""
        inputs = views.inputs(photo, self.config.weights)
        found = look(self.detect, [inputs], self.config)[0]
        return Detections.of(found, score_threshold, self.config, photo.path or photo.pixels)

    def detect(self, images: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        """What is in each image ``(3, h, w)`` uint8, in its own pixels, by falling score.

        Images that have one size when padded go through the network together. Others do not: more
        padding than an image needs changes what is seen in it, and so would its neighbours.
        """
        weight, expected = self.head.cls.weight, self.config.weights
        precision = torch.promote_types(weight.dtype, torch.float32)
        same_size = defaultdict(list)
        for i, image in enumerate(images):
            same_size[padded_size(image, expected.pad_multiple)].append(i)
        found: dict[int, dict[str, Tensor]] = {}
        for indices in same_size.values():
            group = [to_device(images[i], weight.device) for i in indices]
            sizes = [(image.shape[-2], image.shape[-1]) for image in group]
            batch = pad_and_stack(group, expected.pad_multiple)
            batch = normalize(batch, sizes, expected.mean, expected.std, precision)
            seen = self.postprocess(self(batch.to(weight.dtype)), sizes)
            found.update(zip(indices, seen, strict=True))
        return [found[i] for i in range(len(images))]


def full_precision(predictions: Predictions) -> Predictions:
    """Predictions in float32, or float64 where they are: losses and boxes need the range."""
    dtype = torch.promote_types(predictions.logits.dtype, torch.float32)
    return predictions._replace(
        logits=predictions.logits.to(dtype), deltas=predictions.deltas.to(dtype)
    )
