import pytest
import torch
import torch.nn.functional as F

from sepc_zoo.checkpoints.convert.openmmlab import (
    fold_bgr,
    from_openmmlab,
    openmmlab_config,
    renames,
)
from sepc_zoo.checkpoints.convert.sepc_authors import CheckpointError
from sepc_zoo.config import IMAGENET_MEAN, IMAGENET_STD
from sepc_zoo.models.build import build
from sepc_zoo.published import openmmlab
from sepc_zoo.registry import UnknownModelError

TRICKS = "fcos_r50-caffe_fpn_gn-head-center-normbbox-centeronreg-giou_1x_coco"
TENSORS = {
    "backbone.layer1.0.conv1.weight": "backbone.body.layer1.0.conv1.weight",
    "module.neck.fpn_convs.3.conv.bias": "fpn.p6.bias",
    "neck.0.lateral_convs.2.conv.weight": "fpn.lateral.2.weight",
    "neck.1.pconvs.3.pconv.0.conv_offset.weight": "neck.pconvs.3.from_coarser.offset.weight",
    "bbox_head.cls_convs.2.conv.weight": "head.cls_tower.6.weight",
    "bbox_head.reg_convs.2.gn.bias": "head.box_tower.7.bias",
    "bbox_head.atss_centerness.bias": "head.quality.bias",
    "bbox_head.fcos_cls.bias": "head.cls.bias",
    "bbox_head.scales.4.scale": "head.scales.4",
}


def test_tensors_have_our_names():
    assert renames([*TENSORS, "bbox_head.integral.project"]) == TENSORS


def test_towers_without_norms_have_two_layers_a_convolution():
    assert renames(["bbox_head.cls_convs.2.conv.weight"]) == {
        "bbox_head.cls_convs.2.conv.weight": "head.cls_tower.4.weight"
    }


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("retinanet_r50-caffe_fpn_1x_coco", "retinanet_r50_fpn"),
        ("gfl_x101-32x4d_fpn_ms-2x_coco", "gfl_x101_32x4d_fpn"),
        ("fcos_x101-64x4d_fpn_gn-head_ms-640-800-2x_coco", "fcos_x101_64x4d_fpn"),
        ("atss_r50_fpn_sepc_noibn_1x_coco", "atss_r50_sepc"),
        ("gfl_r101-dconv-c3-c5_fpn_ms-2x_coco", None),
        ("yolox_s_8xb8-300e_coco", None),
    ],
)
def test_their_configs_have_our_names(theirs, ours):
    assert openmmlab.our_name(theirs) == ours


def test_conventions_are_entries_of_the_config():
    plain = openmmlab_config("fcos_r50-caffe_fpn_gn-head_1x_coco")
    tricks = openmmlab_config(TRICKS)
    for config in (plain, tricks):
        assert config.backbone.stride_in_1x1
        assert config.weights.std == IMAGENET_STD
        assert config.postprocess.candidates == "pairs"
    assert tricks.weights.mean == IMAGENET_MEAN
    assert [255 * x for x in plain.weights.mean] == pytest.approx([122.7717, 115.9465, 102.9801])
    assert (plain.head.quality, tricks.head.quality) == ("cls", "box")
    assert (plain.postprocess.iou_threshold, tricks.postprocess.iou_threshold) == (0.5, 0.6)
    retinanet = openmmlab_config("retinanet_r50_fpn")
    assert retinanet.anchors.centre == "corner"
    assert retinanet.method.smooth_l1_beta == 0


@pytest.mark.parametrize(
    "name", ["gfl_r101-dconv-c3-c5_fpn_ms-2x_coco", "resnet50", "atss.coco_1x"]
)
def test_a_model_that_is_not_covered_is_refused(name):
    with pytest.raises(UnknownModelError, match=name):
        openmmlab_config(name)


@pytest.fixture(scope="module")
def checkpoint():
    """One of a small model, under openmmlab's names."""
    model = build(openmmlab_config("retinanet_r18_fpn_1x_coco"))
    ours = model.state_dict()
    tower = {0: 0, 2: 1, 4: 2, 6: 3}
    theirs = {}
    for key in ours:
        new = key.replace("backbone.body.", "backbone.").replace("fpn.p6", "neck.fpn_convs.3.conv")
        new = new.replace("fpn.p7", "neck.fpn_convs.4.conv")
        new = new.replace("head.cls.", "bbox_head.retina_cls.")
        new = new.replace("head.box.", "bbox_head.retina_reg.")
        for i in range(3):
            new = new.replace(f"fpn.lateral.{i}", f"neck.lateral_convs.{i}.conv")
            new = new.replace(f"fpn.output.{i}", f"neck.fpn_convs.{i}.conv")
        for at, i in tower.items():
            new = new.replace(f"head.cls_tower.{at}", f"bbox_head.cls_convs.{i}.conv")
            new = new.replace(f"head.box_tower.{at}", f"bbox_head.reg_convs.{i}.conv")
        theirs[new] = ours[key]
    return theirs


@pytest.mark.parametrize("name", ["retinanet_r18_fpn_1x_coco", "retinanet_r18_fpn"])
def test_a_checkpoint_becomes_a_model_of_its_precision(checkpoint, name):
    for dtype in (torch.float32, torch.float64):
        state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in checkpoint.items()}
        model = from_openmmlab(state, name)
        assert not model.training
        weight = model.head.cls.weight
        assert weight.dtype == dtype
        assert torch.equal(weight, state["bbox_head.retina_cls.weight"])


def test_a_checkpoint_that_does_not_fit_is_refused_by_its_tensors(checkpoint):
    missing = {k: v for k, v in checkpoint.items() if k != "neck.fpn_convs.3.conv.bias"}
    with pytest.raises(CheckpointError, match=r"fpn.p6.bias"):
        from_openmmlab(missing, "retinanet_r18_fpn")
    with pytest.raises(CheckpointError, match=r"left.over"):
        from_openmmlab({**checkpoint, "left.over": torch.zeros(1)}, "retinanet_r18_fpn")
    with pytest.raises(CheckpointError, match=r"head.cls.weight is"):
        from_openmmlab(checkpoint, "atss_r18_fpn_1x_coco")


def test_a_folded_first_convolution_takes_normalized_rgb():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(4, 3, 7, 7, generator=generator, dtype=torch.float64)
    bgr = torch.randn(1, 3, 20, 20, generator=generator, dtype=torch.float64) * 60
    deviation = torch.tensor(IMAGENET_STD, dtype=torch.float64)[:, None, None] * 255
    rgb = bgr.flip(1) / deviation
    torch.testing.assert_close(F.conv2d(rgb, fold_bgr(weight)), F.conv2d(bgr, weight))
