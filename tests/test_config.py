import json

import pytest
from msgspec.structs import replace

from sepc_zoo.config import (
    METHOD_TYPES,
    AnchorConfig,
    ConfigError,
    PlainNeck,
    PostprocessConfig,
    SEPCNeck,
    WeightsConfig,
    config_from_json,
    config_to_json,
    override,
)
from sepc_zoo.published import PUBLISHED
from sepc_zoo.registry import model_config, necks_of


@pytest.fixture
def config():
    return model_config("retinanet_r18_sepc")


@pytest.fixture
def content(config):
    return json.loads(json.dumps(config_to_json(config)))


NEW_MODELS = [f"{method}_r18_{neck}" for method in METHOD_TYPES for neck in necks_of(method)]


@pytest.mark.parametrize("name", [*NEW_MODELS, *PUBLISHED])
def test_json_gives_the_config_back(name):
    for changes in ({}, {"channels": 96, "anchors": {"octaves": 2}}):
        config = override(model_config(name), changes)
        assert config_from_json(json.loads(json.dumps(config_to_json(config)))) == config


def test_json_has_timms_layout(content):
    assert list(content) == [
        "architecture",
        "num_classes",
        "label_names",
        "category_ids",
        "model_args",
        "pretrained_cfg",
    ]
    assert content["architecture"] == "retinanet_r18_sepc"
    assert content["pretrained_cfg"]["mean"] == [0.485, 0.456, 0.406]


def test_a_whole_number_will_do_for_a_float(content):
    content["model_args"]["anchors"]["base_scale"] = 4
    assert config_from_json(content).anchors.base_scale == 4.0


def test_entries_with_defaults_may_be_missing(content, config):
    for entry in ("anchors", "postprocess", "channels", "coder", "fpn"):
        del content["model_args"][entry]
    del content["pretrained_cfg"]
    expected = replace(config, weights=WeightsConfig())
    assert config_from_json(content) == expected


def refused(content, match):
    with pytest.raises(ConfigError, match=match):
        config_from_json(content)


@pytest.mark.parametrize("entry", ["architecture", "num_classes", "label_names", "category_ids"])
def test_a_missing_entry_is_named(content, entry):
    del content[entry]
    refused(content, f"missing entry .*{entry}")


def test_an_unknown_entry_at_the_top_is_named(content):
    refused(content | {"colour": 1}, "colour")


@pytest.mark.parametrize(
    "path",
    [("model_args",), ("model_args", "neck"), ("model_args", "anchors"), ("pretrained_cfg",)],
)
def test_an_unknown_entry_inside_is_named(content, path):
    inside = content
    for key in path:
        inside = inside[key]
    inside["colour"] = 1
    refused(content, "colour")


@pytest.mark.parametrize("entry", ["num_classes", "label_names", "architecture", "weights"])
def test_entries_of_the_top_are_refused_in_model_args(content, entry):
    content["model_args"][entry] = content.get(entry)
    refused(content, f"model_args: unknown entries .*{entry}")


WRONG = {
    "num_classes": ("8", 8.0, True, None, 0, -1, 10**9, [8]),
    "label_names": ("cat", None, ["cat"], [1] * 80, ["cat"] * 80, {"cat": 1}),
    "category_ids": ([1.5] * 80, list(range(79)), [True] * 80, [7] * 80, "1"),
    "architecture": (None, 5, ["x"]),
    "model_args": (None, [], "x"),
    "pretrained_cfg": (None, [], 3),
    "model_args.channels": ("256", 256.5, 0, -4, 10**9, None, True),
    "model_args.head.convs": (-1, 33, 1.5, "4"),
    "model_args.method": (None, 3, ["fsaf"], {}, {"type": "yolo"}, {"type": ["fsaf"]}),
    "model_args.backbone": (None, 3, {}, {"name": "../x"}, {"name": "http://x"}),
    "model_args.inclusive_boxes": (0, 1, "yes", None),
    "model_args.backbone.kwargs": (None, [], "x", {"pretrained": True}, {"a": 10**9}),
    "model_args.backbone.stride_in_1x1": (1, "yes", None),
    "model_args.backbone.deform_stages": (None, 4, [0], [5], [4, 4], [4.5], ["4"], [1, 2, 3, 4, 4]),
    "model_args.method.positive_iou": (None, [], "x", 2, float("nan")),
    "model_args.neck": (None, [], "sepc", 0, True, {}, {"type": "bifpn"}),
    "model_args.neck.blocks": (0, 33, 10**9, 4.5, "4"),
    "model_args.neck.padding": (2, -1, True, "1"),
    "model_args.neck.norm": (1, "true", None),
    "model_args.anchors": (None, [], 9),
    "model_args.anchors.base_scale": (0, -4.0, 65, float("nan"), float("inf"), 10**400, "4", True),
    "model_args.anchors.octaves": (0, 17, 1.5, "3"),
    "model_args.anchors.ratios": ([], [0.5, 0], [-1.0], ["1"], [1.0] * 17, 1.0, [float("nan")]),
    "model_args.postprocess": (None, [0.05]),
    "model_args.postprocess.score_threshold": (-0.1, 1.1, float("nan"), "0.05"),
    "model_args.postprocess.iou_threshold": (-0.1, 1.1, float("nan"), None),
    "model_args.postprocess.candidates_per_level": (0, 10**7, 1.5),
    "model_args.postprocess.max_detections": (0, 10**6, None),
    "pretrained_cfg.mean": ([0.5, 0.5], 0.5, ["0", "0", "0"], [0, 0, float("nan")], None),
    "pretrained_cfg.std": ([0.0, 1, 1], [-1, 1, 1], [1, 1, float("inf")], [1, 1, 1, 1]),
    "pretrained_cfg.image_size": ([0, 1333], [1333, 800], [800], [800, 10**9], [800.5, 1333], None),
    "pretrained_cfg.pad_multiple": (0, -32, 10**9, 32.5),
    "pretrained_cfg.antialias": (0, "no"),
    "pretrained_cfg.keep_ratio": (0, "no", None),
    "pretrained_cfg.authors_ap": ("41.0", [41.0], True, float("nan"), float("inf")),
}


