"""Equality with openmmlab's detectors, on figures that were read off mmdetection 3.3."""

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
from sepc_zoo.config import override
from sepc_zoo.models.detector import Detector
from sepc_zoo.openmmlab import our_name

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
OUR_TERMS = {
    "loss_cls": "loss_cls",
    "loss_bbox": "loss_box",
    "loss_centerness": "loss_quality",
    "loss_dfl": "loss_dfl",
    "positive_bag_loss": "loss_positive_bag",
    "negative_bag_loss": "loss_negative_bag",
}
IMAGENET_STD = torch.tensor([58.395, 57.12, 57.375], dtype=torch.float64)[:, None, None]
pytestmark = pytest.mark.slow


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


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((folder, name), id=name) for folder, names in GOLDENS.items() for name in names
    ],
)
def golden(request, shared_reference) -> Golden:
    return Golden(shared_reference, *request.param)


def assert_equal(value: Tensor, summary: dict, tolerance: float = 1e-9) -> None:
    assert list(value.shape) == summary["shape"]
    value = value.detach().contiguous().flatten()
    samples = torch.tensor(summary["value"], dtype=value.dtype)
    error = (value[summary["index"]] - samples).abs().max()
    assert error < tolerance * samples.abs().max()
    for name, of in (
        ("mean", value.mean()),
        ("std", value.std(correction=0)),
        ("l2", value.norm()),
    ):
        assert of.item() == pytest.approx(summary[name], rel=tolerance, abs=tolerance), name


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


def test_maps_equal_the_originals(golden):
    figures, outputs = golden.figures, golden.outputs
    assert_maps_equal(golden.features, figures["backbone"][1:])
    assert_maps_equal(golden.pyramid, figures["fpn"])
    if "sepc_cls" in figures:
        assert_maps_equal(golden.model.neck.pconvs[0](golden.pyramid), figures["first_pconv"])
        assert_maps_equal(golden.necks[0], figures["sepc_cls"])
        assert_maps_equal(golden.necks[1], figures["sepc_box"])
    assert_maps_equal(by_level(golden, outputs.logits), figures["cls_score"])
    deltas = by_level(golden, outputs.deltas)
    if "normbbox" in figures["model"]:  # given in pixels, not in strides
        deltas = [x * stride for x, stride in zip(deltas, (8, 16, 32, 64, 128), strict=True)]
    assert_maps_equal(deltas, figures["bbox_pred"])
    if "centerness" in figures:
        assert_maps_equal(by_level(golden, outputs.quality[..., None]), figures["centerness"])


def test_detections_equal_the_originals(golden):
    found = golden.model.postprocess(golden.outputs, golden.sizes)
    for ours, theirs in zip(found, golden.figures["detections"], strict=True):
        assert ours["labels"].tolist() == theirs["labels"]
        boxes, scores = (torch.tensor(theirs[k], dtype=torch.float64) for k in ("boxes", "scores"))
        torch.testing.assert_close(ours["boxes"], boxes, rtol=0, atol=1e-8)
        torch.testing.assert_close(ours["scores"], scores, rtol=0, atol=1e-9)


def test_detections_beyond_the_hundred_best_equal_the_originals(golden, monkeypatch):
    every = override(golden.model.config, {"postprocess": {"max_detections": 100_000}})
    monkeypatch.setattr(golden.model, "config", every)
    found = golden.model.postprocess(golden.outputs, golden.sizes)
    for ours, theirs in zip(found, golden.figures["after_nms"], strict=True):
        assert len(ours["scores"]) == theirs["count"]
        assert ours["scores"].sum().item() == pytest.approx(theirs["sum_of_scores"], rel=1e-9)
        assert ours["boxes"].sum(dim=0).tolist() == pytest.approx(theirs["sum_of_boxes"], rel=1e-9)
        assert ours["scores"].min().item() == pytest.approx(theirs["smallest_score"], rel=1e-9)


@pytest.mark.parametrize("step", range(3))
def test_training_steps_equal_the_originals(golden, step):
    model, figures = golden.train(), golden.figures["steps"][step]
    losses = model.loss(model(golden.images), golden.targets(figures))
    total = sum(losses.values())
    total.backward()

    expected = {OUR_TERMS[name]: value for name, value in figures["losses"].items()}
    expected = {k: sum(v) if isinstance(v, list) else v for k, v in expected.items()}
    assert {k: v.item() for k, v in losses.items()} == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert total.item() == pytest.approx(figures["total_loss"], rel=1e-9)
    for name, norm in figures["grad_l2"].items():
        assert golden.gradient_norm(name) == pytest.approx(norm, rel=1e-9, abs=1e-12), name


def test_what_the_recipe_freezes_is_the_stem_and_the_first_stage(golden):
    model, figures = golden.model, golden.figures
    stem, first_stage = model.backbone.stages()[:2]
    frozen = {id(p) for p in [*stem, *first_stage]}
    ours = {name for name, p in model.named_parameters() if id(p) in frozen}
    norms = {name for name in figures["no_grad"] if ".bn" in name or "downsample.1" in name}
    theirs = set(figures["no_grad"]) - (norms if "caffe" in figures["model"] else set())
    assert {golden.names[name] for name in theirs} <= ours


def test_every_published_checkpoint_converts_with_no_tensor_left_over(shared_reference):
    published = published_shapes(shared_reference)
    covered = {name: shapes for name, shapes in published.items() if our_name(name) is not None}
    assert len(covered) >= 22
    for name, shapes in covered.items():
        state = {key: torch.zeros(()).expand(shape) for key, shape in shapes.items()}
        assert isinstance(from_openmmlab(state, name), Detector)
