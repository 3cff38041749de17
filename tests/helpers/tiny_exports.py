"""Detectors small enough to export in tests, and a format that runs in PyTorch itself."""

import json

import torch

from sepc_zoo.evaluation.speed import scale_logits
from sepc_zoo.export.graph import DetectionGraph
from sepc_zoo.export.loaded import ExportedModel
from sepc_zoo.export.metadata import describe
from sepc_zoo.factory import create_model
from sepc_zoo.models.dense import DenseDetector
from sepc_zoo.models.necks.sepc import LevelConv2d

METHODS = ("retinanet", "freeanchor", "fsaf", "atss", "gfl", "fcos", "fasterrcnn")
LABELS = ("cat", "dog", "bird", "fish")
SMALL_HEAD = {"rpn": {"max_proposals": 60}, "roi": {"width": 32, "size": 3}}


def tiny_detector(name, **changes):
    """A detector of a method and a neck with random weights, which finds a few dozen objects."""
    method, _, neck = name.partition("_")
    if method == "fasterrcnn":
        changes["head"] = {**SMALL_HEAD, **changes.get("head", {})}
    torch.manual_seed(0)
    model = create_model(f"{method}_test_resnet_{neck}", label_names=LABELS, channels=16, **changes)
    for module in model.modules():
        if isinstance(module, LevelConv2d) and module.offset is not None:
            torch.nn.init.normal_(module.offset.bias, std=0.7)
        if isinstance(module, torch.nn.BatchNorm2d):  # as after training: of a scale of its own
            module.running_mean.normal_(std=0.1)
    if isinstance(model, DenseDetector):
        if model.config.backbone.in_chans == 3:
            scale_logits(model.head.cls, model)
        with torch.no_grad():
            model.head.cls.bias += 2.5
    return model.eval()


class TorchFormat:
    """Stands for the module of a format: nothing is exported, the graph runs in PyTorch."""

    def __init__(self, model, change=lambda outputs: outputs):
        self.model, self.change = model, change

    def packages(self):
        return {"opset": 0}

    def write(self, program, path, metadata):  # noqa: ARG002
        path.write_text(json.dumps(metadata))

    def Network(self, path):  # noqa: N802
        return TorchNetwork(self.model, json.loads(path.read_text()), self.change)


def in_torch(model, image_size=None, batch_size=None, raw=False):
    """The graph of a model as an exported file that runs in PyTorch."""
    metadata = describe(model, image_size, batch_size, raw, "float32", {}, None)
    return ExportedModel(TorchNetwork(model, metadata))


class TorchNetwork:
    def __init__(self, model, metadata, change=lambda outputs: outputs):
        self.graph = DetectionGraph(model, metadata["raw"])
        self.metadata, self.change = metadata, change
        self.shapes = []

    @torch.no_grad()
    def __call__(self, images, sizes):
        self.shapes.append(images.shape)
        outputs = self.graph(torch.from_numpy(images), torch.from_numpy(sizes))
        return self.change([y.numpy() for y in outputs])
