"""The base class of all detectors: one contract for every family."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sepc_zoo.config import DetectorConfig, override
from sepc_zoo.inference.detections import DetectionDict
from sepc_zoo.inference.predictor import detect, predict, stream
from sepc_zoo.methods.losses import mean_terms
from sepc_zoo.methods.targets import check_targets, collate_targets, known_image_sizes
from sepc_zoo.models.backbone import Backbone
from sepc_zoo.models.necks import build_neck
from sepc_zoo.models.necks.fpn import FPN
from sepc_zoo.ops.anchors import existing_anchors, make_anchors
from sepc_zoo.ops.devices import to_device
from sepc_zoo.outputs import Anchors, Terms
from sepc_zoo.registry import with_classes

Target = Mapping[str, Any]


class Detector(nn.Module):
    """Backbone, FPN, neck and loss, which all families share; ``create_model`` builds it by name.

    A family adds its head, ``forward``, ``postprocess`` and ``reset_head``.

    Attributes:
        config: the complete description of the detector, but for its weights.
        method: hyperparameters of matching and losses.
    """

    predict = predict
    stream = stream

    def __init__(self, config: DetectorConfig, pretrained_backbone: bool | Path = False) -> None:
        super().__init__()
        self.config = config
        self.method: Any = config.method
        strides = config.fpn.strides
        feature_strides = [stride for stride in strides if stride <= 32]
        self.backbone = Backbone(config.backbone, feature_strides, pretrained_backbone)
        self.fpn = FPN(self.backbone.channels, config.channels, config.fpn)
        self.neck = build_neck(config.channels, config.neck)
        self.cropped_cells = config.neck.cropped_cells
        # A neck that crops needs 3x3 cells on the coarsest level.
        self.min_side = 2 * strides[-1] + 1 if self.cropped_cells else 32

    def forward(self, images: Tensor, targets: Sequence[Target] | None = None) -> Any:
        """Compute the raw outputs for a batch of images, of one type in train and eval mode.

        Args:
            images: ``(N, 3, H, W)``, normalised.
            targets: the ground truth as in ``loss``; only families that sample in training read it.
        """
        raise NotImplementedError

    def loss_terms(self, outputs: Any, targets: Sequence[Target]) -> Terms:
        """The terms of ``loss`` as sums over this process's images, and the counts to divide by.

        Args:
            outputs: what ``forward`` returned for N images.
            targets: as in ``loss``: ``boxes (G, 4)`` in pixels, ``labels (G,)``.

        Raises:
            ValueError: there are not as many targets as images.
            TargetError: a box or label cannot be learned from; names image and box.
        """
        if len(targets) != len(outputs.logits):
            raise ValueError(f"{len(targets)} targets for {len(outputs.logits)} images")
        check_targets(targets, self.config.num_classes, self._extent(outputs.sizes))
        with torch.autocast(outputs.logits.device.type, enabled=False):
            predictions = outputs.in_full_precision()
            sizes, like = predictions.sizes, predictions.deltas
            anchors = self.anchors(sizes, like, known_image_sizes(targets))
            collated = collate_targets(targets, like)
            return self.method.loss(predictions, anchors, collated, *self.coders)

    @property
    def coders(self) -> tuple[Any, ...]:
        """The box coders that the method's loss takes."""
        return (self.config.coder,)

    def anchors(
        self,
        sizes: Sequence[tuple[int, int]],
        like: Tensor,
        image_sizes: Sequence[tuple[int, int]] | None = None,
    ) -> Anchors:
        """The anchors of a batch: ``boxes (A, 4)`` in pixels, and which of them exist ``(N, A)``.

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

    def postprocess(
        self, outputs: Any, image_sizes: Sequence[tuple[int, int]]
    ) -> list[dict[str, Tensor]]:
        """``boxes (D, 4)``, ``scores (D,)``, ``labels (D,)`` of each image, by falling score.

        Args:
            outputs: what ``forward`` returned for N images.
            image_sizes: height and width of each image inside the batch, in pixels as the boxes,
                which are clipped to it.
        """
        raise NotImplementedError

    def reset_head(self, old_index: Sequence[int | None]) -> None:
        """Make new layers for classes.

        Args:
            old_index: for each new class the old one whose weights it keeps, or None.
        """
        raise NotImplementedError

    def loss(self, outputs: Any, targets: Sequence[Target]) -> dict[str, Tensor]:
        """The loss terms of the method; their sum is the loss.

        Under ``torch.distributed`` they are divided by the counts of all processes, so that the
        mean of the processes' gradients is that of the whole batch.

        Args:
            outputs: what ``forward`` returned for N images.
            targets: for each image ``boxes (G, 4)`` in pixels of the batch, ``labels (G,)`` and,
                where known, ``iscrowd (G,)``: crowds are neither objects nor background; with
                ``weights (G,)`` the loss of a box's own class counts so many times.

        Raises:
            TargetError: a box has no area or lies outside of the image; names image and box.
        """
        return mean_terms(self.loss_terms(outputs, targets))

    def loss_counts(
        self,
        image_size: tuple[int, int],  # noqa: ARG002
        targets: Sequence[Target],  # noqa: ARG002
    ) -> dict[str, Tensor] | None:
        """The counts of ``loss_terms``, where they depend on the targets alone; else None.

        Args:
            image_size: height and width of the batch, pixels.
            targets: as in ``loss``: ``boxes (G, 4)`` in pixels, ``labels (G,)``.
        """
        return None

    def forward_layers(self, images: Tensor) -> None:
        """Run every layer at its largest size without reading values, to count operations.

        Args:
            images: ``(N, 3, H, W)``, on the meta device.
        """
        self(images)

    def forward_features(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Compute the pyramids for classes and for boxes that the head reads.

        Args:
            images: ``(N, 3, H, W)``, normalised.
        """
        pyramid = self.fpn(self.backbone(self.pad_small(images)))  # P3 ... P7
        return self.neck(pyramid)

    def pad_small(self, images: Tensor) -> Tensor:
        """Pad images that are too small for the pyramid, to the right and below.

        Args:
            images: ``(N, 3, H, W)``.

        Raises:
            ValueError: they are no batch of images with the model's number of channels.
        """
        channels = self.config.backbone.in_chans
        if images.ndim != 4 or images.shape[1] != channels:
            raise ValueError(
                f"expected images (N, {channels}, H, W), got {tuple(images.shape)}; another number "
                'of channels needs a model with backbone_kwargs={"in_chans": C}'
            )
        height, width = images.shape[-2:]
        missing = [self._padded_side(side) - side for side in (width, height)]
        return F.pad(images, (0, missing[0], 0, missing[1])) if any(missing) else images

    def _padded_side(self, side: int) -> int:
        return side if side >= self.min_side else -(-self.min_side // 32) * 32

    def level_sizes(self, image_size: tuple[int, int]) -> tuple[tuple[int, int], ...]:
        """Height and width in cells of each level of the head.

        Args:
            image_size: height and width of the batch, pixels.
        """
        multiple = 1 if self.backbone.rounds_up else self.backbone.max_stride
        height, width = (-(-self._padded_side(side) // multiple) * multiple for side in image_size)
        lost = 2 * self.cropped_cells
        return tuple(
            (-(-height // s) - lost, -(-width // s) - lost) for s in self.config.fpn.strides
        )

    def _extent(self, sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
        """Height and width of the batch in pixels, from the cells of the finest level."""
        (height, width), stride, lost = sizes[0], self.config.fpn.strides[0], 2 * self.cropped_cells
        return (height + lost) * stride, (width + lost) * stride

    def reset_classifier(
        self, label_names: Sequence[str], category_ids: Sequence[int] | None = None
    ) -> None:
        """Change the classes; those of the same name keep what they have learned.

        Args:
            label_names: names of the K new classes; their number alone is not enough.
            category_ids: their ids in the data set; 1 ... K unless the old classes have them all.

        Raises:
            ConfigError: the names are no list of different strings.
        """
        old = {name: i for i, name in enumerate(self.config.label_names)}
        config = with_classes(self.config, None, label_names)
        if category_ids is not None:
            config = override(config, {"category_ids": tuple(category_ids)})
        if config.label_names != self.config.label_names:
            self.reset_head([old.get(name) for name in config.label_names])
        self.config = config

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute blocks of backbone, neck and head in the backward pass; do not store them.

        Trainable batch norms of the backbone see each batch twice, as everywhere in timm. Of neck
        and head, modules with ``grad_checkpointing`` are recomputed, see ``models.recompute``.

        Args:
            enable: False stores them again.
        """
        self.backbone.body.set_grad_checkpointing(enable)
        for name, part in self.named_children():
            for module in part.modules() if name != "backbone" else ():
                if hasattr(module, "grad_checkpointing"):
                    setattr(module, "grad_checkpointing", enable)  # noqa: B010

    def group_matcher(self, coarse: bool = False) -> Callable[[str], int]:  # noqa: ARG002
        """Layer groups for timm's layer decay: the backbone's stages, then the rest.

        Args:
            coarse: of timm's interface; there is one division only.
        """
        stages = self.backbone.stages()
        stage_of = {id(p): i for i, parameters in enumerate(stages) for p in parameters}
        group = {n: stage_of.get(id(p), len(stages)) for n, p in self.named_parameters()}
        return lambda name: group.get(name, len(stages))

    def detect(self, images: Sequence[Tensor]) -> list[DetectionDict]:
        """The detections of images, in their own pixels, by falling score.

        Args:
            images: ``(3, h, w)`` uint8, of any sizes.
        """
        return detect(self, images)
