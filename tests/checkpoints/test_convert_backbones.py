"""What backbones of other projects need on their way into timm's; see test_parity_backbones."""

import json
import math
import re

import pytest
import torch

from sepc_zoo.checkpoints.convert.openmmlab import (
    fold,
    from_openmmlab,
    openmmlab_config,
    renames,
    split_attention,
)
from sepc_zoo.checkpoints.convert.sepc_authors import CheckpointError
from sepc_zoo.config import BackboneConfig, SEPCNeck
from sepc_zoo.models.backbone import Backbone
from sepc_zoo.registry import UnknownModelError

UNIVERSENET = "universenet50_2008s_fp16_4x4_mstrain_480_960_2x_coco"
NAMES = {
    "retinanet_pvtv2-b0_fpn_1x_coco": "retinanet_pvt_v2_b0_fpn",
    "retinanet_pvtv2-b5_fpn_1x_coco": "retinanet_pvt_v2_b5_fpn",
    "retinanet_r50-caffe_fpn_1x_coco": "retinanet_r50_fpn",
    "atss_r50_fpn_sepc_noibn_1x_coco": "atss_r50_sepc",
    UNIVERSENET: "gfl_resnet50c_sepc_lite",
    "universenet50_2008s_fp16_4x16_mini_mstrain_320_640_2x_coco": "gfl_resnet50c_sepc_lite",
    "universenet50_2008s_fp16_4x16_micro_mstrain_128_256_2x_coco": "gfl_resnet50c_sepc_lite",
}


@pytest.mark.parametrize(("theirs", "ours"), NAMES.items())
def test_a_published_name_builds_our_model(theirs, ours):
    assert openmmlab_config(theirs).architecture == ours


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("retinanet_pvt_v2_b3_fpn", "retinanet_pvtv2-b3_fpn_1x_coco"),
        ("atss_r50_sepc", "atss_r50_fpn_sepc_noibn_1x_coco"),
        ("gfl_resnet50c_sepc_lite", UNIVERSENET),
    ],
)
def test_our_name_without_a_tag_means_the_plain_recipe(ours, theirs):
    assert openmmlab_config(ours) == openmmlab_config(theirs)


@pytest.mark.parametrize(
    "name",
    [
        "retinanet_pvt-t_fpn_1x_coco",
        "universenet50_2008d_fp16_4x4_mstrain_480_960_20e_coco",
        "universenet101_2008s_fp16_4x4_mstrain_480_960_2x_coco",
        "atss_swint_fpn_fp16_4x4_adamw_1x_coco",
    ],
)
def test_a_name_that_is_not_covered_is_refused(name):
    with pytest.raises(UnknownModelError, match=name):
        from_openmmlab({}, name)


def test_conventions_of_universenet_are_entries_of_the_config():
    large, mini, micro = map(openmmlab_config, list(NAMES)[-3:])
    assert large.backbone == BackboneConfig(name="resnet50c", deform_stages=(4,))
    assert large.neck == SEPCNeck(norm=True, head_deform=True)
    assert (large.weights.image_size, large.weights.keep_ratio) == ((800, 1333), True)
    assert (mini.weights.image_size, mini.weights.keep_ratio) == ((512, 512), False)
    assert (micro.weights.image_size, micro.weights.keep_ratio) == ((224, 224), False)


def test_conventions_of_atss_with_sepc_are_entries_of_the_config():
    config = openmmlab_config("atss_r50_fpn_sepc_noibn_1x_coco")
    assert config.neck == SEPCNeck(head_deform=True, pconv_deform=True, padding=0)
    assert config.fpn.p6_from == "p5"
    assert config.head.convs == 0


