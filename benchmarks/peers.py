"""Detectors of torchvision and transformers on timm's MobileNetV2, trained as their authors do.

The recipe of torchvision's ``references/detection``: SGD with momentum 0.9 and weight decay 1e-4,
learning rate 0.02 (Faster R-CNN) or 0.01 (RetinaNet, FCOS) for 16 images a step, here in proportion
to the batch; a warm-up over the first epoch, a tenth of the rate after 16/26 and 22/26 of it,
mirrored images. That of RT-DETR (Zhao et al. 2024, appendix A; ``pip install transformers``): AdamW
with 1e-4, weight decay 1e-4, gradients clipped at 0.1, 256 channels, images stretched to the size;
its warm-up of 2,000 steps is cut to a tenth of the run, crops and colours are left out. ``adamw:``
takes AdamW with 1e-3 and a cosine instead, which short runs learn more with.
"""

import itertools
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign, box_convert
from torchvision.ops.feature_pyramid_network import (
    FeaturePyramidNetwork,
    LastLevelMaxPool,
    LastLevelP6P7,
)

from sepc_zoo.data import Annotations, Record, read_data
from sepc_zoo.data.images import read_image
from sepc_zoo.evaluation.metrics import evaluate
from sepc_zoo.evaluation.results import collect_detections
from sepc_zoo.factory import create_model, load_backbone

RT_DETR = "transformers:rtdetr"
PEERS = [
    f"{prefix}{name}"
    for prefix in ("", "adamw:")
    for name in ("torchvision:retinanet", "torchvision:fcos", "torchvision:fasterrcnn", RT_DETR)
]
CHANNELS = 64  # channels of every level in the study
MOBILENET = {"pad_type": "same", "bn_eps": 1e-3}  # arguments of timm that the weights need
WARMUP_FACTOR = 1e-3
Size = tuple[int, int]
MILESTONES = (16 / 26, 22 / 26)


class FrozenBody(nn.Module):
    """timm's backbone, whose weights and statistics of batch norms stay."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body.requires_grad_(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        return self.body(images)

    def train(self, mode: bool = True) -> "FrozenBody":  # noqa: ARG002
        return super().train(False)


class Pyramid(nn.Module):
    """A backbone under torchvision's feature pyramid."""

    def __init__(self, body: nn.Module, in_channels: list[int], extra: nn.Module) -> None:
        super().__init__()
        self.body = FrozenBody(body)
        self.fpn = FeaturePyramidNetwork(in_channels, CHANNELS, extra)
        self.out_channels = CHANNELS

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return self.fpn(OrderedDict((str(i), x) for i, x in enumerate(self.body(images))))


class MaskedBody(FrozenBody):
    """A backbone as transformers has it: each map with a mask of the cells that are no padding."""

    def forward(self, images: Tensor, mask: Tensor) -> list[tuple[Tensor, Tensor]]:  # type: ignore[override]
        return [(x, mask.new_ones(len(x), *x.shape[-2:]).bool()) for x in self.body(images)]


