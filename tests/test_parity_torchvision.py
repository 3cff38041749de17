"""Equality with torchvision's detectors, on figures that were read off torchvision 0.29."""

import json
from pathlib import Path
from types import ModuleType

import pytest
import torch
from module_files import import_file
from msgspec.structs import replace
from torch import Tensor

from sepc_zoo.checkpoints.convert.torchvision import our_name, renames, with_weights
from sepc_zoo.config import DeltaCoder, DistanceCoder, override
from sepc_zoo.data.pixels import normalize, pad_and_stack, resized_size
from sepc_zoo.inference.preprocess import plan_resize
from sepc_zoo.methods.matching import match_by_iou
from sepc_zoo.methods.targets import collate_targets
from sepc_zoo.models.detector import Detector
from sepc_zoo.models.heads.roi import RoIHead
from sepc_zoo.ops.coders import decode, encode
from sepc_zoo.outputs import Terms, TwoStagePredictions
from sepc_zoo.registry import model_config

IN_FLOAT32 = 1e-6  # torchvision computes the RPN's classification loss so, whatever the model is
EXACT = 1e-9
OUR_TERMS = {
    "classification": "loss_cls",
    "bbox_regression": "loss_box",
    "bbox_ctrness": "loss_quality",
    "loss_objectness": "loss_rpn_cls",
    "loss_rpn_box_reg": "loss_rpn_box",
    "loss_classifier": "loss_cls",
    "loss_box_reg": "loss_box",
}
NUM_COLUMNS = 91
ALL = 10**6  # samples: more than there are


class Golden:
    """The figures of a golden file, and our model with its inputs."""

    def __init__(self, folder: Path, weights: ModuleType, name: str) -> None:
        self.figures = json.loads((folder / "given" / f"{name}.json").read_text())
        config = override(model_config(our_name(name)), self.options())
        state = weights.state_dict(name, self.figures["salt"])
        self.names = renames(state)
        state = {k: v.double() if v.is_floating_point() else v for k, v in state.items()}
        self.model = with_weights(config, state)
        self.method = self.model.method
        self.sizes = [tuple(size) for size in self.figures["image_sizes"]]
        photos = [weights.photo(**photo) for photo in self.figures["photos"]]
        self.plans = [plan_resize((x.shape[1], x.shape[2]), config) for x in photos]
        self.inputs = [plan.to_input(255 * x) for plan, x in zip(self.plans, photos, strict=True)]
        batch = pad_and_stack(self.inputs, config.weights.pad_multiple)
        mean, std = config.weights.mean, config.weights.std
        self.images = normalize(batch, self.sizes, mean, std, torch.float64)

    def options(self) -> dict:
        """Entries of the config that the golden was made with; a dense head keeps 91 classes."""
        options = self.figures["kwargs"]
        image_size = (options["min_size"], options["max_size"])
        if "rpn_pre_nms_top_n_test" not in options:
            return {
                "weights": {"image_size": image_size},
                "num_classes": NUM_COLUMNS,
                "label_names": tuple(f"column {i}" for i in range(NUM_COLUMNS)),
                "category_ids": tuple(range(NUM_COLUMNS)),
            }
        rpn = {
            "candidates_per_level": options["rpn_pre_nms_top_n_test"],
            "max_proposals": options["rpn_post_nms_top_n_test"],
            "train_candidates_per_level": options["rpn_pre_nms_top_n_train"],
            "train_max_proposals": options["rpn_post_nms_top_n_train"],
        }
        return {"weights": {"image_size": image_size}, "head": {"rpn": rpn}}

    def targets(self, empty: tuple[int, ...] = ()) -> list[dict[str, Tensor]]:
        """The targets of a training step; ``empty`` are the images that have none."""
        ids = {category: i for i, category in enumerate(self.model.config.category_ids)}
        targets = []
        rows = zip(self.figures["targets_in_batch"], self.figures["targets"], strict=True)
        for i, (boxes, target) in enumerate(rows):
            kept = slice(0) if i in empty else slice(None)
            labels = [ids[label] for label in target["labels"][kept]]
            boxes = torch.tensor(boxes[kept], dtype=torch.float64).reshape(-1, 4)
            size = torch.tensor(self.sizes[i])
            targets.append({"boxes": boxes, "labels": torch.tensor(labels), "image_size": size})
        return targets

    def collated(self):
        return collate_targets(self.targets(), self.images)

    def in_train_mode(self, batch_statistics: bool = False) -> Detector:
        """The model with empty gradients, and samplers that take all."""
        self.model.train().zero_grad()
        for module in self.model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.train(batch_statistics)
        if self.method.name == "fasterrcnn":
            self.model.method = replace(
                self.method, rpn_samples=ALL, roi_samples=ALL, rpn_positive_fraction=1.0
            )
        return self.model

    def outputs_of_fixed_regions(self) -> TwoStagePredictions:
        """What the model says of the proposals of the golden and the true boxes."""
        model = self.model
        pyramid = model.fpn(model.backbone(self.images))
        boxes = [t["boxes"] for t in self.targets()]
        fixed = [torch.tensor(x, dtype=torch.float64) for x in self.figures["fixed_proposals"]]
        regions = [torch.cat(pair) for pair in zip(fixed, boxes, strict=True)]
        regions = torch.nn.utils.rnn.pad_sequence(regions, batch_first=True)
        sizes = tuple((x.shape[2], x.shape[3]) for x in pyramid)
        heads = model.rpn(pyramid), model.roi_head(pyramid[:4], regions)
        return TwoStagePredictions(*heads[0], sizes, regions, *heads[1])


