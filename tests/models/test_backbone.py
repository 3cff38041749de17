import pytest
import torch
from torch import nn

from sepc_zoo.config import BackboneConfig, ConfigError
from sepc_zoo.models.backbone import Backbone, pad_to_multiple
from sepc_zoo.registry import BACKBONES

HEAVY = ("r101", "x101_32x4d", "x101_64x4d", "convnext_small", "swin_small", "effnetv2_s")
CURATED = [
    pytest.param(timm_name, marks=pytest.mark.slow if name in HEAVY else (), id=name)
    for name, timm_name in BACKBONES.items()
]
OTHERS = [
    "convnextv2_atto",
    "regnety_002",
    "densenet121",
    "dla46_c",
    "edgenext_xx_small",
    "efficientvit_b0",
    "fastvit_t8",
    "ghostnetv2_100",
    "mambaout_femto",
    "mobilenetv4_hybrid_medium",
    "pvt_v2_b0",
    "repvit_m0_9",
    "tiny_vit_5m_224",
]
SLOW_OTHERS = [
    "mvitv2_tiny",
    "twins_svt_small",
    "davit_tiny",
    "hrnet_w18_small",
    "resnest14d",
    "swinv2_tiny_window8_256",
    "vgg11_bn",
]
ALL_OTHERS = OTHERS + [pytest.param(name, marks=pytest.mark.slow) for name in SLOW_OTHERS]


def make(name, **kwargs):
    return Backbone(BackboneConfig(name=name, kwargs=kwargs))


