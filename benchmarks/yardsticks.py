"""Yardsticks for ``sepc-zoo benchmark``: importing this module makes their names known to it.

- ``plain:NAME`` is one of our models as the original code computes it (``plain.py``);
- ``fused:NAME`` uses the fused kernel of deformable convolution, on a GPU;
- ``torchvision:retinanet_resnet50_fpn`` is torchvision's RetinaNet.
"""

from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import retinanet_resnet50_fpn
from torchvision.models.detection.image_list import ImageList

from benchmarks.plain import PlainSEPC, plain_loss, plain_postprocess
from sepc_zoo.config import SEPCNeck
from sepc_zoo.errors import ConfigError
from sepc_zoo.evaluation.speed import BUILDERS, Setting, new_detector, scale_logits
from sepc_zoo.models.necks.sepc import LevelConv2d
from sepc_zoo.ops.coders import decode
from sepc_zoo.outputs import Predictions

TORCHVISION_NAME = "torchvision:retinanet_resnet50_fpn"


def build_plain(name: str, setting: Setting) -> nn.Module:
    detector: Any = new_detector(name.removeprefix("plain:"), setting)
    config = detector.config
    if isinstance(config.neck, SEPCNeck):
        detector.neck = PlainSEPC(detector.neck)

    def anchors(predictions: Predictions) -> Tensor:
        return detector.anchors(predictions.sizes, like=predictions.deltas).boxes

    def postprocess(predictions: Predictions, sizes: list[tuple[int, int]]) -> Any:
        decode_boxes, predictions = partial(decode, config.coder), predictions.in_full_precision()
        return plain_postprocess(
            predictions, anchors(predictions), decode_boxes, sizes, config.postprocess
        )

    def loss(predictions: Predictions, targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        predictions = predictions.in_full_precision()
        return plain_loss(config, predictions, anchors(predictions), targets)

    detector.postprocess, detector.loss = postprocess, loss
    return detector


def build_fused(name: str, setting: Setting) -> nn.Module:
    detector = new_detector(name.removeprefix("fused:"), setting)
    for module in detector.modules():
        if isinstance(module, LevelConv2d):
            module.fused = True
    return detector


def build_torchvision(name: str, setting: Setting) -> nn.Module:
    if name != TORCHVISION_NAME:
        raise ConfigError(f"{name}: of torchvision's models only {TORCHVISION_NAME} is measured")
    torch.manual_seed(0)
    model: Any = retinanet_resnet50_fpn(weights=None, weights_backbone=None).to(setting.device)
    network = TorchvisionNetwork(model)
    scale_logits(model.head.classification_head.cls_logits, network)
    return network


class TorchvisionNetwork(nn.Module):
    """torchvision's detector from after its preprocessing, with the interface of ours."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.config = SimpleNamespace(
            num_classes=model.head.classification_head.num_classes,
            backbone=SimpleNamespace(in_chans=3),
        )

    def forward(self, images: Tensor) -> tuple[list[Tensor], ImageList, dict[str, Tensor]]:
        maps = list(self.model.backbone(images).values())
        sizes = [(images.shape[-2], images.shape[-1])] * len(images)
        return maps, ImageList(images, sizes), self.model.head(maps)

    def postprocess(self, outputs: Any, image_sizes: list[tuple[int, int]]) -> Any:
        maps, images, head = outputs
        cells = [x.shape[2] * x.shape[3] * 9 for x in maps]
        anchors = [a.split(cells) for a in self.model.anchor_generator(images, maps)]
        levels = {key: list(value.split(cells, dim=1)) for key, value in head.items()}
        return self.model.postprocess_detections(levels, anchors, image_sizes)

    def loss(self, outputs: Any, targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        maps, images, head = outputs
        return self.model.compute_loss(targets, head, self.model.anchor_generator(images, maps))


BUILDERS |= {"plain": build_plain, "fused": build_fused, "torchvision": build_torchvision}