@pytest.mark.parametrize("entry", WRONG)
def test_a_wrong_value_is_refused_by_the_name_of_its_entry(content, entry):
    *path, name = entry.split(".")
    for value in WRONG[entry]:
        changed = json.loads(json.dumps(content))
        inside = changed
        for key in path:
            inside = inside[key]
        inside[name] = value
        refused(changed, name)


def test_a_refusal_is_short_even_of_a_number_that_is_not(content):
    with pytest.raises(ConfigError, match="num_classes") as caught:
        config_from_json(content | {"num_classes": int("9" * 4000)})
    assert len(str(caught.value)) <= 1000


@pytest.mark.parametrize("content", [None, [], "x", 5])
def test_what_is_no_table_is_refused(content):
    refused(content, "config: expected a table")


def test_configs_are_frozen(config):
    for part in (config, config.neck, config.anchors, config.postprocess, config.weights):
        with pytest.raises(AttributeError):
            part.anything = 1


def test_override_changes_the_entries_of_a_nested_config_only(config):
    changed = override(config, {"neck": {"blocks": 2}, "postprocess": {"iou_threshold": 0.6}})
    assert changed.neck == replace(config.neck, blocks=2)
    assert changed.postprocess == PostprocessConfig(iou_threshold=0.6)
    assert changed.anchors == config.anchors


def test_override_takes_a_whole_nested_config(config):
    assert override(config, {"anchors": AnchorConfig(octaves=2)}).anchors.octaves == 2
    assert override(config, {"neck": {"type": "fpn"}}).neck == PlainNeck()
    assert override(config, {"neck": SEPCNeck()}).neck == SEPCNeck()


def test_override_leaves_the_original_alone(config):
    before = replace(config)
    override(config, {"channels": 64, "neck": {"blocks": 1}})
    assert config == before


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"chanels": 128}, "chanels.*channels"),
        ({"neck": {"bloks": 2}}, "neck.* has no .*bloks"),
        ({"postprocess": {"iou_threshold": 2.0}}, "iou_threshold"),
        ({"postprocess": {"iou_threshold": "half"}}, "postprocess.iou_threshold"),
        ({"channels": "128"}, "channels"),
        ({"num_classes": 3}, "label_names has 80 entries for num_classes 3"),
        ({"weights": {"mean": [0.5]}}, "weights.mean"),
        (
            {"postprocess": {"soft_nms": "x"}},
            "soft_nms: .*; choose from none, linear, gaussian",
        ),
        ({"method": {"box_loss": "xiou"}}, r"method.box_loss: .*; choose from .*giou.*ciou$"),
        ({"neck": {"padding": 3}}, "neck.padding: .*3; choose from 0, 1$"),
        ({"head": {"norm": "x"}}, "head.norm: .*; choose from none, group$"),
        ({"coder": {"type": "x"}}, "coder.type: .*; choose from delta, distance, distribution$"),
    ],
)
def test_override_names_what_does_not_fit(config, changes, match):
    with pytest.raises(ConfigError, match=match):
        override(config, changes)
