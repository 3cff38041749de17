"""The graph that is exported finds what the model finds."""

import pytest
import torch
from tiny_exports import METHODS, in_torch, tiny_detector
from torchvision.ops import nms

from sepc_zoo.export.check import compare, made_up_batches
from sepc_zoo.export.suppression import keep_best
from sepc_zoo.ops.devices import standard_operators
from sepc_zoo.published import CONVENTIONS, openmmlab


def assert_equal_sets(model, **fixed):
    figures = compare(model, in_torch(model, **fixed))
    assert figures["detections"] > 10
    assert figures["unmatched"] == 0
    assert figures["max_score_difference"] < 1e-6
    assert figures["max_box_difference"] < 1e-3


@pytest.mark.parametrize("name", [f"{m}_fpn" for m in METHODS] + ["fsaf_sepc", "fasterrcnn_pconv"])
def test_the_graph_of_every_method_finds_what_the_model_finds(name):
    with standard_operators():
        assert_equal_sets(tiny_detector(name))


CONVENTION_CASES = {
    "the authors' cropped cells and inclusive boxes": ("fsaf_sepc_lite", CONVENTIONS["sepc"]),
    "the authors' padding": ("retinanet_fpn", CONVENTIONS["sepc_fpn"]),
    "torchvision's RetinaNet": ("retinanet_fpn", CONVENTIONS["retinanet_resnet50_fpn_v2"]),
    "torchvision's FCOS": ("fcos_fpn", CONVENTIONS["fcos_resnet50_fpn"]),
    "torchvision's Faster R-CNN": ("fasterrcnn_fpn", CONVENTIONS["fasterrcnn_resnet50_fpn_v2"]),
    "openmmlab's ATSS": ("atss_fpn", openmmlab.conventions("atss_r50_fpn_1x_coco")),
    "stretched images": ("gfl_fpn", {"weights": {"keep_ratio": False}}),
}


@pytest.mark.parametrize("case", CONVENTION_CASES)
def test_the_graph_keeps_the_conventions_of_published_weights(case):
    name, entries = CONVENTION_CASES[case]
    changes = {key: value for key, value in entries.items() if key not in ("method", "backbone")}
    assert_equal_sets(tiny_detector(name, **changes))


def test_images_of_other_channels_are_floats():
    model = tiny_detector("retinanet_fpn", backbone_kwargs={"in_chans": 5})
    exported = in_torch(model)
    assert exported.rule["dtype"] == "float32"
    assert compare(model, exported)["unmatched"] == 0


def test_few_candidates_are_chosen_by_pairs_of_anchor_and_class():
    limits = {"candidates_per_level": 7, "iou_threshold": 0.9, "score_threshold": 0.001}
    assert_equal_sets(tiny_detector("gfl_fpn", postprocess=limits))


def test_a_fixed_input_takes_smaller_images():
    model = tiny_detector("retinanet_fpn")
    assert_equal_sets(model, image_size=(128, 160), batch_size=2)


def test_detections_behind_the_last_have_no_score_and_label_minus_one():
    model = tiny_detector("atss_fpn", postprocess={"max_detections": 400})
    exported = in_torch(model)
    [image] = next(made_up_batches(exported.rule))
    size = torch.tensor([image.shape[-2:]]).numpy()
    boxes, scores, labels = exported.run(image.permute(1, 2, 0)[None].numpy(), size)
    count = int((labels >= 0).sum())
    assert 0 < count < 400 == scores.shape[1]
    assert (scores[0, :-1] >= scores[0, 1:]).all()
    assert (scores[0, :count] > 0).all()
    assert not scores[0, count:].any()
    assert not boxes[0, count:].any()
    assert (labels[0, count:] == -1).all()


def test_raw_outputs_are_those_of_the_head():
    model = tiny_detector("fcos_fpn")
    figures = compare(model, in_torch(model, raw=True))
    assert figures["unmatched"] == 0
    assert figures["detections"] > 1000


def test_suppression_is_that_of_each_group_alone():
    generator = torch.Generator().manual_seed(0)
    corner = 20 * torch.rand(2, 50, 2, generator=generator)
    boxes = torch.cat([corner, corner + 10], dim=2)
    scores = torch.rand(2, 3, 50, generator=generator) - 0.3
    kept = keep_best(boxes, scores, 4, 0.5, 0.0)
    for image in range(2):
        for group in range(3):
            candidates = (scores[image, group] > 0).nonzero().flatten()
            best = nms(boxes[image, candidates], scores[image, group, candidates], 0.5)[:4]
            wanted = torch.zeros(50)
            wanted[candidates[best]] = scores[image, group, candidates[best]]
            assert torch.equal(kept[image, group], wanted)
