"""What a benchmark compares: our models, the plain reading of them, and torchvision's RetinaNet."""

import importlib.util
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models.detection import retinanet_resnet50_fpn
from torchvision.models.detection.image_list import ImageList

from sepc_zoo.config import ConfigError
from sepc_zoo.factory import create_model
from sepc_zoo.methods.targets import truth_of
from sepc_zoo.models.detector import Detector
from sepc_zoo.models.necks.sepc import LevelConv2d

PLAIN_PREFIX, FUSED_PREFIX = "plain:", "fused:"
TORCHVISION_NAME = "torchvision:retinanet_resnet50_fpn"
PRECISIONS = {"float32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
# New weights are given what trained ones have, on which their speed depends.
LOGIT_DEVIATION = 0.7  # a few thousand scores over the threshold in an image
OFFSET_DEVIATION = 1.0  # pixels


@dataclass(frozen=True)
class Setting:
    """What all models of a comparison are given."""

    batch_size: int = 1
    height: int = 640  # pixels
    width: int = 640
    precision: str = "float32"
    compile: str = ""  # a mode of torch.compile, or none
    channels_last: bool = False
    device: str = "cpu"

    @property
    def image_sizes(self) -> list[tuple[int, int]]:
        return [(self.height, self.width)] * self.batch_size

    def autocast(self) -> AbstractContextManager[Any]:
        dtype = PRECISIONS[self.precision]
        return torch.autocast(self.device, dtype, enabled=dtype is not None)


class Subject(NamedTuple):
    """A model to be measured."""

    network: nn.Module  # images (N, 3, H, W) -> what the two others take
    postprocess: Callable[[Any], Any]
    loss: Callable[[Any, list[dict[str, Tensor]]], Tensor]
    num_classes: int
    detector: Detector | None = None  # of which parts can be measured


def build_subject(name: str, setting: Setting) -> Subject:
    """A new model, also ``fused:`` or ``plain:`` and its name, or torchvision's RetinaNet.

    Raises:
        ConfigError: the name means none of them.
    """
    torch.manual_seed(0)
    if name.startswith("torchvision:"):
        subject = _torchvision_subject(name, setting)
    else:
        short_name = name.removeprefix(PLAIN_PREFIX).removeprefix(FUSED_PREFIX)
        detector = create_model(short_name).to(setting.device)
        resemble_trained(detector)
        if name.startswith(FUSED_PREFIX):
            use_fused_kernel(detector)
        make = _plain_subject if name.startswith(PLAIN_PREFIX) else _our_subject
        subject = make(detector, setting)
    if setting.channels_last:
        subject.network.to(memory_format=torch.channels_last)
    if setting.compile:
        subject.network.compile(mode=setting.compile)
    return subject


def use_fused_kernel(detector: Detector) -> None:
    for module in detector.modules():
        if isinstance(module, LevelConv2d):
            module.fused = True


def _our_subject(detector: Detector, setting: Setting) -> Subject:
    def postprocess(predictions: Any) -> Any:
        return detector.postprocess(predictions, setting.image_sizes)

    def loss(predictions: Any, targets: list[dict[str, Tensor]]) -> Tensor:
        return _sum(detector.loss(predictions, targets))

    return Subject(detector, postprocess, loss, detector.config.num_classes, detector)


def _plain_subject(detector: Detector, setting: Setting) -> Subject:
    plain = _load_plain()
    if detector.config.neck is not None:
        detector.neck = plain.PlainNeck(detector.neck)
    method = detector.method

    def postprocess(predictions: Any) -> Any:
        anchors, sizes = detector.anchors(predictions), setting.image_sizes
        limits = detector.config.postprocess
        return plain.plain_postprocess(predictions, anchors, method.decode, sizes, limits)

    def loss(predictions: Any, targets: list[dict[str, Tensor]]) -> Tensor:
        truths = [truth_of(target, like=predictions.deltas) for target in targets]
        anchors = detector.anchors(predictions)
        return _sum(plain.plain_loss(method, predictions, anchors, truths))

    return Subject(detector, postprocess, loss, detector.config.num_classes, detector)


def _load_plain() -> ModuleType:
    """``benchmarks/plain.py``, which is part of the repository and not of the package."""
    path = Path(__file__).parents[2] / "benchmarks" / "plain.py"
    spec = importlib.util.spec_from_file_location("plain", path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise ConfigError(f"{PLAIN_PREFIX} needs {path}: run this in a clone of the repository")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _torchvision_subject(name: str, setting: Setting) -> Subject:
    if name != TORCHVISION_NAME:
        raise ConfigError(f"{name}: of torchvision's models only {TORCHVISION_NAME} is measured")
    model: Any = retinanet_resnet50_fpn(weights=None, weights_backbone=None).to(setting.device)
    network = _TorchvisionNetwork(model)
    scale_logits(model.head.classification_head.cls_logits, network)

    def postprocess(outputs: Any) -> Any:
        maps, images, head = outputs
        cells = [x.shape[2] * x.shape[3] * 9 for x in maps]
        anchors = [a.split(cells) for a in model.anchor_generator(images, maps)]
        levels = {key: list(value.split(cells, dim=1)) for key, value in head.items()}
        return model.postprocess_detections(levels, anchors, images.image_sizes)

    def loss(outputs: Any, targets: list[dict[str, Tensor]]) -> Tensor:
        maps, images, head = outputs
        return _sum(model.compute_loss(targets, head, model.anchor_generator(images, maps)))

    return Subject(network, postprocess, loss, model.head.classification_head.num_classes)


class _TorchvisionNetwork(nn.Module):
    """What stands between torchvision's preprocessing and its anchors."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[list[Tensor], ImageList, dict[str, Tensor]]:
        maps = list(self.model.backbone(images).values())
        sizes = [(images.shape[-2], images.shape[-1])] * len(images)
        return maps, ImageList(images, sizes), self.model.head(maps)


def _sum(terms: dict[str, Tensor]) -> Tensor:
    return torch.stack([*terms.values()]).sum()


@torch.no_grad()
def resemble_trained(detector: Detector) -> None:
    """Give a new model offsets of about a pixel, and the scores of a trained one."""
    for module in detector.modules():
        if isinstance(module, LevelConv2d) and module.offset is not None:
            nn.init.normal_(module.offset.bias, std=OFFSET_DEVIATION)  # type: ignore[arg-type]
    scale_logits(detector.head.cls, detector)


@torch.no_grad()
def scale_logits(last: nn.Conv2d, network: nn.Module) -> None:
    """Scale the last convolution such that the logits vary as those of a trained model."""
    seen: list[Tensor] = []
    hook = last.register_forward_hook(lambda *call: seen.append(call[-1].flatten()))
    network.eval()(torch.randn(1, 3, 320, 320, device=last.weight.device))
    hook.remove()
    last.weight.mul_(LOGIT_DEVIATION / torch.cat(seen).std())