@torch.no_grad()
def test_a_smaller_epsilon_is_folded_into_the_convolution_before_the_norm():
    torch.manual_seed(0)
    original, ours = (Backbone(BackboneConfig(name="pvt_v2_b0")).double().eval() for _ in range(2))
    for name, module in original.named_modules():
        if re.search(r"(patch_embed|downsample|attn)\.norm$", name):
            module.eps = 1e-6
    state = original.state_dict()
    ours.load_state_dict({key: fold(key, value) for key, value in state.items()})
    image = torch.zeros(1, 3, 70, 93, dtype=torch.float64)  # blank cells have hardly any variance
    image[..., :40, :50].normal_()
    for a, b in zip(ours(image), original(image), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


def test_a_stacked_projection_becomes_two():
    weight, bias = torch.randn(6, 2), torch.randn(6)
    start = "backbone.layers.1.1.0.attn.attn"
    parts = split_attention({f"{start}.in_proj_weight": weight, f"{start}.in_proj_bias": bias})
    ours = {renames(parts)[key]: value for key, value in parts.items()}
    q, kv = (f"backbone.body.stages_1.blocks.0.attn.{part}" for part in ("q", "kv"))
    assert set(ours) == {f"{part}.{kind}" for part in (q, kv) for kind in ("weight", "bias")}
    assert torch.equal(torch.cat([ours[f"{q}.weight"], ours[f"{kv}.weight"]]), weight)
    assert torch.equal(torch.cat([ours[f"{q}.bias"], ours[f"{kv}.bias"]]), bias)
    assert len(ours[f"{q}.bias"]) == 2


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("stem.7.weight", "bn1.weight"),
        ("stem.4.running_mean", "conv1.4.running_mean"),
        ("layer4.1.conv2.conv_offset.bias", "layer4.1.conv2.offset.bias"),
        ("layers.0.0.projection.weight", "patch_embed.proj.weight"),
        ("layers.0.0.norm.bias", "patch_embed.norm.bias"),
        ("layers.2.0.projection.bias", "stages_2.downsample.proj.bias"),
        ("layers.2.1.17.attn.attn.out_proj.bias", "stages_2.blocks.17.attn.proj.bias"),
        ("layers.0.1.1.attn.sr.weight", "stages_0.blocks.1.attn.sr.weight"),
        ("layers.3.1.0.ffn.layers.0.bias", "stages_3.blocks.0.mlp.fc1.bias"),
        ("layers.3.1.0.ffn.layers.1.bias", "stages_3.blocks.0.mlp.dwconv.bias"),
        ("layers.3.1.0.ffn.layers.4.bias", "stages_3.blocks.0.mlp.fc2.bias"),
        ("layers.3.2.weight", "stages_3.norm.weight"),
    ],
)
def test_a_tensor_of_a_backbone_has_timms_name(theirs, ours):
    theirs, ours = f"backbone.{theirs}", f"backbone.body.{ours}"
    assert renames([theirs]) == {theirs: ours}


def test_what_is_folded_keeps_its_type_and_shape():
    value = torch.ones(4, dtype=torch.float32)
    folded = fold("backbone.body.patch_embed.proj.bias", value)
    torch.testing.assert_close(folded, value * math.sqrt(10))
    pointwise, wide = torch.ones(4, 2, 1, 1), torch.ones(4, 2, 3, 3)
    assert fold("backbone.body.stages_0.blocks.0.mlp.fc1.weight", pointwise).shape == (4, 2)
    assert fold("backbone.body.stages_0.blocks.0.mlp.fc1.weight", wide) is wide
    assert fold("head.cls.weight", pointwise) is pointwise


@pytest.fixture(scope="module")
def published(shared_reference):
    """Tensors without values of published checkpoints, by the names of their configs."""
    files = [shared_reference / name for name in ("openmmlab", "openmmlab_more", "universenet")]
    shapes = [json.loads((file / "state_dict_shapes.json").read_text()) for file in files]
    return {
        name: {key: torch.empty(shape, device="meta") for key, shape in tensors.items()}
        for part in shapes
        for name, tensors in part.items()
    }


@pytest.mark.parametrize(
    ("file", "name", "tensor"),
    [
        ("retinanet_pvtv2-b1_fpn_1x_coco", "retinanet_pvtv2-b0_fpn_1x_coco", "patch_embed.proj"),
        ("retinanet_pvtv2-b2_fpn_1x_coco", "retinanet_pvtv2-b1_fpn_1x_coco", "stages_0.blocks.2"),
        ("retinanet_r50_fpn_1x_coco", "retinanet_pvtv2-b0_fpn_1x_coco", "patch_embed.proj"),
        ("atss_r50_fpn_1x_coco", "atss_r50_fpn_sepc_noibn_1x_coco", "neck.pconvs.0.from_finer"),
        ("atss_r50_fpn_sepc_noibn_1x_coco", "atss_r50_fpn_1x_coco", "head.cls_tower.0.weight"),
        (UNIVERSENET, "gfl_r50_fpn_1x_coco", "backbone.body.conv1.weight"),
        ("gfl_r50_fpn_1x_coco", UNIVERSENET, "backbone.body.layer4.0.conv2.offset"),
    ],
)
def test_another_variant_is_refused_by_its_tensors(published, file, name, tensor):
    with torch.device("meta"), pytest.raises(CheckpointError, match=re.escape(tensor)):
        from_openmmlab(published[file], name)


@pytest.mark.parametrize("stage", [3, 4])
def test_other_deformable_stages_are_refused_by_their_offsets(published, stage):
    """Without its offsets, the checkpoint would load into a plain ResNet."""
    conv = f"backbone.layer{stage}.1.conv2.conv_offset"
    state = dict(published[UNIVERSENET])
    if stage == 4:
        del state[f"{conv}.bias"]
    else:
        state[f"{conv}.bias"] = torch.empty(18)
    ours = f"backbone.body.layer{stage}.1.conv2.offset.bias"
    with torch.device("meta"), pytest.raises(CheckpointError, match=re.escape(ours)):
        from_openmmlab(state, UNIVERSENET)