def cells(side):
    return [-(-side // stride) for stride in (8, 16, 32)]


def assert_fits(backbone, height, width):
    maps = backbone(torch.rand(1, 3, height, width))
    expected = zip(backbone.channels, cells(height), cells(width), strict=True)
    assert [tuple(x.shape[1:]) for x in maps] == list(expected)
    assert all(x.isfinite().all() for x in maps)


@pytest.mark.parametrize("name", CURATED)
@torch.no_grad()
def test_a_curated_backbone_has_strides_8_16_and_32(name):
    backbone = make(name).eval()
    assert_fits(backbone, 64, 96)
    if backbone.rounds_up:
        assert_fits(backbone, 33, 57)
    else:
        maps = backbone(torch.rand(1, 3, 33, 57))
        assert [tuple(x.shape[2:]) for x in maps] == [(8, 8), (4, 4), (2, 2)]


@pytest.mark.parametrize("name", ALL_OTHERS)
@torch.no_grad()
def test_any_other_timm_model_has_them_too(name):
    backbone = make(name).eval()
    assert_fits(backbone, 64, 96)
    maps = backbone(torch.rand(1, 3, 33, 57))
    assert all(
        x.shape[2] >= rows and x.shape[3] >= columns
        for x, rows, columns in zip(maps, cells(33), cells(57), strict=True)
    )


def test_channels_last_features_come_channels_first():
    backbone = make("swin_tiny_patch4_window7_224").eval()
    assert backbone.channels_last
    with torch.no_grad():
        maps = backbone(torch.rand(1, 3, 64, 64))
    assert [x.shape[1] for x in maps] == backbone.channels == [192, 384, 768]
    assert all(x.is_contiguous() for x in maps)


@torch.no_grad()
def test_a_patch_that_an_image_fills_in_part_is_kept():
    backbone = make("convnext_atto").eval()
    assert not backbone.rounds_up
    image = torch.rand(1, 3, 60, 90)
    for ours, padded in zip(backbone(image), backbone(pad_to_multiple(image, 32)), strict=True):
        assert torch.equal(ours, padded)


def test_a_resnet_is_fed_as_it_is():
    assert make("resnet18").rounds_up


def test_asking_how_a_model_rounds_leaves_it_as_it_was():
    torch.manual_seed(0)
    backbone = make("resnet18")
    assert all(module.training for module in backbone.modules())
    assert backbone.body.bn1.num_batches_tracked == 0
    assert not backbone.body.bn1.running_mean.any()


@pytest.mark.parametrize("trained", [True, False])
def test_a_frozen_backbone_runs_in_the_faster_memory_format_of_inference(trained):
    torch.manual_seed(0)
    backbone = make("resnet18").eval().requires_grad_(trained)
    images = torch.rand(1, 3, 64, 64)
    features = backbone(images)
    with torch.no_grad():
        inferred = backbone(images)
    is_last = [x.is_contiguous(memory_format=torch.channels_last) for x in features]
    assert is_last == [not trained] * 3
    for ours, theirs in zip(features, inferred, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("size", [(32, 64), (33, 57), (1, 1)])
def test_padding_goes_to_the_right_and_below(size):
    image = torch.rand(1, 3, *size)
    padded = pad_to_multiple(image, 32)
    assert all(
        side % 32 == 0 and side - old < 32 for side, old in zip(padded.shape[2:], size, strict=True)
    )
    assert torch.equal(padded[..., : size[0], : size[1]], image)
    assert padded.sum() == pytest.approx(image.sum().item(), rel=1e-5)


def test_the_first_stages_of_a_resnet_are_its_stem_and_layer1():
    with torch.device("meta"):
        backbone = make("resnet50")
    names = {id(p): name for name, p in backbone.body.named_parameters()}
    stem, first, second = ([names[id(p)] for p in stage] for stage in backbone.stages()[:3])
    assert {name.split(".")[0] for name in stem} == {"conv1", "bn1"}
    assert {name.split(".")[0] for name in first} == {"layer1"}
    assert {name.split(".")[0] for name in second} == {"layer2"}
    expected = [n for n in names.values() if n.split(".")[0] in ("conv1", "bn1", "layer1")]
    assert stem + first == expected


@pytest.mark.parametrize("name", [*BACKBONES.values(), *OTHERS, *SLOW_OTHERS])
def test_stages_are_disjoint_and_follow_each_other(name):
    with torch.device("meta"):
        backbone = make(name)
    stages = backbone.stages()
    staged = [id(p) for stage in stages for p in stage]
    assert len(staged) == len(set(staged))
    assert len(stages) == 5
    every = [id(p) for p in backbone.body.parameters()]
    assert staged == every[: len(staged)]  # so that freezing leaves no gap


@pytest.mark.parametrize("name", BACKBONES.values())
def test_a_first_stage_is_a_small_part_of_its_backbone(name):
    with torch.device("meta"):
        stages = make(name).stages()
    sizes = [sum(p.numel() for p in stage) for stage in stages]
    assert 0 < sum(sizes[:2]) < 0.1 * sum(sizes)
    assert all(sizes[1:])


def test_kwargs_reach_timm():
    backbone = make("resnet18", act_layer="silu")
    assert isinstance(backbone.body.act1, nn.SiLU)


@pytest.mark.parametrize(
    "kwargs", [{"bogus": 1}, {"act_layer": "nope"}, {"layers": [1]}, {"out_indices": [9]}]
)
def test_kwargs_that_timm_refuses_are_named(kwargs):
    with pytest.raises(ConfigError, match=f"resnet18.*{next(iter(kwargs))}"):
        make("resnet18", **kwargs)


def test_a_model_of_one_size_is_built_for_another_by_backbone_kwargs():
    maps = make("efficientformerv2_s0", img_size=[64, 96]).eval()(torch.zeros(1, 3, 64, 96))
    assert [x.shape[-2:] for x in maps] == [(8, 12), (4, 6), (2, 3)]


def test_a_model_of_a_fixed_size_takes_any_where_it_can():
    backbone = make("swin_tiny_patch4_window7_224").eval()
    with torch.no_grad():
        assert backbone(torch.rand(1, 3, 96, 64))[0].shape[2:] == (12, 8)


def test_arguments_that_fail_on_an_image_are_refused():
    with pytest.raises(ConfigError, match=r"test_efficientnet.*bn_eps.*fails on an image"):
        make("test_efficientnet", bn_eps=[])


def test_strides_move_to_the_1x1_convolutions_of_a_resnet():
    config = BackboneConfig(name="resnet50", stride_in_1x1=True)
    moved, plain = Backbone(config), Backbone(BackboneConfig(name="resnet50"))
    assert moved.state_dict().keys() == plain.state_dict().keys()
    strides = [
        (block.conv1.stride, block.conv2.stride)
        for layer in ("layer1", "layer2", "layer3", "layer4")
        for block in [getattr(moved.body, layer)[0]]
    ]
    assert strides == [((1, 1), (1, 1))] + [((2, 2), (1, 1))] * 3
    with torch.no_grad():
        maps = moved.eval()(torch.zeros(1, 3, 65, 97))
    assert [x.shape[-2:] for x in maps] == [(9, 13), (5, 7), (3, 4)]


def test_a_backbone_without_bottlenecks_has_no_strides_to_move():
    with pytest.raises(ConfigError, match=r"stride_in_1x1.*resnet18"):
        Backbone(BackboneConfig(name="resnet18", stride_in_1x1=True))
