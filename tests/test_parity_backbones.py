"""Equality of backbones with those of mmdetection: C2 to C5, in float64."""

import json

import pytest
import torch
from openmmlab_goldens import (
    IMAGENET_STD,
    assert_maps_equal,
    published_shapes,
    repeatable_weights,
)

from sepc_zoo.checkpoints.convert.openmmlab import from_openmmlab
from sepc_zoo.models.backbone import Backbone

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("openmmlab_more", "retinanet_pvtv2-b0_fpn_1x_coco"),
        ("openmmlab_more", "retinanet_r50-caffe_fpn_1x_coco"),
        ("openmmlab_more", "atss_r50_fpn_sepc_noibn_1x_coco"),
        ("universenet", "universenet50_2008s_fp16_4x4_mstrain_480_960_2x_coco"),
    ],
)
@torch.no_grad()
def test_all_maps_equal_the_originals(folder, name, shared_reference):
    figures = json.loads((shared_reference / folder / "given" / f"{name}.json").read_text())
    shapes = published_shapes(shared_reference)[name]
    weights = repeatable_weights(shared_reference, folder)
    state = weights.repeatable_state_dict(shapes, figures["salt"])
    model = from_openmmlab({key: value.double() for key, value in state.items()}, name)
    images = weights.input_batch(**figures["input"])
    if "caffe" in name:  # given as BGR of standard deviation 1
        images = images.flip(1) / IMAGENET_STD

    backbone = Backbone(model.config.backbone, strides=(4, 8, 16, 32)).double().eval()
    backbone.load_state_dict(model.backbone.state_dict())
    assert_maps_equal(backbone(images), figures["backbone"])
