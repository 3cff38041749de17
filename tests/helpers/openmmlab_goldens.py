"""Figures that were read off openmmlab's and UniverseNet's detectors, and our models of them."""

import json
from pathlib import Path
from types import ModuleType

import pytest
import torch
from module_files import import_file
from torch import Tensor

from sepc_zoo.checkpoints.convert.openmmlab import (
    fold,
    from_openmmlab,
    renames,
    split_attention,
)
from sepc_zoo.models.detector import Detector

# Names of the goldens by their folder in the reference.
GOLDENS = {
    "openmmlab": [
        "retinanet_r50_fpn_1x_coco",
        "freeanchor_r50_fpn_1x_coco",
        "fsaf_r50_fpn_1x_coco",
        "atss_r50_fpn_1x_coco",
        "gfl_r50_fpn_1x_coco",
        "fcos_r50-caffe_fpn_gn-head_1x_coco",
        "fcos_r50-caffe_fpn_gn-head-center-normbbox-centeronreg-giou_1x_coco",
    ],
    "openmmlab_more": [
        "atss_r50_fpn_sepc_noibn_1x_coco",
        "retinanet_pvtv2-b0_fpn_1x_coco",
        "retinanet_r50-caffe_fpn_1x_coco",
    ],
    "universenet": ["universenet50_2008s_fp16_4x4_mstrain_480_960_2x_coco"],
}
IMAGENET_STD = torch.tensor([58.395, 57.12, 57.375], dtype=torch.float64)[:, None, None]


class Golden:
    """The figures of a golden file, and our model with its inputs."""

    def __init__(self, reference: Path, folder: str, name: str) -> None:
        file = reference / folder / "given" / f"{name}.json"
        self.figures = json.loads(file.read_text())
        weights = repeatable_weights(reference, folder)
        shapes = published_shapes(reference)[name]
        state = weights.repeatable_state_dict(shapes, self.figures["salt"])
        self.names = renames(split_attention(state))
        self.model = from_openmmlab({key: value.double() for key, value in state.items()}, name)
        self.state = {key: value.clone() for key, value in self.model.state_dict().items()}
        self.images = weights.input_batch(**self.figures["input"])
        if "caffe" in name:  # given as BGR of standard deviation 1
            self.images = self.images.flip(1) / IMAGENET_STD
        self.sizes = [tuple(size) for size in self.figures["img_shape"]]
        with torch.no_grad():
            self.features = self.model.backbone(self.images)
            self.pyramid = self.model.fpn(self.features)
            self.necks = self.model.neck(self.pyramid)
            self.outputs = self.model(self.images)

    def targets(self, step: dict) -> list[dict[str, Tensor]]:
        return [
            {
                "boxes": torch.tensor(target["boxes"], dtype=torch.float64).reshape(-1, 4),
                "labels": torch.tensor(target["labels"], dtype=torch.long),
                "image_size": torch.tensor(size),
            }
            for target, size in zip(step["targets"], self.sizes, strict=True)
        ]

    def train(self) -> Detector:
        """The model as a step begins: frozen norms in eval mode, statistics of the file."""
        self.model.load_state_dict(self.state)
        self.model.train().zero_grad()
        if "statistics_after_step" not in self.figures:
            self.model.backbone.eval()
        frozen = {self.names[name] for name in self.figures["no_grad"] if name in self.names}
        for name, module in self.model.named_modules():
            if f"{name}.weight" in frozen:
                module.eval()
        return self.model

    def gradient_norm(self, name: str) -> float:
        """L2 norm of the gradient of an original's tensor, from those that it became."""
        parameters = dict(self.model.named_parameters())
        parts = [self.names[part] for part in split_attention({name: torch.ones(3)})]
        one = torch.ones((), dtype=torch.float64)
        norms = [parameters[part].grad.norm() * fold(part, one) for part in parts]
        return torch.stack(norms).norm().item()


def repeatable_weights(reference: Path, folder: str) -> ModuleType:
    """The module that makes weights and inputs."""
    file = reference / folder / "repeatable_weights.py"
    other = reference / "openmmlab_more" / file.name
    return import_file(file if file.exists() else other)


def published_shapes(reference: Path) -> dict[str, dict[str, list[int]]]:
    """Name and shape of every tensor of the published checkpoints, by one of their names."""
    files = [reference / name / "state_dict_shapes.json" for name in GOLDENS]
    return {k: v for file in files for k, v in json.loads(file.read_text()).items()}


def assert_equal(value: Tensor, summary: dict, tolerance: float = 1e-9) -> None:
    assert list(value.shape) == summary["shape"]
    value = value.detach().contiguous().flatten()
    samples = torch.tensor(summary["value"], dtype=value.dtype)
    error = (value[summary["index"]] - samples).abs().max()
    assert error < tolerance * samples.abs().max()
    whole = {"mean": value.mean(), "std": value.std(correction=0), "l2": value.norm()}
    for name in whole.keys() & summary.keys():
        assert whole[name].item() == pytest.approx(summary[name], rel=tolerance, abs=tolerance)


def assert_maps_equal(values: list[Tensor], summaries: list[dict]) -> None:
    for value, summary in zip(values, summaries, strict=True):
        assert_equal(value, summary)


def by_level(golden: Golden, values: Tensor) -> list[Tensor]:
    """Maps ``(N, anchors * V, H, W)`` of each level, as the original has them."""
    outputs = golden.outputs
    return [
        level.reshape(len(level), h, w, -1).permute(0, 3, 1, 2)
        for level, (h, w) in zip(
            values.split(outputs.level_lengths, dim=1), outputs.sizes, strict=True
        )
    ]
