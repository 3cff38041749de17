import fnmatch
import re
from typing import Any, ClassVar

import pytest
import timm
import torch

import sepc_zoo
from sepc_zoo import registry as zoo
from sepc_zoo.config import METHOD_TYPES as METHODS
from sepc_zoo.config import NECK_TYPES, BackboneConfig, ConfigError, NeckEntry, SEPCNeck
from sepc_zoo.methods.method import Method
from sepc_zoo.models.backbone import Backbone
from sepc_zoo.published import PUBLISHED
from sepc_zoo.registry import (
    BACKBONES,
    NECKS,
    UnknownModelError,
    authors_config,
    is_model,
    list_backbones,
    list_models,
    model_config,
    neck_name,
    necks_of,
    register_model,
)


@pytest.fixture(autouse=True)
def _forget_registered_models(monkeypatch):
    monkeypatch.setattr(zoo, "_registered", {})


def test_every_combination_parses_into_its_parts():
    for method in METHODS:
        for backbone, timm_name in BACKBONES.items():
            for neck in necks_of(method):
                config = model_config(f"{method}_{backbone}_{neck}")
                found = neck_name(config.neck)
                parts = (config.method.name, config.backbone.name, found, config.architecture)
                expected = (method, timm_name, neck, f"{method}_{backbone}_{neck}")
                assert parts == expected


def test_the_list_is_methods_times_backbones_times_necks():
    names = list_models()
    assert len(names) == sum(len(necks_of(m)) for m in METHODS) * len(BACKBONES)
    assert names == sorted(names)
    assert all(is_model(name) for name in names)


def test_two_stages_have_the_necks_of_one_pyramid():
    assert necks_of("fasterrcnn") == ["fpn", "pconv", "ibn_pconv"]
    for neck in ("sepc_lite", "sepc"):
        with pytest.raises(UnknownModelError, match=f"fasterrcnn has no neck {neck}; it has fpn"):
            model_config(f"fasterrcnn_r50_{neck}")


def test_curated_backbones_are_timm_models_of_every_family_promised():
    assert all(timm.is_model(name) for name in BACKBONES.values())
    assert list_backbones() == list(BACKBONES)
    for family in ("resnet", "resnext", "mobilenet", "efficientnet", "convnext", "swin"):
        assert any(family in name for name in BACKBONES.values())


def test_only_the_baseline_has_a_tower_in_its_head():
    assert model_config("fsaf_r50_fpn").head.convs == 4
    assert model_config("fsaf_r50_pconv").head.convs == 0


def test_new_models_pad_and_have_continuous_boxes():
    config = model_config("fsaf_r50_sepc")
    assert (config.neck.padding, config.inclusive_boxes) == (1, False)


@pytest.mark.parametrize("backbone", ["mnv2", "mnv3", "mnv4s", "mnv4m", "effnet_b0"])
def test_models_for_small_devices_have_fewer_channels_by_either_name(backbone):
    names = (backbone, zoo.BACKBONES[backbone])
    assert {model_config(f"fsaf_{name}_sepc").channels for name in names} == {64}
    assert model_config("fsaf_r18_sepc").channels == 256
    assert sepc_zoo.create_model(f"fsaf_{backbone}_fpn", channels=24).config.channels == 24


def test_models_know_the_80_coco_classes():
    config = model_config("fsaf_r50_sepc")
    assert (config.num_classes, len(set(config.label_names))) == (80, 80)
    assert config.label_names[0] == "person"
    assert (config.category_ids[0], config.category_ids[-1]) == (1, 90)


def test_a_tag_has_the_authors_conventions():
    config = model_config("fsaf_r50_sepc.coco_1x")
    assert config == authors_config("fsaf_r50_sepc") == authors_config("fsaf_r50_sepc.coco_1x")
    assert config.neck == SEPCNeck(norm=True, head_deform=True, pconv_deform=True, padding=0)
    assert config.inclusive_boxes
    assert not config.weights.antialias
    assert (config.architecture, config.weights.tag) == ("fsaf_r50_sepc", "coco_1x")
    assert config.weights.authors_ap == 41.6


def test_the_fsaf_baseline_pads_to_384():
    assert authors_config("fsaf_r50_fpn").weights.pad_multiple == 384
    assert authors_config("fsaf_r50_sepc").weights.pad_multiple == 32