@pytest.fixture(scope="module")
def folder(shared_reference: Path) -> Path:
    return shared_reference / "torchvision"


@pytest.fixture(scope="module")
def functions(folder: Path) -> dict:
    return json.loads((folder / "functions.json").read_text())


@pytest.fixture(scope="module")
def weights(folder: Path) -> ModuleType:
    return import_file(folder / "repeatable_weights.py")


DENSE = ("retinanet_resnet50_fpn", "retinanet_resnet50_fpn_v2", "fcos_resnet50_fpn")
TWO_STAGE = ("fasterrcnn_resnet50_fpn", "fasterrcnn_resnet50_fpn_v2")


@pytest.fixture(scope="module", params=[*DENSE, *TWO_STAGE])
def golden(request, folder, weights) -> Golden:
    return Golden(folder, weights, request.param)


def assert_summary(value: Tensor, summary: dict, tolerance: float = EXACT) -> None:
    assert list(value.shape) == summary["shape"]
    value = value.detach().contiguous().flatten()
    samples = torch.tensor(summary["value"], dtype=torch.float64)
    assert (value[summary["index"]] - samples).abs().max() <= tolerance * samples.abs().max()
    assert value.norm().item() == pytest.approx(summary["l2"], rel=tolerance)


def by_column(values: Tensor, golden: Golden) -> Tensor:
    """Logits ``(R, 91)`` in the order of torchvision's columns."""
    ids = golden.model.config.category_ids
    columns = [0, *ids, *(i for i in range(1, NUM_COLUMNS) if i not in ids)]
    return values[:, torch.tensor(columns).argsort()]


@pytest.mark.slow
def test_outputs_equal_torchvisions(golden):
    figures, model = golden.figures, golden.model.eval()
    assert_summary(golden.images, figures["batch"])
    with torch.no_grad():
        features = model.backbone(golden.images)
        pyramid = model.fpn(features)
        outputs = model(golden.images, [{"image_size": size} for size in golden.sizes])
    for maps, summaries in ((features, figures["body"]), (pyramid, figures["fpn"])):
        for value, summary in zip(maps, summaries, strict=True):
            assert_summary(value, summary)
    anchors = model.anchors(outputs.sizes, golden.images).boxes
    assert_summary(anchors, figures["anchors"]["all"])
    if isinstance(outputs, TwoStagePredictions):
        assert_regions(golden, outputs)
        return
    assert_summary(outputs.logits, figures["head"]["cls_logits"])
    assert_summary(outputs.deltas, figures["head"]["bbox_regression"])
    if outputs.quality is not None:
        assert_summary(outputs.quality[..., None], figures["head"]["bbox_ctrness"])


def assert_regions(golden: Golden, outputs: TwoStagePredictions) -> None:
    """Compare what both heads say, and the regions between them."""
    figures = golden.figures
    assert_summary(outputs.rpn_logits, figures["rpn"]["objectness"])
    assert_summary(outputs.rpn_deltas, figures["rpn"]["deltas"])
    for regions, exists, proposals in zip(
        outputs.regions, outputs.exists, figures["proposals"], strict=True
    ):
        assert_summary(regions[exists], proposals["all"])
    logits = outputs.logits[outputs.exists]
    assert_summary(by_column(logits, golden), figures["roi"]["class_logits"])
    classes = torch.tensor(golden.model.config.category_ids)
    deltas = torch.full((len(logits), NUM_COLUMNS, 4), torch.nan, dtype=torch.float64)
    deltas[:, classes] = outputs.deltas[outputs.exists]
    summary = figures["roi"]["box_regression"]
    found = deltas.flatten()[summary["index"]]
    wanted = torch.tensor(summary["value"], dtype=torch.float64)
    real = found.isfinite()  # the others belong to no class
    assert real.sum() > 30
    assert (found - wanted)[real].abs().max() < EXACT * wanted.abs().max()