class RTDetr(nn.Module):
    """transformers' RT-DETR with the interface of torchvision's detectors."""

    def __init__(self, body: nn.Module, in_channels: list[int], num_classes: int, size: Size):
        from transformers import RTDetrConfig, RTDetrForObjectDetection, TimmBackboneConfig

        super().__init__()
        trunk = TimmBackboneConfig(backbone="mobilenetv2_100", out_indices=(2, 3, 4))
        self.size = size  # height and width, pixels
        self.network = RTDetrForObjectDetection(
            RTDetrConfig(
                backbone_config=trunk, encoder_in_channels=in_channels, num_labels=num_classes
            )
        )
        self.network.model.backbone = MaskedBody(body)

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None) -> Any:
        pixels = torch.cat([F.interpolate(x[None], self.size, mode="bilinear") for x in images])
        labels = targets and [self.to_label(*pair) for pair in zip(images, targets, strict=True)]
        outputs = self.network((pixels - 0.5) / 0.5, labels=labels)
        if targets:
            return {"loss": outputs.loss}
        scores, order = outputs.logits.sigmoid().flatten(1).topk(100)
        boxes = box_convert(outputs.pred_boxes, "cxcywh", "xyxy")
        num_classes = outputs.logits.shape[-1]
        return [
            {
                "boxes": boxes[i][chosen // num_classes] * sides(image),
                "labels": chosen % num_classes,
                "scores": scores[i],
            }
            for i, (image, chosen) in enumerate(zip(images, order, strict=True))
        ]

    @staticmethod
    def to_label(image: Tensor, target: dict[str, Tensor]) -> dict[str, Tensor]:
        boxes = box_convert(target["boxes"] / sides(image), "xyxy", "cxcywh")
        return {"boxes": boxes, "class_labels": target["labels"]}


def sides(image: Tensor) -> Tensor:
    """Width, height, width, height in pixels."""
    return torch.tensor(image.shape[:-3:-1] * 2)


def build_peer(
    name: str,
    num_classes: int,
    image_size: tuple[int, int],
    base_scale: float,
    checkpoint: str | None,
) -> nn.Module:
    """Build a detector with the frozen backbone and anchors of the study."""
    # P2 is missing in this backbone's features as the study uses them, also for Faster R-CNN
    donor = create_model("retinanet_mnv2_fpn", num_classes=1, backbone_kwargs=MOBILENET)
    if checkpoint:
        load_backbone(donor, checkpoint)
    in_channels = [conv.in_channels for conv in donor.fpn.lateral]
    if name.endswith(RT_DETR):
        return RTDetr(donor.backbone, in_channels, num_classes, image_size)
    kind = name.partition("torchvision:")[2]
    two_stage = kind == "fasterrcnn"
    extra = LastLevelMaxPool() if two_stage else LastLevelP6P7(CHANNELS, CHANNELS)
    backbone = Pyramid(donor.backbone, in_channels, extra)
    strides = (8, 16, 32, 64, 128)[: 4 if two_stage else 5]
    octave = [2 ** (i / 3) for i in range(3)]
    common: dict[str, Any] = {
        "min_size": image_size[0],
        "max_size": image_size[1],
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    if kind == "retinanet":
        sides = tuple(tuple(base_scale * s * o for o in octave) for s in strides)
        anchors = AnchorGenerator(sides, ((0.5, 1.0, 2.0),) * len(strides))
        return detection.RetinaNet(backbone, num_classes, anchor_generator=anchors, **common)
    if kind == "fcos":
        return detection.FCOS(backbone, num_classes, **common)
    sides = tuple((2 * base_scale * s,) for s in strides)
    anchors = AnchorGenerator(sides, ((0.5, 1.0, 2.0),) * len(strides))
    names = [str(i) for i in range(3)]
    return detection.FasterRCNN(
        backbone,
        num_classes + 1,  # torchvision counts the background
        rpn_anchor_generator=anchors,
        box_roi_pool=MultiScaleRoIAlign(names, output_size=7, sampling_ratio=2),
        **common,
    )


def train_peer(
    name: str,
    data: str,
    image_size: tuple[int, int],
    base_scale: float,
    checkpoint: str | None,
    steps: int,
    seed: int,
    batch_size: int,
) -> dict[str, Any]:
    """Train and validate a peer; return COCO's figures."""
    torch.manual_seed(seed)
    annotations = read_data(data, "train")
    model = build_peer(name, len(annotations.label_names), image_size, base_scale, checkpoint)
    background = int(isinstance(model, detection.FasterRCNN))
    optimizer, scheduler = make_optimizer(model, name, steps, len(annotations.records), batch_size)
    model.train()
    for images, targets in itertools.islice(batches(annotations, batch_size, background), steps):
        loss = sum(model(images, targets).values())
        optimizer.zero_grad()
        loss.backward()
        if isinstance(model, RTDetr):
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        scheduler.step()
    return validate_peer(model, read_data(data, "val"), background)


def make_optimizer(
    model: nn.Module, name: str, steps: int, num_images: int, batch_size: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    parameters = [p for p in model.parameters() if p.requires_grad]
    warmup = min(1000, max(1, num_images // batch_size - 1))
    rates = torch.optim.lr_scheduler
    if name.startswith("adamw:"):
        adamw = torch.optim.AdamW(parameters, lr=1e-3)
        return adamw, rates.CosineAnnealingLR(adamw, steps)
    if name == RT_DETR:
        adamw = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=1e-4)
        return adamw, rates.LinearLR(adamw, 1e-3, total_iters=steps // 10)
    lr = (0.02 if isinstance(model, detection.FasterRCNN) else 0.01) * batch_size / 16
    sgd = torch.optim.SGD(parameters, lr=lr, momentum=0.9, weight_decay=1e-4)

    def factor(step: int) -> float:
        rising = WARMUP_FACTOR + (1 - WARMUP_FACTOR) * min(1.0, step / warmup)
        return rising * 0.1 ** sum(step >= part * steps for part in MILESTONES)

    return sgd, rates.LambdaLR(sgd, factor)


Sample = tuple[list[Tensor], list[dict[str, Tensor]]]


def batches(annotations: Annotations, batch_size: int, background: int) -> Iterator[Sample]:
    """Yield shuffled batches of mirrored images for ever; images without boxes are left out."""
    records = [record for record in annotations.records if not_crowd(record).any()]
    while True:
        order = torch.randperm(len(records)).tolist()
        for chunk in range(0, len(order) - batch_size + 1, batch_size):
            samples = [load(records[i], background) for i in order[chunk : chunk + batch_size]]
            yield [image for image, _ in samples], [target for _, target in samples]


def load(record: Record, background: int) -> tuple[Tensor, dict[str, Tensor]]:
    image, kept = read_image(record.path).float() / 255, not_crowd(record)
    boxes, labels = record.boxes[kept], record.labels[kept] + background
    if torch.rand(()) < 0.5:
        image, boxes = image.flip(-1), boxes.clone()
        boxes[:, [0, 2]] = image.shape[-1] - boxes[:, [2, 0]]
    return image, {"boxes": boxes, "labels": labels}


def not_crowd(record: Record) -> Tensor:
    """Boxes that torchvision can learn: no crowds, none without area."""
    sides = record.boxes[:, 2:] - record.boxes[:, :2]
    return (record.iscrowd == 0) & (sides > 0).all(dim=1)


@torch.no_grad()
def validate_peer(model: nn.Module, annotations: Annotations, background: int) -> dict[str, Any]:
    model.eval()
    results: list[dict[str, Any]] = []
    for record in annotations.records:
        (found,) = model([read_image(record.path).float() / 255])
        bbox = box_convert(found["boxes"], "xyxy", "xywh").tolist()
        labels = (found["labels"] - background).tolist()
        for box, label, score in zip(bbox, labels, found["scores"].tolist(), strict=True):
            category = annotations.category_ids[label]
            results.append(
                {
                    "image_id": record.image_id,
                    "category_id": category,
                    "bbox": box,
                    "score": score,
                }
            )
    return evaluate(collect_detections(results, annotations), annotations).metrics
