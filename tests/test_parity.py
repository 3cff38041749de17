"""Equality with the original code, on the figures that were read off it."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sepc_zoo.checkpoints.convert.openmmlab import renames
from sepc_zoo.checkpoints.convert.sepc_authors import from_authors
from sepc_zoo.config import FPNConfig
from sepc_zoo.models.detector import Detector
from sepc_zoo.outputs import Predictions

STRIDES = FPNConfig().strides

GOLDENS = (
    "freeanchor_r50_ibn_pconv",
    "freeanchor_r50_sepc_lite",
    "fsaf_r50_baseline",
    "fsaf_r50_sepc",
    "retinanet_r50_pconv",
    "retinanet_r50_sepc",
)
THEIR_LOSSES = {
    "loss_cls": "loss_cls",
    "loss_box": "loss_bbox",
    "loss_positive_bag": "positive_bag_loss",
    "loss_negative_bag": "negative_bag_loss",
}
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def authors(shared_reference: Path):
    return import_authors(shared_reference)


def import_authors(reference: Path):
    """The module that makes checkpoints and inputs."""
    spec = importlib.util.spec_from_file_location(
        "authors_weights", reference / "authors_weights.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Golden:
    """The figures of a golden file, and our model with its inputs."""

    def __init__(self, authors, figures: dict, model: Detector) -> None:
        self.figures, self.model = figures, model.double()
        image = self.figures["image"]
        self.images = authors.input_images(image["h"], image["w"], image["n"], image["seed"])
        self.sizes = [tuple(size) for size in self.figures["img_shape"]]
        with torch.no_grad():
            self.features = self.model.backbone(self.images)
            self.pyramid = self.model.fpn(self.features)
            self.necks = self.model.neck(self.pyramid)
            self.predictions = self.model.head(*self.necks)

    def targets(self) -> list[dict[str, Tensor]]:
        return [
            {"boxes": continuous(t["boxes"]), "labels": torch.tensor(t["labels"])}
            for t in self.figures["targets"]
        ]


@pytest.fixture(scope="module", params=GOLDENS)
def golden(request, authors, shared_reference) -> Golden:
    figures = read_figures(shared_reference, request.param)
    state = authors.authors_state_dict(request.param, figures["salt"])
    return Golden(authors, figures, from_authors(state, our_name(request.param)))


def read_figures(reference: Path, name: str) -> dict:
    return json.loads((reference / "goldens" / f"{name}.json").read_text())


def our_name(name: str) -> str:
    return name.replace("baseline", "fpn")


def continuous(boxes: list) -> Tensor:
    return torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4) + torch.tensor([0, 0, 1, 1])


def assert_summary(value: Tensor, summary: dict, tolerance: float) -> None:
    assert list(value.shape) == summary["shape"]
    value = value.detach().contiguous().flatten()
    samples = torch.tensor(summary["value"], dtype=value.dtype)
    scale = samples.abs().max()
    assert ((value[summary["index"]] - samples).abs().max() / scale).item() < tolerance
    assert value.norm().item() == pytest.approx(summary["l2"], rel=tolerance)


def assert_summaries(values: list[Tensor], summaries: list[dict]) -> None:
    for value, summary in zip(values, summaries, strict=True):
        assert_summary(value, summary, 1e-9)


def raw_maps(predictions: Predictions, values: Tensor) -> list[Tensor]:
    """Maps ``(N, anchors * V, H, W)`` per level, as the original has them."""
    levels = values.split(predictions.level_lengths, dim=1)
    return [
        level.reshape(len(level), h, w, -1).permute(0, 3, 1, 2)
        for level, (h, w) in zip(levels, predictions.sizes, strict=True)
    ]


def test_feature_maps_equal_the_original(golden):
    figures = golden.figures
    assert_summaries(golden.features, figures["backbone"][-3:])
    assert_summaries(golden.pyramid, figures["fpn"])
    if golden.model.config.neck.name == "sepc":
        assert_summaries(golden.necks[0], figures["neck_cls"])
        assert_summaries(golden.necks[1], figures["neck_loc"])


def test_predictions_equal_the_original(golden):
    predictions, deltas = golden.predictions, golden.predictions.deltas
    if golden.model.config.method.name == "fsaf":  # stored as bottom, top, left, right
        deltas = deltas[..., [1, 0, 2, 3]]
    assert_summaries(raw_maps(predictions, predictions.logits), golden.figures["cls_score"])
    assert_summaries(raw_maps(predictions, deltas), golden.figures["bbox_pred"])


def test_detections_equal_the_original(golden):
    found = golden.model.postprocess(golden.predictions, golden.sizes)
    for ours, theirs in zip(found, golden.figures["detections"], strict=True):
        assert ours["labels"].tolist() == theirs["labels"]
        assert (ours["boxes"] - continuous(theirs["boxes"])).abs().max() < 1e-5
        assert (
            ours["scores"] - torch.tensor(theirs["scores"], dtype=torch.float64)
        ).abs().max() < 1e-8


def test_training_step_equals_the_original(golden):
    model, figures = golden.model.train(), golden.figures
    model.backbone.eval()
    model.zero_grad()
    losses = model.loss(model(golden.images), golden.targets())
    total = sum(losses.values())
    total.backward()

    assert total.item() == pytest.approx(figures["total_loss"], rel=1e-9)
    for name, loss in losses.items():
        theirs = figures["losses"][THEIR_LOSSES[name]]
        theirs = sum(theirs) if isinstance(theirs, list) else theirs
        assert loss.item() == pytest.approx(theirs, rel=1e-9)
    parameters = dict(model.named_parameters())
    rename = renames([*figures["grad_l2"], *figures["no_grad"]])
    for name, norm in figures["grad_l2"].items():
        ours = parameters[rename[name]].grad.norm().item()
        assert ours == pytest.approx(norm, rel=1e-7, abs=1e-12), name
    frozen = {rename[name] for name in figures["no_grad"]}
    stem, first_stage = model.backbone.stages()[:2]
    ours = {name for name, p in parameters.items() if any(p is q for q in [*stem, *first_stage])}
    assert ours == frozen
    buffers = dict(model.named_buffers())
    rename = renames(figures["buffers_after"])
    for name, summary in figures["buffers_after"].items():
        assert_summary(buffers[rename[name]], summary, 1e-9)


def test_strides_of_levels_fit_the_maps(golden):
    height, width = golden.images.shape[-2:]
    summary = golden.figures["fpn"]
    assert [s["shape"][-2:] for s in summary] == [
        [-(-height // stride), -(-width // stride)] for stride in STRIDES
    ]


@pytest.mark.parametrize("name", ["retinanet_r50_sepc", "fsaf_r50_sepc"])
def test_photos_give_the_detections_of_the_original(name, authors, shared_reference, shared_data):
    """Decoders and resizers differ by a grey level, so a quarter may be lost."""
    model = from_authors(authors.authors_state_dict(name), name)
    for file, figures in json.loads((shared_reference / "pipeline.json").read_text()).items():
        photo = shared_data / "coco_by_sa" / "val2017" / file
        found = model.predict(photo, score_threshold=0.0)
        theirs = figures["detections"][name]
        assert sum(is_found(box, found) for box in theirs) >= 75


def is_found(theirs: dict, ours) -> bool:
    near = (ours.boxes - continuous(theirs["box"])).abs().amax(dim=1) < 1
    same = near & (ours.labels == theirs["label"]) & ((ours.scores - theirs["score"]).abs() < 5e-3)
    return bool(same.any())


def test_every_published_checkpoint_converts_with_no_tensor_left_over(shared_reference):
    published = json.loads((shared_reference / "state_dict_shapes.json").read_text())
    assert len(published) == 13
    for name, shapes in published.items():
        state = {key: torch.zeros(shape) for key, shape in shapes.items()}
        model = from_authors(state, our_name(name))
        assert {*renames(shapes).values()} == set(model.state_dict())