@pytest.mark.parametrize(
    "name",
    [
        "fsaf_r50_sepc.coco_2x",
        "fsaf_r18_sepc.coco_1x",
        "retinanet_r50_fpn.coco_1x",
        "retinanet_resnet50_sepc.coco_1x",
        "fsaf_r50_sepc.",
    ],
)
def test_a_tag_exists_only_where_weights_are_published(name):
    assert not is_model(name)


@pytest.mark.parametrize(
    "name",
    [
        "retinanet_convnextv2_nano_sepc",
        "fsaf_resnet50.a1_in1k_sepc_lite",
        "freeanchor_regnety_004_ibn_pconv",
        "fsaf_mobilenetv4_conv_small_fpn",
    ],
)
def test_any_timm_model_goes_by_its_own_name(name):
    config = model_config(name)
    assert timm.is_model(config.backbone.name)
    assert config.architecture == name
    assert config.backbone.name in name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "fsaf",
        "fsaf_r50",
        "fsaf_sepc",
        "fsaf__sepc",
        "yolo_r50_sepc",
        "fsaf_r50_sepcc",
        "FSAF_r50_sepc",
        "fsaf_r50_sepc ",
        "fsaf_r51_sepc",
        "fsaf_no_such_backbone_sepc",
        "fsaf_resnet50.no_such_tag_sepc",
        "fsaf_hf-hub:org/name_sepc",
        "local-dir:/tmp",
        "x" * 1000,
    ],
)
def test_other_names_are_no_models(name):
    assert not is_model(name)
    with pytest.raises(UnknownModelError, match="no model"):
        model_config(name)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("fsaf_r50_spec", "fsaf_r50_sepc"),
        ("retinanet_r50_sepclite", "retinanet_r50_sepc_lite"),
        ("freeanchor_resnet_50_sepc.coco1x", "freeanchor_r50_sepc.coco_1x"),
        ("retinanet_r52_pconv", "retinanet_r50_pconv"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(name, nearest):
    with pytest.raises(UnknownModelError, match=rf"did you mean .*{nearest}"):
        sepc_zoo.create_model(name)


def test_a_name_far_from_any_is_told_where_to_look():
    with pytest.raises(UnknownModelError, match="list_models"):
        model_config("qqqqqqqq")


def test_a_wildcard_filters():
    names = list_models("*_r50_sepc*")
    assert names == [n for n in list_models() if fnmatch.fnmatchcase(n, "*_r50_sepc*")]
    assert len(names) == sum("sepc" in neck for method in METHODS for neck in necks_of(method))


def test_one_of_several_patterns_must_match():
    names = list_models(["fsaf_r18_*", "fsaf_r34_*"])
    assert len(names) == 2 * len(NECKS)


def test_exclusions_take_away():
    names = list_models("fsaf_r18_*", exclude_filters=["*_sepc*", "*_fpn"])
    assert names == ["fsaf_r18_ibn_pconv", "fsaf_r18_pconv"]
    assert list_models(exclude_filters="*") == []


def test_published_weights_are_listed_with_their_tags():
    names = list_models(pretrained=True)
    assert names == sorted(PUBLISHED)
    assert list_models("*.coco_1x", pretrained=True) == sorted(
        row.name for row in PUBLISHED.values() if row.publisher == "sepc"
    )
    assert list_models("fsaf*", pretrained=True, exclude_filters="*_fpn.*") == [
        "fsaf_r50_ibn_pconv.coco_1x",
        "fsaf_r50_pconv.coco_1x",
        "fsaf_r50_sepc.coco_1x",
        "fsaf_r50_sepc_lite.coco_1x",
    ]


def test_a_registered_row_is_a_model_like_any_other():
    register_model("cells", "fsaf_r18_sepc_lite", channels=16, neck={"blocks": 2})
    assert is_model("cells")
    assert "cells" in list_models("cel*")
    config = sepc_zoo.create_model("cells").config
    assert (config.architecture, config.channels, config.neck.blocks) == ("cells", 16, 2)
    assert config.method.name == "fsaf"


def test_a_registered_row_may_have_other_classes():
    register_model("two", "fsaf_r18_sepc_lite", num_classes=2)
    assert model_config("two").label_names == ("class_0", "class_1")
    register_model("pets", "fsaf_r18_sepc_lite", label_names=["cat", "dog"])
    assert model_config("pets").category_ids == (17, 18)  # COCO's


def test_a_row_may_start_from_a_registered_one():
    register_model("cells", "fsaf_r18_sepc_lite", channels=16)
    register_model("more_cells", "cells", head={"convs": 1})
    assert model_config("more_cells").channels == 16


@pytest.mark.parametrize("name", ["fsaf_r50_sepc", "fsaf_r50_sepc.coco_1x", "fsaf_regnety_004_fpn"])
def test_a_name_is_registered_once(name):
    with pytest.raises(ConfigError, match="already"):
        register_model(name, "fsaf_r18_sepc")
    register_model("cells", "fsaf_r18_sepc")
    with pytest.raises(ConfigError, match="already"):
        register_model("cells", "fsaf_r18_sepc")


def test_a_row_that_does_not_fit_is_not_registered():
    with pytest.raises(ConfigError, match="chanels"):
        register_model("cells", "fsaf_r18_sepc", chanels=16)
    with pytest.raises(UnknownModelError):
        register_model("cells", "fsaf_r18_spec")
    assert not is_model("cells")


class MethodWithoutTag(Method, frozen=True):
    pass


class NeckWithoutTag(NeckEntry, frozen=True):
    module: ClassVar[Any] = torch.nn.Identity


class NeckWithoutModule(NeckEntry, frozen=True, tag="without_module"):
    pass


@pytest.mark.parametrize(
    ("register", "arguments", "match"),
    [
        (zoo.register_method, [MethodWithoutTag], "MethodWithoutTag has no tag"),
        (zoo.register_method, [MethodWithoutTag()], "a subclass of Method, got MethodWithoutTag()"),
        (zoo.register_method, [object], "a subclass of Method, got <class 'object'>"),
        (zoo.register_neck, ["own", NeckWithoutTag()], "NeckWithoutTag has no tag"),
        (zoo.register_neck, ["own", NeckWithoutModule()], "NeckWithoutModule names no module"),
        (zoo.register_neck, ["own", SEPCNeck], "MyConfig(), got <class"),
    ],
)
def test_what_is_no_method_or_neck_is_refused_and_not_registered(register, arguments, match):
    tables = METHODS, NECKS, NECK_TYPES
    before = [dict(table) for table in tables]
    with pytest.raises(ConfigError, match=re.escape(match)):
        register(*arguments)
    assert [dict(table) for table in tables] == before


@pytest.mark.parametrize("entry", ["method", "neck"])
def test_a_method_or_neck_by_its_name_alone_is_answered_with_a_table(entry):
    with pytest.raises(ConfigError, match=rf"config\.{entry}: expected a table such as .*type"):
        sepc_zoo.create_model("fsaf_r18_fpn", **{entry: "sepc"})


def test_a_method_without_a_loss_is_named():
    with pytest.raises(NotImplementedError, match="MethodWithoutTag defines no loss"):
        MethodWithoutTag().loss(None, None, None, None)


@pytest.mark.parametrize("label_names", ["cat", 5])
def test_classes_are_a_list_of_names(label_names):
    with pytest.raises(ConfigError, match="label_names: expected a list of names"):
        zoo.with_classes(model_config("fsaf_r18_fpn"), None, label_names)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "xcit_tiny_12_p8_224", "levit_128s"])
def test_a_backbone_without_the_strides_says_so(name):
    with pytest.raises(ConfigError, match=r"features at strides \[.*needs 8, 16, 32"):
        Backbone(BackboneConfig(name=name))


@pytest.mark.parametrize("name", ["no_such_backbone", "resnet50.no_such_tag"])
def test_a_backbone_that_timm_does_not_know_is_named(name):
    with pytest.raises(ConfigError, match=name):
        Backbone(BackboneConfig(name=name))


def test_a_model_is_normalised_as_its_backbone_was():
    assert model_config("fsaf_r50_sepc").weights.mean == (0.485, 0.456, 0.406)
    name = "efficientvit_b0"
    assert model_config(f"fsaf_{name}_sepc").weights.std == timm.get_pretrained_cfg(name).std


def test_a_pattern_fits_published_names_without_their_tag():
    assert zoo.list_models("fsaf_r50_sepc", pretrained=True) == ["fsaf_r50_sepc.coco_1x"]