@pytest.mark.slow
def test_detections_equal_torchvisions(golden):
    model, figures = golden.model.eval(), golden.figures
    with torch.no_grad():
        outputs = model(golden.images, [{"image_size": size} for size in golden.sizes])
    in_batch = model.postprocess(outputs, golden.sizes)
    ids = model.config.category_ids
    for i, plan in enumerate(golden.plans):
        found, theirs = in_batch[i], figures["detections_in_batch"][i]
        kept = [k for k, label in enumerate(theirs["labels"]) if label in ids]
        count = len(kept)
        assert count > 10
        assert [ids[label] for label in found["labels"]][:count] == [
            theirs["labels"][k] for k in kept
        ]
        for key in ("boxes", "scores"):
            wanted = torch.tensor(theirs[key], dtype=torch.float64)[kept]
            assert (found[key][:count] - wanted).abs().max() < EXACT * wanted.abs().max()
        # torchvision computes the ratio of sides in float32.
        wanted = torch.tensor(figures["detections"][i]["boxes"], dtype=torch.float64)[kept]
        boxes = plan.to_image(found["boxes"][:count])
        assert (boxes - wanted).abs().max() < IN_FLOAT32 * wanted.abs().max()


@pytest.mark.slow
def test_matches_equal_torchvisions(golden):
    model, targets, figures = golden.model, golden.collated(), golden.figures
    two_stage = "rpn_match" in figures
    anchors = model.anchors([tuple(grid) for grid in figures["anchors"]["grids"]], golden.images)
    if two_stage:
        match = golden.method.match_anchors(anchors.boxes, targets)
    else:
        match = golden.method.match(anchors, targets)
    for row, theirs in zip(match, figures["rpn_match" if two_stage else "match"], strict=True):
        assert (row >= 0).nonzero().flatten().tolist() == theirs["positive"]
        assert [(row == -1).sum(), (row == -2).sum()] == [theirs["negatives"], theirs["ignored"]]
        if "box" in theirs:
            assert row[row >= 0].tolist() == theirs["box"]
    if not two_stage:
        return
    with torch.no_grad():
        regions = golden.outputs_of_fixed_regions().regions
    match = golden.method.match_regions(regions, targets)
    ids = model.config.category_ids
    for i, theirs in enumerate(golden.figures["fixed_match"]):
        count = len(theirs["labels"])
        labels = [ids[targets.labels[i, k]] if k >= 0 else 0 for k in match[i, :count].tolist()]
        assert labels == theirs["labels"]
        boxes = [box for box, label in zip(theirs["box"], labels, strict=True) if label]
        assert match[i][match[i] >= 0].tolist() == boxes


def assert_step(golden: Golden, terms: Terms, theirs: dict) -> None:
    """Compare losses, and the gradients of those that torchvision summed."""
    losses = {name: total / count for name, (total, count) in terms.items()}
    for name, value in theirs["terms"].items():
        tolerance = IN_FLOAT32 if name == "loss_objectness" else EXACT
        assert losses[OUR_TERMS[name]].item() == pytest.approx(value, rel=tolerance), name
    sum(losses[OUR_TERMS[name]] for name in theirs["terms"]).backward()
    rounded = "loss_objectness" in theirs["terms"]
    parameters = dict(golden.model.named_parameters())
    for name, norm in theirs.get("grad_l2", {}).items():
        grad = parameters[golden.names[name]].grad
        found = 0.0 if grad is None else grad.norm().item()
        assert found == pytest.approx(norm, rel=IN_FLOAT32 if rounded else 1e-8, abs=1e-12), name


def parts_of(golden: Golden, part: str) -> Terms:
    """Loss terms of the RPN over all anchors, of the second head over fixed regions, or both."""
    model = golden.model
    if golden.method.name != "fasterrcnn":
        return model.loss_terms(model(golden.images), golden.targets())
    outputs = golden.outputs_of_fixed_regions()
    terms = model.loss_terms(outputs, golden.targets())
    wanted = {
        "rpn_all_anchors": ("loss_rpn_cls", "loss_rpn_box"),
        "roi_fixed_proposals": ("loss_cls", "loss_box"),
    }
    return {name: terms[name] for name in wanted.get(part, terms)}


def steps_in(figures: dict) -> dict[str, dict]:
    """Losses by the part of the model; a dense one has but one."""
    return {"all": figures} if "terms" in figures else figures


@pytest.mark.slow
def test_losses_and_gradients_equal_torchvisions(golden):
    for part, theirs in steps_in(golden.figures["losses"]).items():
        golden.in_train_mode()
        assert_step(golden, parts_of(golden, part), theirs)


@pytest.mark.slow
@pytest.mark.parametrize("key", ["losses_whole_all_sampled", "losses_second_photo_empty"])
def test_whole_steps_equal_torchvisions(golden, key):
    """Regions are those that the RPN proposes."""
    if key not in golden.figures:
        pytest.skip("the golden has no such step")
    model = golden.in_train_mode()
    targets = golden.targets(empty=(1,) if "empty" in key else ())
    terms = model.loss_terms(model(golden.images, targets), targets)
    assert_step(golden, terms, golden.figures[key])


@pytest.mark.slow
def test_steps_with_batch_statistics_equal_torchvisions(golden):
    if "losses_batch_statistics" not in golden.figures:
        pytest.skip("its norms are frozen")
    state = {name: value.clone() for name, value in golden.model.state_dict().items()}
    [(part, theirs)] = steps_in(golden.figures["losses_batch_statistics"]).items()
    golden.in_train_mode(batch_statistics=True)
    assert_step(golden, parts_of(golden, part), theirs)
    buffers = dict(golden.model.named_buffers())
    for name, summary in golden.figures["buffers_after"].items():
        assert_summary(buffers[golden.names[name]], summary)
    golden.model.load_state_dict(state)


def test_matches_at_the_edges(functions):
    matcher = functions["matcher"]
    anchors = torch.tensor(matcher["anchors"])
    for cases in matcher["cases"].values():
        for case in cases if isinstance(cases, list) else [cases]:
            boxes = torch.tensor(case["boxes"], dtype=torch.float32)
            for key, low_quality in (("on", "own"), ("off", "none")):
                thresholds = matcher["high"], matcher["low"]
                match = match_by_iou(boxes, anchors, *thresholds, low_quality=low_quality)
                assert match.tolist() == case[key]


def test_sizes_of_inputs(functions):
    sizes = functions["sizes"]
    for row in sizes["rows"]:
        bounds = sizes["min_size"], sizes["max_size"]
        assert list(resized_size(*row["photo"], *bounds, rounded=False)) == row["resized"]
        assert list(resized_size(*row["photo"], *bounds)) == row["rounded"]


CODERS = {
    "weights_1": DeltaCoder(clamp_shrinking=False),
    "weights_10_10_5_5": DeltaCoder(scale=(0.1, 0.1, 0.2, 0.2), clamp_shrinking=False),
    "ltrb_by_size": DistanceCoder(order="ltrb"),
}


@pytest.mark.parametrize(("key", "coder"), CODERS.items())
def test_coders(functions, key, coder):
    tensors = {
        k: torch.tensor(functions["coders"][k], dtype=torch.float64)
        for k in ("anchors", "boxes", "codes")
    }
    if isinstance(coder, DistanceCoder):  # behind a ReLU codes are distances
        tensors["codes"] = tensors["codes"].abs()
    for function, given in ((encode, "boxes"), (decode, "codes")):
        found = function(coder, tensors["anchors"], tensors[given])
        wanted = torch.tensor(functions["coders"][key][function.__name__], dtype=torch.float64)
        assert (found - wanted).abs().max() < EXACT * wanted.abs().max()


def roi_head() -> RoIHead:
    config = model_config("fasterrcnn_r50_fpn.tv_coco").head.roi
    return RoIHead(4, 1, range(2, 6), replace(config, linears=0))


def test_levels_of_regions(functions):
    boxes = torch.tensor(functions["levels"]["boxes"], dtype=torch.float64)
    assert (roi_head().level_of(boxes) + 2).tolist() == functions["levels"]["level"]


def test_pooled_regions(functions):
    figures, head = functions["roi_align"], roi_head()
    maps = []
    for i in range(4):
        generator = torch.Generator().manual_seed(40 + i)
        shape = (2, 4, 512 // 2 ** (i + 2), 640 // 2 ** (i + 2))
        maps.append(torch.randn(shape, generator=generator, dtype=torch.float64))
    regions = [torch.tensor(boxes, dtype=torch.float64) for boxes in figures["boxes"]]
    rows = torch.cat([torch.cat([torch.full((len(x), 1), i), x], 1) for i, x in enumerate(regions)])
    level = head.level_of(rows[:, 1:])
    assert (level + 2).tolist() == figures["levels"]
    order = level.argsort(stable=True)
    pooled = head.pool(maps, rows[order].split(level.bincount(minlength=4).tolist()))
    assert_summary(pooled[order.argsort()], figures["all"])
